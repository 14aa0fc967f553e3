"""Finding the WSGI application that the operator named.

Invariant: whatever the app's code does while it is imported, the caller gets a callable or an AppError that says why.
"""

import ast
import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

from zcluster.errors import AppError

FORMS = "MODULE:ATTRIBUTE, or MODULE:FACTORY() for a function that makes it"
TRACEBACK_MAX_CHARS = 16_000  # it travels in one control message and stands in the log once
_MISSING = object()


def load(text: str) -> Callable[..., Any]:
    """Import `MODULE:ATTRIBUTE`, or call `MODULE:FACTORY(LITERAL, ...)`; MODULE alone: its `app` or `application`.

    Runs the app's module code in this process. Raises AppError: not found, raised while importing, not callable.
    """
    module_name, _, expression = text.partition(":")
    if not module_name or module_name.startswith("."):
        raise AppError(f"{text!r} does not name an app: its module is missing or relative; an app is {FORMS}")
    module = _import(module_name, text)
    app: Any = _evaluate(module, expression, text) if expression else _default(module, text)
    if not callable(app):
        raise AppError(f"{text} is {_a(app)}, which is not callable; a WSGI application is called with "
                       "(environ, start_response) (PEP 3333)")  # fmt: skip
    return cast("Callable[..., Any]", app)


def _import(name: str, text: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            looked = ", ".join(repr(entry or ".") for entry in sys.path[:3])
            hint = "name the module, not the file" if name.endswith(".py") else "start in the app's directory"
            raise AppError(
                f"there is no module {error.name!r} for the app {text!r}; looked in {looked}, ...; {hint}; an app is "
                f"{FORMS}"
            ) from None
        raise AppError(_raised(text, "while it was imported")) from error
    except (Exception, SystemExit) as error:  # the app's own code: whatever it raises is told, not swallowed
        raise AppError(_raised(text, "while it was imported")) from error


def _default(module: Any, text: str) -> Any:
    for name in ("app", "application"):
        found = _get(module, name, text)
        if found is not _MISSING:
            return found
    raise AppError(f"module {text!r} has neither 'app' nor 'application'; name the app as {FORMS}")


def _evaluate(module: Any, expression: str, text: str) -> Any:
    try:
        tree = ast.parse(expression, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else None
        path = ast.unparse(call.func if call else tree)
        args = [ast.literal_eval(arg) for arg in call.args] if call else []
        kwargs = {str(kw.arg): ast.literal_eval(kw.value) for kw in call.keywords} if call else {}
        if not all(name.isidentifier() for name in (*path.split("."), *kwargs)) or "None" in kwargs:
            raise ValueError("neither a dotted name nor a call of one")
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as ast.literal_eval documents
        raise AppError(f"{expression!r} in {text!r} is neither an attribute nor a call with literals; "
                       f"an app is {FORMS}") from None  # fmt: skip
    found = module
    for name in path.split("."):
        owner, found = found, _get(found, name, text)
        if found is _MISSING:
            raise AppError(f"{_a(owner)} has no attribute {name!r}, wanted for the app {text!r}")
    if call is None:
        return found
    if not callable(found):
        raise AppError(f"{path} in {text!r} is {_a(found)}, not a function that makes an app")
    try:
        return found(*args, **kwargs)
    except (Exception, SystemExit) as error:  # the app's own code again
        raise AppError(_raised(text, "while its factory ran")) from error


def _get(owner: Any, name: str, text: str) -> Any:
    """An attribute, or _MISSING. It may be computed (PEP 562, a property): the app's own code once more."""
    try:
        return getattr(owner, name, _MISSING)
    except (Exception, SystemExit) as error:
        raise AppError(_raised(text, f"when its attribute {name!r} was read")) from error


def _a(thing: object) -> str:
    kind = type(thing).__name__
    return f"module {thing.__name__}" if kind == "module" else f"an object of type {kind!r}"  # type: ignore[attr-defined]


def _raised(text: str, when: str) -> str:
    """The traceback without our own frames and importlib's."""
    kind, error, trace = sys.exc_info()
    while trace and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(kind, error, trace))[-TRACEBACK_MAX_CHARS:].rstrip()
    # File names that are not UTF-8 come as lone surrogates, which can neither be sent nor logged.
    lines = lines.encode(errors="backslashreplace").decode()
    return f"the app {text!r} raised {when}:\n{lines}"


def _is_machinery(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")

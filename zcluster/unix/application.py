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


def load(text: str) -> Callable[..., Any]:
    """Import `MODULE:ATTRIBUTE`, or call `MODULE:FACTORY(LITERAL, ...)`; MODULE alone: its `app` or `application`.

    Runs the app's module code in this process. Raises AppError: not found, raised while importing, not callable.
    """
    module_name, _, expression = text.partition(":")
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
            raise AppError(
                f"there is no module {error.name!r} for the app {text!r}; looked in {', '.join(sys.path[:3])}, ...; "
                f"start in the app's directory, and name it as {FORMS}"
            ) from None
        raise AppError(_raised(text, "while it was imported")) from error
    except ValueError as error:
        raise AppError(f"{text!r} does not name an app ({error}); it is {FORMS}") from None
    except (Exception, SystemExit) as error:  # the app's own code: whatever it raises is told, not swallowed
        raise AppError(_raised(text, "while it was imported")) from error


def _default(module: Any, text: str) -> Any:
    for name in ("app", "application"):
        if hasattr(module, name):
            return getattr(module, name)
    raise AppError(f"module {text!r} has neither 'app' nor 'application'; name the app as {FORMS}")


def _evaluate(module: Any, expression: str, text: str) -> Any:
    try:
        tree = ast.parse(expression, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else None
        path = ast.unparse(call.func if call else tree)
        args = [ast.literal_eval(arg) for arg in call.args] if call else []
        kwargs = {kw.arg: ast.literal_eval(kw.value) for kw in call.keywords if kw.arg} if call else {}
    except (SyntaxError, ValueError):
        raise AppError(f"{expression!r} in {text!r} is neither an attribute nor a call with literals; "
                       f"an app is {FORMS}") from None  # fmt: skip
    found = module
    for name in path.split("."):
        if not hasattr(found, name):
            raise AppError(f"{_a(found)} has no attribute {name!r}, wanted for the app {text!r}")
        found = getattr(found, name)
    if call is None:
        return found
    if not callable(found):
        raise AppError(f"{path} in {text!r} is {_a(found)}, not a function that makes an app")
    try:
        return found(*args, **kwargs)
    except (Exception, SystemExit) as error:  # the app's own code again
        raise AppError(_raised(text, "while its factory ran")) from error


def _a(thing: object) -> str:
    kind = type(thing).__name__
    return f"module {thing.__name__}" if kind == "module" else f"an object of type {kind!r}"  # type: ignore[attr-defined]


def _raised(text: str, when: str) -> str:
    """The traceback without our own frames and importlib's."""
    kind, error, trace = sys.exc_info()
    while trace and (
        trace.tb_frame.f_code.co_filename == __file__ or "importlib" in trace.tb_frame.f_code.co_filename
    ):
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(kind, error, trace))
    return f"the app {text!r} raised {when}:\n{lines[-TRACEBACK_MAX_CHARS:].rstrip()}"

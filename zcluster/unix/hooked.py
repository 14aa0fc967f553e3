"""The operator's hooks: finding the class, and calling what it defines.

Invariant: whatever a hook does short of ending its process, whoever calls it goes on: `run` logs what it raised. Only
`must_run` passes it on, as an AppError.
"""

import difflib
import importlib
import inspect
import logging
import traceback
from typing import Any

from zcluster.errors import AppError
from zcluster.hooks import IN_WORKER, NOT_OURS, OF_CLUSTER, Hooks
from zcluster.unix.application import TRACEBACK_MAX_CHARS

log = logging.getLogger("zcluster.hooks")

_NEAR = 0.8  # how alike a name has to be to count as a slip; "on_exited" is one, "exit_code" is none


def find_hooks(text: str) -> type:
    """Import `MODULE:CLASS`; raises AppError when it is not there, or has hooks that are none or cannot be called."""
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:  # the operator's own code: whatever it raises is told, not swallowed
        raise AppError(_raised(text, "cannot be loaded", error)) from error
    if not isinstance(found, type):
        raise AppError(f"the hooks {text!r} are {found!r:.100}, but should be a class, as zcluster.Hooks")
    for name in dir(found):
        if not name.startswith("_") and callable(getattr(found, name)):
            _check(text, found, name)
    return found


def _check(text: str, found: type, name: str) -> None:
    if name in NOT_OURS:
        raise AppError(f"the hooks {text!r} have {name}(), which is not offered: {NOT_OURS[name]}")
    names = (*IN_WORKER, *OF_CLUSTER)
    if name in names:
        wanted = inspect.signature(getattr(Hooks, name))
        try:
            inspect.signature(getattr(found, name)).bind(*wanted.parameters)
        except TypeError:
            given = ", ".join(wanted.parameters)
            raise AppError(f"{name}() of the hooks {text!r} cannot be called: it is given ({given})") from None
    elif near := difflib.get_close_matches(name, names, n=1, cutoff=_NEAR):
        raise AppError(f"the hooks {text!r} have {name}(), which nobody calls; did you mean {near[0]}()?")


class Hooked:
    """An object of the operator's class, and those of its hooks that it defines. One thread at a time."""

    def __init__(self, text: str) -> None:
        """Find and make it; raises AppError. An empty text: there are none."""
        self._text = text
        self._given: Any = None
        if text:
            kind = find_hooks(text)
            try:
                self._given = kind()
            except (Exception, SystemExit) as error:  # the operator's own code again
                raise AppError(_raised(text, "raised when they were made", error)) from error

    def has(self, name: str) -> bool:
        """Whether this hook does anything."""
        found = getattr(type(self._given), name, None)
        return found is not None and found is not getattr(Hooks, name)

    def run(self, name: str, *arguments: object) -> None:
        """Call a hook, if it is defined; what it raises is logged."""
        try:
            self._call(name, arguments)
        except (Exception, SystemExit):
            log.exception("the hook %s() of %s raised", name, self._text)

    def must_run(self, name: str, *arguments: object) -> None:
        """The same, but raises AppError for what it raises."""
        try:
            self._call(name, arguments)
        except (Exception, SystemExit) as error:
            raise AppError(_raised(self._text, f"raised in {name}()", error)) from error

    def _call(self, name: str, arguments: tuple[object, ...]) -> None:
        if self.has(name):
            getattr(self._given, name)(*arguments)


def _raised(text: str, what: str, error: BaseException) -> str:
    """The traceback, without our own frames and importlib's."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename in (__file__, importlib.__file__):
        trace = trace.tb_next
    while trace and trace.tb_frame.f_code.co_filename.startswith("<frozen importlib"):
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace))[-TRACEBACK_MAX_CHARS:].rstrip()
    return f"the hooks {text!r} {what}:\n{lines.encode(errors='backslashreplace').decode()}"

"""Calling the user's functions when something happens, without letting them hold up anything of ours.

Invariant: callbacks run one after the other, in the order of what happened, in a thread of their own; one that raises
is logged and costs the others nothing. The thread that hears the news never waits for them.
"""

import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger("zcluster.handle")

# A callback that hangs while every worker of a large cluster dies and comes back some forty times.
WAITING_MAX: Final = 10_000
END_TIMEOUT_S: Final = 5.0  # what callbacks that are still running or waiting get when the handle is closed

Callback = Callable[..., object]


class Letter:
    """A message as it came, decoded when the first callback reads it: that is the callbacks' time, not the bus's."""

    __slots__ = ("_decode", "_error", "_payload", "size_bytes")

    def __init__(self, decode: Callable[[], Any], size_bytes: int = 0) -> None:
        self._decode: Callable[[], Any] | None = decode  # called once: it gives the mailbox its room back
        self._error: Exception | None = None
        self._payload: Any = None
        self.size_bytes = size_bytes

    def read(self) -> Any:
        """Return the payload; one thread at a time may read."""
        if self._decode is not None:
            decode, self._decode = self._decode, None
            try:
                self._payload = decode()
            except (ValueError, RecursionError, MemoryError) as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._payload

    def drop(self) -> None:
        """Nobody will read it: let the mailbox have its room back."""
        try:
            self.read()
        except (ValueError, RecursionError, MemoryError) as error:
            log.warning("a message that nobody read could not be decoded either: %s", error)


class Listener:
    """A function of the user's, called with as many of an event's arguments as it asks for, as in JavaScript.

    It asks for its positional parameters without a default: `lambda worker, kind="exit": ...` is given the worker
    alone. One with `*args` is given all; one that does not tell what it takes, as some built-in functions, the first.
    """

    __slots__ = ("_count", "fn")

    def __init__(self, fn: Callback) -> None:
        self.fn = fn
        self._count = _wanted(fn)

    def __call__(self, *arguments: object) -> object:
        """Call it and return its result; a Letter among the arguments is read."""
        given = arguments if self._count is None else arguments[: self._count]
        return self.fn(*(argument.read() if isinstance(argument, Letter) else argument for argument in given))

    def __repr__(self) -> str:
        return repr(self.fn)


def _wanted(fn: Callback) -> int | None:
    """How many arguments a function asks for; None: whatever there is."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):  # written in C, and silent about it
        return 1
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters)


def call(fn: Callback, *arguments: object) -> None:
    """Call a function of the user's; what it raises is logged, and no reason to lose the rest."""
    try:
        fn(*arguments)
    except (Exception, SystemExit):
        log.exception("a callback of the cluster raised: %r%r", fn, arguments)


class Callbacks:
    """A queue of calls and the thread that makes them, which begins with the first. Any thread may call any method.

    Events that wait are bounded here. Messages are not: the mailbox bounds those, by letting their senders wait.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._news = threading.Condition()  # guards what follows
        self._calls: deque[tuple[Callback, tuple[object, ...]]] = deque()
        self._events = 0  # of the calls that wait
        self._thread: threading.Thread | None = None
        self._closed = self._closed_inside = False  # inside: by a callback
        self.lost = 0  # calls dropped because too many waited

    def put(self, fn: Callback, *arguments: object) -> bool:
        """Have `fn(*arguments)` called; false when it was dropped: closed, or WAITING_MAX events wait already."""
        is_event = not any(isinstance(argument, Letter) for argument in arguments)
        with self._news:
            if self._closed:
                return False
            if is_event and self._events >= WAITING_MAX:
                self.lost += 1
                if self.lost == 1 or self.lost % 1000 == 0:
                    log.error(
                        "%d callbacks were dropped: %d wait behind one that does not return", self.lost, WAITING_MAX
                    )
                return False
            self._events += is_event
            self._calls.append((fn, arguments))
            self._news.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return True

    def is_over(self) -> bool:
        """Whether no call will be made any more, or only when whoever closes the handle has ended."""
        with self._news:
            waiting = self._calls and self._thread is not None and self._thread.is_alive()
            return self._closed and (self._closed_inside or not waiting)

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._calls:
                    if self._closed:
                        return
                    self._news.wait()
                fn, arguments = self._calls.popleft()
                self._events -= not any(isinstance(argument, Letter) for argument in arguments)
            call(fn, *arguments)

    def close(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Let what waits be called, for at most `timeout_s`, and end the thread. A callback may call this itself."""
        with self._news:
            self._closed, thread = True, self._thread
            self._closed_inside = threading.current_thread() is thread
            self._news.notify()
        if thread is None or self._closed_inside:
            return
        thread.join(timeout_s)
        if thread.is_alive():
            with self._news:
                given_up = len(self._calls)
                self._calls.clear()
            log.error(
                "a callback is still running %g s after the end of the cluster's handle; %d that wait are given up",
                timeout_s,
                given_up,
            )

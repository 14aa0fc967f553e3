"""Handing an app over to a launcher that runs for a handle: by name, or by fork.

An app that can be imported is handed over by name, and the launcher is exec'd. One that lives only in the memory of
the program (a function in a function, or in `__main__`) is handed over by fork: launcher and zygote are then copies
of the program, so the code cannot be reloaded.

Invariant: a forked launcher runs nothing of the program it was forked from but the app, neither writes to its files
nor talks on its connections, and ends without returning into its code.
"""

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from typing import Any

import msgspec

from zcluster import current
from zcluster.config import Config
from zcluster.core.messages import Boot, Size
from zcluster.unix import process
from zcluster.unix.channel import Channel, boot_of
from zcluster.unix.signals import forget_inherited

log = logging.getLogger("zcluster.handle")

App = Callable[..., Any]


def import_name(app: App) -> str:
    """Return MODULE:QUALNAME when a fresh interpreter with our sys.path would find this very app; else ""."""
    module_name, path = getattr(app, "__module__", None), getattr(app, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(path, str) or module_name == "__main__" or "<" in path:
        return ""
    found: Any = sys.modules.get(module_name)
    for name in path.split("."):
        found = getattr(found, name, None)
    top = module_name.partition(".")[0]
    spec = PathFinder.find_spec(top)
    known = getattr(sys.modules.get(top), "__file__", None)
    is_there = found is app and spec is not None and known is not None and spec.origin == known
    return f"{module_name}:{path}" if is_there else ""


def warn_of_threads() -> None:
    """Say, once per process, which threads the fork of a callable's launcher leaves behind."""
    others = [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]
    if others and not _warned:
        _warned.append(True)
        log.warning(
            "this program has threads (%s) while it forks a launcher for an app that cannot be imported; their locks "
            "stay locked in the workers. Move the app into a module to be safe",
            ", ".join(others),
        )


_warned: list[bool] = []


def forked_main(app: App, owner_fd: int) -> Callable[[int], int]:
    """Return what the forked launcher of an app in memory runs, with the number of its control socket.

    `owner_fd`: the pidfd of this program. Call it right before the fork.
    """
    numbers = [int(entry) for entry in os.listdir("/proc/self/fd")]

    def begin(control_fd: int) -> int:
        from zcluster.forhandle import serve_handle

        _leave_the_program(numbers)
        handle = Channel.of_fd(control_fd)
        boot = boot_of(handle.first_message(), "launcher")
        return serve_handle(boot, handle, owner_fd, _contained(zygote_begin))

    def zygote_begin(control_fd: int) -> int:
        from zcluster.bodies import worker, zygote

        _plug(numbers)
        return zygote.main(control_fd, worker.main, app=app)

    return _contained(begin)


def _contained(begin: Callable[[int], int]) -> Callable[[int], int]:
    """Return a function like `begin` from which nothing but an exit code comes out."""

    def contained(control_fd: int) -> int:
        try:
            return begin(control_fd)
        except SystemExit as leave:  # of the app, in a worker: what the interpreter makes of it at exit
            return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:  # whatever it is must not travel up the stack of the program we are a copy of
            traceback.print_exc()
            return 70
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()

    return contained


def _leave_the_program(numbers: Sequence[int]) -> None:
    """Give up what the fork copied and did not close: the program's output buffers, its role, its signal pipe."""
    forget_inherited()
    current.role = "none"
    _plug(numbers)
    _left.extend((sys.stdin, sys.stdout, sys.stderr))  # kept: what they have buffered is the program's to write
    sys.stdin = os.fdopen(0, "r", encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


_left: list[Any] = []


def _plug(numbers: Sequence[int]) -> None:
    """Point the descriptors that the program had open, and that were closed after the fork, at /dev/null.

    Its objects still know their numbers. If the number of its log file became that of our ledger, the app's next log
    line would be written into the ledger.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in numbers:
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(null, fd, inheritable=False)
    if null not in numbers:
        os.close(null)


def boot_for(config: Config, size: Size | None) -> Boot:
    """Return the first message to such a launcher: the options, and which process they come from."""
    own = os.getpid()
    return Boot(
        config=msgspec.Raw(msgspec.msgpack.encode(config)),
        run_dir="",
        urls=(),
        launcher_pid=own,
        launcher_start=process.start_time(own),
        size=size,
    )

"""The pid file (--pid FILE): where programs that know nothing of us look for the process to signal.

Invariant: it is replaced whole, never while the process that wrote it lives, and removed only by whom it names.

A number alone proves nothing: after a crash it may be another process by now, and in a container that is started
again it is our own. So a process counts as the one that was meant only if it is older than the file.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from zcluster.errors import SpawnError
from zcluster.unix import process

READ_BYTES: Final = 64  # a number and a line's end, and room for whatever else it turns out to be
# Between the two clocks of a file's time and a process's start; a number is not given out again within seconds.
CLOCK_SLACK_S: Final = 2.0
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class PidFile:
    """A pid file that names this process; owned by the launcher."""

    def __init__(self, path: str) -> None:
        """Write it. Raises `SpawnError`: it names a living process, or cannot be written."""
        self.path = Path(path).absolute()
        if self.path.exists() and not self.path.is_file():  # root could replace /dev/null, and would wait for a FIFO
            raise SpawnError(f"the pid file {self.path} is there and is no regular file; give another with --pid")
        holder = _holder(self.path)
        if holder:
            raise SpawnError(
                f"the pid file {self.path} names process {holder}, which runs; stop that, or give another with --pid"
            )
        draft = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w") as file:
                file.write(f"{os.getpid()}\n")
                os.fchmod(fd, 0o644)  # whatever the umask: others are to read it
            draft.rename(self.path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise SpawnError(
                f"cannot write the pid file {self.path}: {error.strerror}; its directory must be writable"
            ) from error

    def give_to(self, uid: int, gid: int) -> None:
        """Make it this user's, who is to remove it in the end."""
        os.chown(self.path, uid, gid, follow_symlinks=False)

    def remove(self) -> None:
        """Remove it, or empty it where the directory is not ours to change; nothing if it names another process."""
        try:
            if _number(self.path) == os.getpid():
                self.path.unlink()
        except PermissionError:
            with suppress(OSError):
                os.truncate(self.path, 0)
        except OSError:  # somebody has removed it: what we wanted
            pass


def _number(path: Path) -> int:
    with path.open("rb") as file:
        text = file.read(READ_BYTES).strip()
    return int(text) if text.isdigit() and len(text) <= 10 else 0


def _holder(path: Path) -> int:
    """The process that wrote this file and still runs; 0 when there is none."""
    try:
        pid, written = _number(path), path.stat().st_mtime
    except OSError:  # there is none; or it cannot be read, and writing will say why
        return 0
    found = process.stat(pid) if pid not in (0, os.getpid()) else None
    if found is None or found.is_dead:
        return 0
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return pid if booted + found.start * _TICK_S <= written + CLOCK_SLACK_S else 0

"""The descriptor by which a link sees the end of its master (pidfd_open(2)).

Invariant: it is of the very process that was named, by its pid and start time, or there is none.
"""

import logging
import os
import select
from pathlib import Path

_log = logging.getLogger("zcluster.bus.link")


class MasterFd:
    """Used by the thread of its link, whose poller it is registered with. `fd` is -1 while nobody is watched."""

    def __init__(self, poller: select.poll) -> None:
        self.fd = -1
        self._poller = poller
        self._master: tuple[int, int] | None = None

    def watch(self, pid: int, start: int) -> bool:
        """Watch this process; false when it does not exist (any more)."""
        if self._master == (pid, start):
            return True
        self.close()
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:  # no fd left: the silence of PUB will still tell, only later
            _log.warning("cannot watch the master (process %d): %s; raise the limit of open files", pid, error)
            return True
        if _start_time(pid) != start:  # after the open: the number cannot be re-used while the fd is held
            os.close(fd)
            return False
        self._master, self.fd = (pid, start), fd
        self._poller.register(fd, select.POLLIN)
        return True

    def close(self) -> None:
        """Watch nobody."""
        if self.fd >= 0:
            self._poller.unregister(self.fd)
            os.close(self.fd)
        self._master, self.fd = None, -1


def _start_time(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot (field 22 of proc(5) stat), None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[19])  # the name before it may contain anything

"""What systemd is told (sd_notify(3)): ready, reloading, stopping, how it stands, and that all is well.

Theory of operation. The launcher says once a turn how things stand, and what has changed since is sent. READY=1 goes
out when all workers are ready; RELOADING=1 when a reload begins and READY=1 again when it has ended, well or not: the
log tells. WATCHDOG=1 means that the launcher runs *and* that the cluster has a master, or had one a moment ago. The
launcher replaces a hung master, which disturbs nobody, while a restart by systemd ends every request: the watchdog is
for what a launcher cannot mend, itself and masters that do not come up again and again.

Invariant: nothing here waits or fails: a datagram that the manager does not take now is lost, or sent next turn.
"""

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

STATUS_MAX_CHARS: Final = 300  # one line of `systemctl status`
RETRY_S: Final = 0.2  # the queue of a manager that is busy: net.unix.max_dgram_qlen is 10


class Notify:
    """One launcher's line to the service manager; without an address it says nothing."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """`watchdog_s`: the period in which the manager wants to hear from us, 0: it does not."""
        self._address = b"\0" + address[1:].encode() if address.startswith("@") else address.encode()
        self._sock: socket.socket | None = None
        if address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        self._half_s = watchdog_s / 2
        self._state, self._status = "", ""
        self._retry_at = float("inf")
        self._beat_at = 0.0 if address and watchdog_s else float("inf")

    @classmethod
    def of(cls, environ: MutableMapping[str, str], *, is_ours: bool = True) -> "Notify":
        """Take the manager's address out of the environment: no worker may speak for the service.

        `is_ours` False: the service is a program that has started us, and speaks for itself.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if not is_ours or address[:1] not in ("/", "@"):  # the third kind, vsock, is between machines
            return cls()
        is_watched = period.isdecimal() and pid in ("", str(os.getpid()))
        return cls(address, int(period) / 1e6 if is_watched else 0.0)

    @property
    def due(self) -> float:
        """When `update` has something to send although nothing changes, in monotonic seconds."""
        return min(self._beat_at, self._retry_at)

    def update(self, now: float, state: str, status: str, stop_s: float | None, *, well: bool) -> None:
        """Say how things stand. `state`: "" (starting), "ready" or "reloading"; `status`: one line.

        `stop_s`: a stop is to end within that time; None: there is none. `well`: a restart would mend nothing.
        """
        if self._sock is None:
            return
        if stop_s is not None:
            state = "stopping"
        lines = self._change(state, stop_s) if state != self._state else []
        if status != self._status:
            lines.append(f"STATUS={status[:STATUS_MAX_CHARS]}")
        if now >= self._beat_at and well:
            lines.append("WATCHDOG=1")
        self._retry_at = float("inf")
        if lines and not self._send("\n".join(lines)):
            self._retry_at = now + RETRY_S
        elif lines:
            self._state, self._status = state, status
        if now >= self._beat_at:
            self._beat_at = now + self._half_s

    def _change(self, state: str, stop_s: float | None) -> list[str]:
        if stop_s is not None:
            # A unit written by hand may allow a stop less time than --graceful-timeout does.
            return ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(max(0.0, stop_s) * 1e6)}"]
        if state == "reloading":
            return ["RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"]
        return ["READY=1", f"MAINPID={os.getpid()}"] if state == "ready" else []

    def _send(self, text: str) -> bool:
        assert self._sock is not None
        try:
            self._sock.sendto(text.encode(errors="replace"), self._address)
        except BlockingIOError:
            return False
        except OSError:  # the manager is gone, or is being executed anew: it will ask nobody again
            pass
        return True

    def close(self) -> None:
        """Say nothing any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

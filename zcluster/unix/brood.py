"""The children of a launcher that have a control socket: zygotes by generation, services by kind.

Invariant: a zygote that was told to leave is ended, whatever it does: by itself, or by SIGKILL a few seconds later.
"""

import signal
from dataclasses import dataclass, field

from zcluster.unix import process
from zcluster.unix.offspring import Child


@dataclass
class Brood:
    """Used by the launcher's thread."""

    zygotes: dict[int, Child] = field(default_factory=dict)
    services: dict[str, Child] = field(default_factory=dict)
    _leaving: dict[int, tuple[int, float]] = field(default_factory=dict)  # zygotes by pid: start, when to kill it

    def is_writer(self, pid: int) -> bool:
        """Whether this is the service that saves the counts."""
        writer = self.services.get("checkpoint")
        return writer is not None and writer.pid == pid

    def let_go(self, generation: int, deadline: float) -> None:
        """Close a zygote's control socket: when the master has closed its own, too, it leaves. Its death is told."""
        zygote = self.zygotes.pop(generation, None)
        if zygote is not None:
            zygote.channel.close()
            self._leaving[zygote.pid] = (zygote.start, deadline)

    def hurry(self, now: float) -> None:
        """Kill those that should have left by now."""
        for pid, (start, deadline) in self._leaving.items():
            if now >= deadline:
                process.send_signal(pid, start, signal.SIGKILL)

    def forget(self, pid: int) -> None:
        """A child has died; nothing happens for a worker or a stranger."""
        self._leaving.pop(pid, None)
        for generation, zygote in list(self.zygotes.items()):
            if zygote.pid == pid:
                zygote.channel.close()
                del self.zygotes[generation]
        for kind, service in list(self.services.items()):
            if service.pid == pid:
                service.channel.close()
                del self.services[kind]

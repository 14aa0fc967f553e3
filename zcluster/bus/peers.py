"""Who speaks on which link of the bus, as far as this master knows.

Invariant: a link belongs to the process that said Hello on it (attested by the kernel), and a worker has one link.
"""

from dataclasses import dataclass

# Handles and command lines come and go; one entry is some 300 bytes. The oldest that is no worker's is forgotten, and
# has to say Hello again, should it still be there.
PEERS_MAX = 10_000


@dataclass
class Peer:
    """One link."""

    pid: int
    worker: int = 0  # its id; 0: a handle or the command line


class Peers:
    """Used by the master's thread."""

    def __init__(self) -> None:
        self._peers: dict[bytes, Peer] = {}
        self._links: dict[int, bytes] = {}

    def find(self, link: bytes, pid: int) -> Peer | None:
        """The peer on this link, if it is this process."""
        peer = self._peers.get(link)
        return peer if peer is not None and peer.pid == pid else None

    def add(self, link: bytes, pid: int) -> None:
        """A process said Hello on a new link."""
        if len(self._peers) >= PEERS_MAX:
            oldest = next((link for link, peer in self._peers.items() if not peer.worker), None)
            if oldest is not None:
                del self._peers[oldest]
        self._peers[link] = Peer(pid)

    def bind(self, link: bytes, worker: int) -> None:
        """This link is this worker's; one it had before is nobody's."""
        before = self._links.get(worker)
        if before is not None and before != link:
            self._peers.pop(before, None)
        self._links[worker] = link
        self._peers[link].worker = worker

    def link_of(self, worker: int) -> bytes:
        """Where to send; empty (which nobody has) when the worker is not on the bus."""
        return self._links.get(worker, b"")

    def forget(self, worker: int) -> None:
        """The worker is dead."""
        self._peers.pop(self._links.pop(worker, b""), None)

"""Who speaks on which link of the bus, as far as this master knows.

Invariant: a link belongs to the process that said Hello on it (attested by the kernel), and a worker has one link.
"""

from dataclasses import dataclass

# Command lines come and go; one entry is some 300 bytes. The oldest is forgotten, and has to say Hello again, should
# it still be there. Never one with a mailbox: it may only listen, and would not find out. `Relay` bounds those.
PEERS_MAX = 10_000


@dataclass
class Peer:
    """One link."""

    pid: int
    worker: int = 0  # its id; 0: a handle or the command line
    mailbox: str = ""  # the name it receives mail under; empty: none


class Peers:
    """Used by the master's thread."""

    def __init__(self) -> None:
        self._peers: dict[bytes, Peer] = {}
        self._links: dict[int, bytes] = {}
        self._names: dict[str, bytes] = {}  # mailbox -> link

    def find(self, link: bytes, pid: int) -> Peer | None:
        """The peer on this link, if it is this process."""
        peer = self._peers.get(link)
        return peer if peer is not None and peer.pid == pid else None

    def add(self, link: bytes, pid: int) -> None:
        """A process said Hello on a new link."""
        if len(self._peers) >= PEERS_MAX:
            oldest = next((link for link, peer in self._peers.items() if not (peer.worker or peer.mailbox)), None)
            if oldest is not None:
                self._remove(oldest)
        self._peers[link] = Peer(pid)

    def bind(self, link: bytes, worker: int) -> None:
        """This link is this worker's; one it had before is nobody's."""
        before = self._links.get(worker)
        if before is not None and before != link:
            self._remove(before)
        self._links[worker] = link
        self._peers[link].worker = worker

    def link_of(self, worker: int) -> bytes:
        """Where to send; empty (which nobody has) when the worker is not on the bus."""
        return self._links.get(worker, b"")

    def name(self, link: bytes, mailbox: str) -> None:
        """Mail for this name goes to this link from now on."""
        before = self._names.get(mailbox)
        if before is not None and before != link and not self._peers[before].worker:
            self._remove(before)
        self._names[mailbox] = link
        self._peers[link].mailbox = mailbox

    def named(self, mailbox: str) -> bytes:
        """Where to send mail for this name; empty when nobody on the bus has it."""
        return self._names.get(mailbox, b"")

    def leave(self, mailbox: str) -> None:
        """Whoever had this name has left."""
        self._remove(self._names.get(mailbox, b""))

    def forget(self, worker: int) -> None:
        """The worker is dead."""
        self._remove(self._links.pop(worker, b""))

    def _remove(self, link: bytes) -> None:
        peer = self._peers.pop(link, None)
        if peer is not None and self._names.get(peer.mailbox) == link:
            del self._names[peer.mailbox]

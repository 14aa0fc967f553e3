"""The master's end of the simulated bus: `bus.hub` and `bus.relay`, on wires.

Invariant: as there, nothing is kept for a receiver but by `core.topics.Ring`: what cannot be sent now is dropped, and
whoever sends is told so.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from zcluster.bus.peers import Peers
from zcluster.core import messages as m
from zcluster.core.mail import MASTER, MEMBERS, TOPICS, Got, Mail, Members, Missing, Publication
from zcluster.core.streams import WINDOW_PIECES
from zcluster.core.topics import Ring
from zcluster.testing.sim_world import World

if TYPE_CHECKING:
    from zcluster.testing.sim_peer import Conn

JOINING_S: Final = 5.0  # of a new master: what is published is kept for those who join


class Bus:
    """The sockets of one master, and what it carries for others."""

    def __init__(self, world: World, epoch: int) -> None:
        self.world, self.epoch = world, epoch
        self.peers, self.ring = Peers(), Ring()
        self.conns: dict[bytes, Conn] = {}
        self.heads: dict[str, int] = {}
        self.handles: dict[str, bool] = {}
        self.members = Members(epoch, 0, {}, {}, 0)
        self._publishers: dict[str, tuple[int, int, int]] = {}
        self._owed: dict[str, None] = {}
        self._keep_until = world.now + JOINING_S

    # ---- sending ---------------------------------------------------------------------------------------------------
    def send(self, link: bytes, message: m.Message) -> bool:
        """To one link; false when it is not connected, or its queue is full."""
        conn = self.conns.get(link)
        return conn is not None and conn.down.send(("ctl", conn, message))

    def publish(self, topic: str, make: Callable[[int], m.Message]) -> None:
        """Number it and tell everybody who listens."""
        number = self.heads[topic] = self.heads.get(topic, 0) + 1
        message = make(number)
        for conn in self.conns.values():
            if conn.subscribed and (topic in conn.topics or topic == m.TICK):
                conn.pub.send(("pub", conn, message))

    def probe(self, conn: "Conn") -> None:
        """Prove a link its SUB."""
        if conn.subscribed:
            conn.pub.send(("pub", conn, m.Probe(conn.link)))

    def close(self, grace_s: float) -> None:
        """The master is dead; what arrives within so many seconds still does."""
        for conn in list(self.conns.values()):
            conn.close(grace_s)
        self.conns.clear()

    # ---- who is there ----------------------------------------------------------------------------------------------
    def name(self, link: bytes, hello: m.Hello) -> None:
        """A peer that was admitted may have a mailbox."""
        peer = self.peers.find(link, hello.pid)
        if peer is None or peer.mailbox or (hello.worker is not None and not peer.worker):
            return
        if hello.role == "handle":
            if hello.pid not in self.world.peers:
                return
            self.handles[hello.mailbox] = hello.owner
        self.peers.name(link, hello.mailbox)

    def left(self, mailbox: str) -> None:
        """A handle has ended."""
        self.handles.pop(mailbox, None)
        self.peers.leave(mailbox)
        self.forget(mailbox)

    def forget(self, mailbox: str) -> None:
        """Whoever had this name publishes no more."""
        self._publishers.pop(mailbox, None)
        self._owed.pop(mailbox, None)

    def who(self, workers: dict[int, tuple[int, bool]], next_id: int) -> Members:
        """Everybody who is there; published when that has changed."""
        seen = self.members
        if (workers, self.handles, next_id) != (seen.workers, seen.handles, seen.next_id):

            def make(number: int) -> Members:
                self.members = Members(self.epoch, number, workers, dict(self.handles), next_id)
                return self.members

            self.publish(MEMBERS, make)
        return self.members

    # ---- mail ------------------------------------------------------------------------------------------------------
    def carry(self, conn: "Conn", message: Any) -> None:
        """Mail, and what belongs to it."""
        peer = self.peers.find(conn.link, conn.pid)
        if peer is None or not peer.mailbox:
            return
        if isinstance(message, Missing):
            self._replay(conn, message)
        elif isinstance(message, Mail) and message.to == MASTER:
            self._publication(message)
        else:
            self.send(self.peers.named(message.to), message)

    def _replay(self, conn: "Conn", asked: Missing) -> None:
        if 0 < asked.first <= asked.last <= self.heads.get(TOPICS, 0):
            again, last_word = self.ring.replay(asked)
            if all(self.send(conn.link, publication) for publication in again):
                self.send(conn.link, last_word)

    def _publication(self, mail: Mail) -> None:
        stream, upto, part = self._publishers.get(mail.sender, (0, 0, 0))
        if mail.stream < max(stream, 1):
            return
        if mail.stream > stream:
            stream, upto, part = mail.stream, 0, 0
            self._publishers[mail.sender] = (stream, upto, part)
        self._owed[mail.sender] = None
        if mail.number != upto + 1:
            return

        def make(number: int) -> Publication:
            publication = Publication(
                self.epoch, number, mail.sender, mail.serial, mail.topic, mail.body, part, mail.more, mail.reliable,
                mail.at,
            )  # fmt: skip
            self.ring.put(publication, keep=self.world.now < self._keep_until)
            return publication

        self.publish(TOPICS, make)
        self._publishers[mail.sender] = (stream, upto + 1, part + 1 if mail.more else 0)

    def acknowledge(self) -> None:
        """Say what has been published, once per turn."""
        for name in self._owed:
            stream, upto, _ = self._publishers[name]
            self.send(self.peers.named(name), Got(MASTER, name, stream, upto, WINDOW_PIECES))
        self._owed.clear()

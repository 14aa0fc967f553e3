"""A simulated peer of the bus: `core.joining`, `core.outbox`, `core.post`, `core.streams` and `core.topics` on wires.

Invariant: as in `bus.link` and `bus.mailbox`, of which this is the shape without sockets and threads: what arrives is
taken first, then the time, then what is to be sent. What is received is handled at once, unless its owner is `full`.
"""

from typing import Any, Final

from zcluster.core import messages as m
from zcluster.core.codec import decode
from zcluster.core.joining import (
    Action,
    Deliver,
    Joined,
    Joining,
    Missed,
    Parted,
    Refreshed,
    SendHello,
    SendResync,
    Watch,
)
from zcluster.core.mail import MASTER, TOPICS, Got, Mail, Members, Publication, Replayed
from zcluster.core.outbox import Outbox
from zcluster.core.post import Post
from zcluster.core.streams import WINDOW_PIECES, Incoming, Parcel
from zcluster.core.topics import Subscriber
from zcluster.errors import BusError
from zcluster.testing.sim_master import Master
from zcluster.testing.sim_world import HEARTBEAT_S, Actor, Wire, World

CONNECT_S: Final = (0.001, 0.03)
RECONNECT_S: Final = (0.02, 0.05)
QUEUE_MAX: Final = 100  # frames on one wire: the high-water mark, in small


class Conn:
    """One connection of a link with a master: its three sockets."""

    def __init__(self, peer: "Peer", master: Master) -> None:
        world = peer.world
        self.link, self.pid, self.start = peer.link, peer.pid, peer.start
        self.master, self.peer = master, peer
        self.topics = peer.joining.topics
        self.subscribed = False
        self.up = Wire(world, "up", master.deliver)
        self.evt = Wire(world, "evt", master.deliver)
        self.down = Wire(world, "down", peer.deliver)
        self.pub = Wire(world, "pub", peer.deliver)

    def send(self, message: m.Message) -> bool:
        """From the peer to the master; false when the queue is full."""
        if self.up.on_way >= QUEUE_MAX:
            return False
        if self.peer.world.now >= self.peer.mute_until:
            self.up.send(("ctl", self, message))
        return True

    def close(self, grace_s: float = 0.0, linger_s: float = 0.0) -> None:
        """Both ends are closed; what arrives within so many seconds still does."""
        for wire in (self.down, self.pub, self.evt):
            wire.cut(grace_s)
        self.up.cut(max(grace_s, linger_s))
        if self.master.bus.conns.get(self.link) is self and not linger_s:
            del self.master.bus.conns[self.link]
        if self.peer.conn is self:
            self.peer.conn = None


class Peer(Actor):
    """A process on the bus: a link and a mailbox."""

    role = "handle"

    def __init__(self, world: World, name: str, mailbox: str, topics: tuple[str, ...]) -> None:
        super().__init__(world, name)
        self.mailbox = mailbox
        self.conn: Conn | None = None
        self.connecting = b""
        self.link = b""
        self.watched: tuple[int, int] | None = None
        self.joining = Joining(topics=topics, heartbeat_s=HEARTBEAT_S)
        self.outbox, self.post, self.subscriber = Outbox(), Post(mailbox), Subscriber()
        self.incoming: dict[str, Incoming] = {}
        self.owed: dict[str, None] = {}
        self.starved: dict[str, None] = {}
        self.full = False
        self.mute_until = 0.0  # half-open: until then, what it sends goes nowhere, on whatever connection
        self.epoch = self.serial = self.tickets = self.links = 0
        self.joined_at = float("inf")  # for the first time
        self.delivered: list[Any] = []
        self.beat_due = 0.0
        self._room_at = float("inf")

    # ---- the link --------------------------------------------------------------------------------------------------
    def open(self) -> None:
        """Be on the bus from now on."""
        self.world.peers[self.pid] = self
        self._perform(self._new_link())

    def _new_link(self) -> list[Action]:
        self.links += 1
        self.link = b"\x01%07d%08d" % (self.pid, self.links)
        self.connect_soon(self.world.random.uniform(*CONNECT_S))
        return self.joining.opened(self.link, self.world.now)

    def connect_soon(self, delay_s: float) -> None:
        """Have the library try to connect."""
        self.connecting = self.link
        self.world.after(delay_s, self._connect, self.link)

    def _connect(self, link: object) -> None:
        if link != self.connecting:
            return
        self.connecting = b""
        master = self.world.master
        if not self.alive or self.frozen or master is None or master.frozen or not master.bound:
            return  # the world tries again when one of the two goes on
        conn = self.conn = master.bus.conns[self.link] = Conn(self, master)
        self.world.after(self.world.random.uniform(0.0, 0.003), self._subscribed, conn)
        self.deliver(("writable",))

    def _subscribed(self, conn: Any) -> None:
        conn.subscribed = conn is self.conn

    def cut(self) -> None:
        """The connection breaks, and is made again under the same name by the library."""
        if self.conn is not None:
            self.world.note(self.name, "loses its connection")
            self.conn.close()
            self.connect_soon(self.world.random.uniform(*RECONNECT_S))

    def close(self, linger_s: float = 0.0) -> None:
        """The process ends."""
        if self.conn is not None:
            self.conn.close(linger_s=linger_s)
        self.connecting = b""

    def ended(self, code: int | None, signal: int | None) -> None:
        """It is no more, and no child of the launcher: its master has a pidfd of it."""
        self.close()
        self.world.peers.pop(self.pid, None)
        self.world.witness.peer_ended(self)
        if self.world.master is not None:
            self.world.after(0.001, self.world.master.deliver, ("gone", self.mailbox))

    def hello(self) -> m.Hello:
        """What it says of itself."""
        return m.Hello(self.link, "handle", self.pid, None, self.mailbox, True)

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Deliver(message):
                    self.delivered.append(message)
                case SendHello():
                    if self.conn is None or not self.conn.send(self.hello()):
                        self.joining.blocked()
                case SendResync():
                    if self.conn is not None:
                        self.conn.send(m.Resync())
                case Watch(pid, start):
                    if not isinstance(self.world.process(pid, start), Master):
                        self._perform(self.joining.master_gone(self.world.now))
                        return
                    self.watched = (pid, start)
                case Joined():
                    self.outbox.rewind()
                    self.delivered.append(action)
                case Refreshed() | Missed():
                    self.delivered.append(action)
                case Parted(reason):
                    self.world.note(self.name, "parts:", reason)
                    self.delivered.append(action)
                    if self.conn is not None:
                        self.conn.close()
                    self.watched = None
                    self._perform(self._new_link())
                    return

    # ---- one turn --------------------------------------------------------------------------------------------------
    def due(self) -> float:
        """The first of all that waits."""
        due = min(self.joining.deadline, self._room_at, self.post.due, self.beat_due)
        return min(due, self.subscriber.due) if self.joining.joined and not self.full else due

    def turn(self, items: list[Any]) -> None:
        """As `Link.poll` and those around it."""
        now = self.world.now
        for item in items:
            self._take(item, now)
        if not self.link or not self.alive:
            return
        self._perform(self.joining.tick(now))
        self.outbox.repeat(now)
        delivered, self.delivered = self.delivered, []
        for message in delivered:
            self._mail(message, now)
            self.on_delivered(message)
        self.periodic(now)
        if self.alive:
            self._pump(now)

    def _take(self, item: tuple[Any, ...], now: float) -> None:
        match item[0]:
            case "ctl" | "pub":
                if item[1] is not self.conn:
                    return
                message = item[2]
                if item[0] == "pub":
                    self._perform(self.joining.pub(message, now))
                elif not isinstance(message, m.Answer) or self.outbox.answered(message.number):
                    self._perform(self.joining.ctl(message, now))
            case "writable":
                self._perform(self.joining.writable(now))
            case "master gone":
                if self.watched is not None and self.watched[0] == item[1]:
                    self.watched = None
                    self._perform(self.joining.master_gone(now))
            case _:
                self.on_other(item)

    def on_delivered(self, message: Any) -> None:
        """Something that is not mail."""

    def on_other(self, item: tuple[Any, ...]) -> None:
        """Something that does not come by the bus."""

    def periodic(self, now: float) -> None:
        """What the time has come for."""
        if now >= self.beat_due:
            self.beat_due = now + HEARTBEAT_S

    # ---- the mailbox -----------------------------------------------------------------------------------------------
    def send(self, to: str, *, size: int = 0, topic: str = "", reliable: bool = False) -> None:
        """Send a message, or publish one."""
        publishes = to == MASTER
        serial = self.serial + 1 if publishes else 0
        self.tickets += 1
        body = self.world.witness.body(self, to, size)
        kind: Any = "publish" if publishes else "message"
        parcel = Parcel(kind, body, self.tickets, 0, topic, reliable, serial)
        try:
            copies = self.post.put(to, parcel, self.world.now)
        except BusError:  # ended, or no room: said at once
            return
        self.serial = serial or self.serial
        self.world.witness.sent(self, self.tickets, to, body, copies, serial if reliable else 0)

    def publish_once(self) -> None:
        """The last word: whatever was missed before it shows now."""
        self.send(MASTER, topic="news", reliable=True)
        self.begin()

    def _mail(self, item: Any, now: float) -> None:
        match item:
            case Mail():
                if item.to == self.mailbox and self.post.is_there(item.sender) is not False:
                    self._receive(item)
            case Got():
                self.world.witness.received(self, self.post.got(item, now))
            case Publication():
                if self.full and not self.subscriber.expects(item):
                    self.subscriber.heads(item.epoch, item.number)
                else:
                    self.world.witness.published(self, self.subscriber.take(item))
            case Replayed():
                self.world.witness.published(self, self.subscriber.replayed(item))
            case Members():
                self._learn(item, now)
            case Joined(snapshot=snapshot):
                self.post.linked(now, new_master=self.epoch not in (0, snapshot.epoch))
                if snapshot.epoch != self.epoch:
                    self.world.witness.repeats[self.mailbox] = now
                self.epoch = snapshot.epoch
                self.joined_at = min(self.joined_at, now)
                self.subscriber.joined(snapshot.epoch, snapshot.heads.get(TOPICS, 0), now)
                self.world.note(self.name, "has joined", f"epoch {self.epoch}")
                if snapshot.members is not None:
                    self._learn(snapshot.members, now)
            case Refreshed(snapshot=snapshot) if snapshot.members is not None:
                self._learn(snapshot.members, now)
            case m.Tick(epoch=epoch, heads=heads):
                self.subscriber.heads(epoch, heads.get(TOPICS, 0))
            case m.Totals():
                self.world.witness.told_totals(self, item)

    def _receive(self, mail: Mail) -> None:
        incoming = self.incoming.setdefault(mail.sender, Incoming())
        if not incoming.meet(mail):
            return
        self.owed[mail.sender] = None
        if self.full:
            self.starved[mail.sender] = None
            return
        body = incoming.take(mail)
        if body is not None:
            self.world.witness.delivered(self, mail.sender, body)

    def _learn(self, members: Members, now: float) -> None:
        self.post.learn(members, now)
        self._give_up()
        for name in [name for name in self.incoming if self.post.is_there(name) is False]:
            del self.incoming[name]
            self.owed.pop(name, None)
            self.starved.pop(name, None)

    def _give_up(self) -> None:
        failed, self.post.failed = self.post.failed, []
        spread, self.post.spread = self.post.spread, []
        self.world.witness.given_up(self, failed, spread)

    def _pump(self, now: float) -> None:
        self._room_at = float("inf")
        conn = self.conn
        if not self.joining.joined:
            self.post.parted()
            return
        while (frame := self.outbox.head()) is not None and conn is not None and conn.send(decode(frame)):
            self.outbox.sent()
        if now >= self.post.due:
            self.post.expire(now)
            self._give_up()
        for stream, mail in self.post.pieces():
            if conn is None or not conn.send(mail):
                self._room_at = now + 0.01
                break
            stream.sent(now)
        if conn is not None:
            self._acknowledge(conn)
            missing = None if self.full else self.subscriber.ask(now)
            if missing is not None:
                conn.send(missing)

    def _acknowledge(self, conn: Conn) -> None:
        room = 0 if self.full else WINDOW_PIECES
        for name in list(self.owed | self.starved):
            if not room and name not in self.owed:
                continue
            incoming = self.incoming[name]
            if not conn.send(Got(self.mailbox, name, incoming.stream, incoming.upto, room)):
                return
            self.owed.pop(name, None)
            if room:
                self.starved.pop(name, None)
            else:
                self.starved[name] = None

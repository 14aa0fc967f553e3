"""Messages over a bus that loses, repeats and reorders, against two lists: what was sent and what has arrived."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zcluster.core.mail import PIECE_BYTES, Publication
from zcluster.core.streams import WINDOW_PIECES, Incoming, Outgoing, Parcel
from zcluster.core.topics import Lost, Ring, Subscriber


class StreamMachine(RuleBasedStateMachine):
    """One sender, one receiver, frames and acknowledgements in the air."""

    def __init__(self):
        super().__init__()
        self.out, self.incoming = Outgoing("a", "b", 1), Incoming()
        self.now = 1.0
        self.sent, self.arrived, self.settled = [], [], []
        self.frames, self.acks = [], []
        self.is_full = False

    @rule(pieces=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def put(self, pieces):
        """A message of some pieces."""
        self.out.put(Parcel("message", b"%d|" % len(self.sent) + bytes(pieces * PIECE_BYTES), ticket=len(self.sent)))
        self.sent.append(len(self.sent))

    @rule(most=st.integers(1, 40))
    def send(self, most):
        """The socket takes some of what may be sent."""
        while most and (mail := self.out.head()) is not None:
            self.frames.append(mail)
            self.out.sent(self.now)
            most -= 1

    @rule(how=st.sampled_from(["take", "take", "take", "lose", "repeat", "reorder"]), index=st.integers(0, 30))
    def frame(self, how, index):
        """A frame arrives, or not."""
        if not self.frames:
            return
        mail = self.frames[index % len(self.frames) if how in ("repeat", "reorder") else 0]
        if how != "repeat":
            self.frames.remove(mail)
        if how != "lose":
            self.receive(mail)

    def receive(self, mail):
        """As a mailbox does: what is refused for want of room is acknowledged all the same."""
        if not self.is_full:
            body = self.incoming.take(mail)
            if body is not None:
                self.arrived.append(int(body.split(b"|")[0]))
        self.acknowledge()

    def acknowledge(self):
        room = 0 if self.is_full else WINDOW_PIECES
        self.acks.append((self.incoming.stream or 1, self.incoming.upto, room))

    @rule(how=st.sampled_from(["take", "take", "lose", "reorder"]), index=st.integers(0, 30))
    def ack(self, how, index):
        """An acknowledgement arrives, or not."""
        if self.acks:
            said = self.acks.pop(index % len(self.acks) if how == "reorder" else 0)
            if how != "lose":
                self.settled += [parcel.ticket for parcel in self.out.got(*said, self.now)]

    @rule(seconds=st.sampled_from([0.01, 0.3, 3.0]))
    def time_passes(self, seconds):
        """Long enough for a question, or not."""
        self.now += seconds
        self.out.expire(self.now)

    @rule()
    def new_link(self):
        """What was on the way is lost."""
        self.frames, self.acks = [], []
        self.out.again(self.now)

    @rule()
    def full_or_not(self):
        """The receiver has no room, or has it again and says so."""
        self.is_full = not self.is_full
        if not self.is_full:
            self.acknowledge()

    @invariant()
    def in_order_and_once(self):
        """What has arrived is how what was sent begins; what is settled has arrived."""
        assert self.arrived == self.sent[: len(self.arrived)]
        assert self.settled == self.arrived[: len(self.settled)]
        assert len(self.out) == len(self.sent) - len(self.settled)

    def teardown(self):
        """Once nothing is lost any more, everything arrives."""
        self.is_full = False
        for _ in range(400):
            if len(self.out) == 0:
                break
            self.now += 0.5
            self.out.expire(self.now)
            self.send(100)
            frames, self.frames = self.frames, []
            for mail in frames:
                self.receive(mail)
            while self.acks:
                self.ack("take", 0)
        assert self.settled == self.arrived == self.sent


class PublicationMachine(RuleBasedStateMachine):
    """One master after another, several publishers, one subscriber that loses what it likes."""

    def __init__(self):
        super().__init__()
        self.subscriber, self.now, self.epoch = Subscriber(), 1.0, 1
        self.serials, self.published, self.had, self.lost = {}, [], [], 0
        self.restart(first=True)

    @initialize()
    def begin(self):
        """It follows from the beginning."""
        self.subscriber.joined(self.epoch, 0, self.now)

    def restart(self, *, first=False):
        self.epoch += not first
        self.ring, self.head, self.air = Ring(), 0, []

    @rule(sender=st.sampled_from("ab"), reliable=st.booleans(), pieces=st.integers(1, 3))
    def publish(self, sender, reliable, pieces):
        """A message, in pieces, numbered by the master."""
        serial = self.serials[sender] = self.serials.get(sender, 0) + 1
        for part in range(pieces):
            self.head += 1
            more = part < pieces - 1
            body = b"%d," % serial
            piece = Publication(self.epoch, self.head, sender, serial, "news", body, part, more, reliable)
            self.ring.put(piece)
            self.air.append(piece)
        self.published.append((sender, serial))

    @rule(how=st.sampled_from(["take", "take", "take", "lose", "repeat", "reorder"]), index=st.integers(0, 30))
    def arrives(self, how, index):
        """A piece arrives, or not."""
        if not self.air:
            return
        piece = self.air[index % len(self.air) if how in ("repeat", "reorder") else 0]
        if how != "repeat":
            self.air.remove(piece)
        if how != "lose":
            self.hear(self.subscriber.take(piece))

    def hear(self, news):
        for item in news:
            if isinstance(item, Lost):
                self.lost += item.count
            else:
                self.had.append((item.sender, int(item.body.split(b",")[0])))

    @rule(lost=st.booleans())
    def asks(self, lost):
        """It asks for what is missing, and is answered, or not."""
        self.now += 0.3
        self.subscriber.heads(self.epoch, self.head)
        missing = self.subscriber.ask(self.now)
        if missing is not None and not lost:
            again, last_word = self.ring.replay(missing)
            for piece in again:
                self.hear(self.subscriber.take(piece))
            self.hear(self.subscriber.replayed(last_word))

    @rule()
    def new_master(self):
        """A new count begins; what the old one had published and nobody has asked for is gone with it."""
        self.restart()
        self.subscriber.joined(self.epoch, self.head, self.now)

    @invariant()
    def in_order_and_once(self):
        """Each sender's messages come in order, none twice, none that was never published."""
        for sender in "ab":
            serials = [serial for its, serial in self.had if its == sender]
            assert serials == sorted(set(serials))
        assert set(self.had) <= set(self.published)

    def teardown(self):
        """Once nothing is lost any more, each message has come or is reported as lost."""
        for sender in sorted(self.serials):
            self.publish(sender, True, 1)
        while self.air:
            self.arrives("take", 0)
        for _ in range(30):
            self.asks(False)
        assert self.subscriber.upto == self.head
        heard = {sender for sender, _ in self.had}
        first = {sender: min(serial for its, serial in self.had if its == sender) for sender in heard}
        # What came before the first that was heard of a sender may have gone with a master: it cannot be known.
        due = {(sender, serial) for sender, serial in self.published if serial >= first.get(sender, serial)}
        assert len(due - set(self.had)) <= self.lost


TestStream = StreamMachine.TestCase
TestStream.settings = settings(max_examples=40, stateful_step_count=50)
TestPublication = PublicationMachine.TestCase
TestPublication.settings = settings(max_examples=40, stateful_step_count=50)

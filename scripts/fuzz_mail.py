"""A peer's side of the bus: mail, acknowledgements, publications and answers, all well-formed, none of them sensible.

What holds: nothing raises but what the caller of `put` is told, nothing is kept beyond its limit, and every parcel
that was put is returned at most once. The limits are made small, so that they are reached.
"""

import contextlib
import logging

import msgspec
from fuzz_inputs import BYTES, instance, of_hint, small

from zcluster.bus import reception
from zcluster.core import topics
from zcluster.core.codec import decode, encode
from zcluster.core.mail import MASTER, Got, Kind, Mail, Members, Publication, Replayed
from zcluster.core.outbox import QueueFull
from zcluster.core.post import HANDLES, Post
from zcluster.core.streams import Parcel
from zcluster.errors import PeerGone
from zcluster.subscriptions import Subscriptions

NAME = "worker:1"
TO = ("worker:2", "worker:3", "handle:1-a", "handle:1-b", HANDLES, MASTER)
KINDS = (Mail, Mail, Mail, Got, Got, Publication, Publication, Replayed, Members)
ACTS = ("pump", "linked", "new master", "parted", "expire", "leave", "acknowledge", "ask", "forget", "heads")
SMALL = (
    *((topics, "HELD_MAX", 4), (topics, "PARTIAL_MAX_BYTES", 2000), (topics, "SEEN_MAX", 4)),
    *((reception, "SENDERS_MAX", 4), (reception, "OPEN_MAX", 2), (reception, "INBOX_MAX_BYTES", 3000)),
)


class Pool:
    """Keeps jobs until they are run."""

    def __init__(self):
        self.jobs = []

    def put(self, key, job):
        self.jobs.append(job)
        return True

    def run(self):
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            # A payload that its sender has made itself; the real pool logs what a job raises.
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                job()


class Line:
    """A link that takes what it is given, as a frame."""

    def post(self, message):
        return bool(encode(message))


class Peer:
    """Of a mailbox, all but its thread."""

    def __init__(self):
        self.now, self.tickets, self.settled = 1.0, 0, {}
        self.post, self.pool, self.line = Post(NAME), Pool(), Line()
        subscriptions = Subscriptions()
        subscriptions.subscribe("t", lambda payload: payload)
        subscriptions.on("message", lambda *_: None)
        self.reception = reception.Reception(
            *(NAME, subscriptions, self.pool, self.reply, lambda: None),
            deliver=None,
            call=lambda function, sender, payload: function(sender, payload),
        )

    def reply(self, mail, kind, body):
        assert encode(Mail(NAME, mail.sender, 1, 1, kind, body, ref=mail.ref))

    # ---- steps -----------------------------------------------------------------------------------------------------
    def put(self, to, kind, size):
        self.tickets += 1
        with contextlib.suppress(PeerGone, QueueFull):
            self.post.put(to, Parcel(kind, b"x" * size, self.tickets, topic="t", reliable=size % 2 == 0), self.now)

    def hear(self, message):
        match message:
            case Mail():
                self.reception.take(message)
            case Got():
                for parcel in self.post.got(message, self.now):
                    self.settle(parcel)
            case Publication():
                self.reception.published(message)
            case Replayed():
                self.reception.hand_out(self.reception.subscriber.replayed(message))
            case Members():
                self.post.learn(message, self.now)

    def act(self, what, number):
        subscriber = self.reception.subscriber
        match what:
            case "pump":
                for count, (stream, mail) in enumerate(self.post.pieces()):
                    if count > number % 50:
                        break
                    encode(mail)
                    stream.sent(self.now)
            case "linked" | "new master":
                self.post.linked(self.now, new_master=what == "new master")
                subscriber.joined(1 + (what == "new master"), number, self.now)
            case "parted":
                self.post.parted()
            case "expire":
                self.now += 0.7
                self.post.expire(self.now)
                assert self.post.due > self.now or self.post.due == float("inf")
            case "leave":
                self.post.leave(self.now)
            case "acknowledge":
                self.pool.run()
                self.reception.acknowledge(self.line, self.now)
            case "ask":
                self.now += 0.3
                missing = subscriber.ask(self.now)
                assert missing is None or encode(missing)
            case "forget":
                self.reception.forget(lambda name: name.endswith("2"))
            case "heads":
                subscriber.heads(1, number)

    def settle(self, parcel):
        """At most as often as there were copies."""
        self.settled[parcel.ticket] = self.settled.get(parcel.ticket, 0) + 1

    def check(self):
        for parcel, reason in self.post.failed:
            assert reason
            self.settle(parcel)
        self.post.failed.clear()
        self.post.spread.clear()
        assert self.post.count >= 0
        assert self.post.bytes >= 0
        subscriber, incoming = self.reception.subscriber, self.reception._incoming
        assert len(subscriber._held) <= topics.HELD_MAX + topics.REPLAY_MAX, len(subscriber._held)
        assert 0 <= subscriber._partial_bytes <= topics.PARTIAL_MAX_BYTES
        assert sum(size for _, _, size in subscriber._partial.values()) == subscriber._partial_bytes
        assert len(subscriber._seen) <= topics.SEEN_MAX
        assert len(incoming) <= reception.SENDERS_MAX
        for names in (self.reception._owed, self.reception._patient, self.reception._starved, self.reception._open):
            assert names <= set(incoming), "an acknowledgement is owed to somebody who is forgotten"


class Mailing:
    """Well-formed messages in any order to a Post and a Reception."""

    name = "mail"

    def __enter__(self):
        self.before = [getattr(module, name) for module, name, _ in SMALL]
        for module, name, value in SMALL:
            setattr(module, name, value)
        self.level = logging.root.manager.disable
        logging.disable()  # that a function was given something odd, or that something was lost, is said each time
        return self

    def __exit__(self, *_):
        logging.disable(self.level)
        for (module, name, _), value in zip(SMALL, self.before, strict=True):
            setattr(module, name, value)

    def make(self, random):
        """Steps: a frame that comes in, (to, kind, bytes) that is sent, or (act, number)."""
        return [self._step(random) for _ in range(random.randrange(1, 60))]

    def _step(self, random):
        choice = random.random()
        if choice < 0.15:
            size = random.choice((0, 1, 100, 70_000, 200_000)) if random.random() < 0.3 else random.randrange(50)
            return random.choice(TO), of_hint(random, Kind), size
        if choice < 0.4:
            return random.choice(ACTS), small(random)
        kind = random.choice(KINDS)
        near = {"epoch": random.randrange(1, 3), "stream": random.randrange(1, 3), "sender": random.choice(TO)}
        near |= {"to": NAME, "serial": random.randrange(6), "part": random.randrange(2), "topic": "t"}
        near |= {"upto": random.randrange(5), "room": random.choice((0, 1, 32)), "first": random.randrange(8)}
        if kind is not Members:
            near["number"] = random.randrange(1, 8)
        if random.random() < 0.2:
            near["body"] = random.choice(BYTES)
        fixed = {name: value for name, value in near.items() if name in kind.__struct_fields__}
        fixed = {name: value for name, value in fixed.items() if random.random() < 0.93}
        return encode(instance(random, kind, **fixed))

    def run(self, steps):
        peer = Peer()
        for step in steps:
            if isinstance(step, bytes):
                peer.hear(decode(step))
            elif len(step) == 3:
                peer.put(*step)
            else:
                peer.act(*step)
            peer.check()
        peer.pool.run()
        peer.post.clear("the end")
        peer.check()
        assert (peer.post.count, peer.post.bytes) == (0, 0), "what was kept was not given back"

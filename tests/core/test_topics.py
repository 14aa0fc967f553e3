"""Publications: a subscriber has each once, in order, and says of those it has not that they are lost."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.core import topics as topics_module
from zcluster.core.mail import Missing, Publication, Replayed
from zcluster.core.topics import ASK_AGAIN_S, SETTLE_S, Lost, Published, Ring, Subscriber


@pytest.fixture(scope="module", autouse=True)
def small():
    """A memory and answers of a few frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topics_module, "REPLAY_MAX", 3)
        patch.setattr(topics_module, "HELD_MAX", 4)
        yield


class Sender:
    """Numbers its messages; keeps the reliable ones for the next master."""

    def __init__(self, name):
        self.name, self.serial, self.kept = name, 0, []


class World:
    """One subscriber, two senders, a master that may be replaced; pub loses frames, ctl only with its link."""

    def __init__(self):
        self.epoch, self.head, self.ring, self.now = 1, 0, Ring(), 1.0
        self.senders = [Sender("worker:1"), Sender("worker:2")]
        self.pub, self.ctl = deque(), deque()
        self.subscriber = Subscriber()
        self.all, self.reliable = [], set()  # messages since the subscriber follows
        self.got, self.lost = [], 0
        self.joined = False
        self.join(0)

    def number(self, sender, serial, topic, body, pieces, reliable, at=0.0):
        for part in range(pieces):
            self.head += 1
            more = part < pieces - 1
            text = body[part : part + 1] if more else body[part:]
            piece = Publication(self.epoch, self.head, sender, serial, topic, text, part, more, reliable, at)
            self.ring.put(piece)
            self.pub.append(piece)

    def publish(self, n):
        sender = self.senders[n % 2]
        sender.serial += 1
        reliable, pieces = n % 3 == 0, 1 + n % 4 // 2
        topic, body = f"t{n % 2}", f"{sender.name}/{sender.serial}".encode()
        self.all.append(body)
        if reliable:
            self.reliable.add(body)
            sender.kept.append((sender.serial, topic, body, pieces, self.now))
        self.number(sender.name, sender.serial, topic, body, pieces, reliable)

    def lose(self, n):
        for _ in range(min(n, len(self.pub))):
            self.pub.popleft()

    def hear(self, n):
        for _ in range(min(n, len(self.pub))):
            frame = self.pub.popleft()
            if self.joined:
                self.take(self.subscriber.take(frame))

    def tick(self, _n):
        if self.joined:
            self.hear(len(self.pub))
            self.subscriber.heads(self.epoch, self.head)

    def ask(self, _n):
        if not self.joined:
            return
        missing = self.subscriber.ask(self.now)
        if missing is not None:
            assert 0 < missing.first <= missing.last <= self.head
            again, last_word = self.ring.replay(missing)
            self.ctl += [*again, last_word]

    def answer(self, n):
        for _ in range(min(n, len(self.ctl))):
            frame = self.ctl.popleft()
            take = self.subscriber.take if isinstance(frame, Publication) else self.subscriber.replayed
            self.take(take(frame))

    def wait(self, n):
        self.now += n * ASK_AGAIN_S / 2

    def part(self, _n):
        self.joined = False
        self.pub.clear()
        self.ctl.clear()

    def join(self, _n):
        self.part(0)
        self.subscriber.joined(self.epoch, self.head, self.now)
        self.joined = True

    def replace(self, n):
        """Another master; what was reliable is published again, before, while or after the subscriber joins."""
        self.part(0)
        self.epoch, self.head, self.ring = self.epoch + 1, 0, Ring()
        again = [(sender, kept) for sender in self.senders[:: 1 if n % 2 else -1] for kept in sender.kept]
        for count, (sender, (serial, topic, body, pieces, at)) in enumerate(again):
            if count == n:
                self.join(0)
            self.number(sender.name, serial, topic, body, pieces, True, at)

    def take(self, news):
        for item in news:
            if isinstance(item, Lost):
                assert item.count > 0
                self.lost += item.count
            else:
                assert isinstance(item, Published)
                self.got.append(item.body)

    def finish(self):
        """Both senders are heard once more, and nothing is lost any more."""
        if not self.joined:
            self.join(0)
        for n in (3, 6):
            self.publish(n)
        for _ in range(3 * len(self.all) + 10):
            self.tick(0)
            self.now += ASK_AGAIN_S
            self.ask(0)
            self.answer(len(self.ctl))
        assert self.subscriber.due == float("inf"), "it waits for ever"

    def check(self):
        assert len(self.got) == len(set(self.got)), "one came twice"
        for sender in self.senders:
            serials = [int(body.split(b"/")[1]) for body in self.got if body.startswith(sender.name.encode())]
            assert serials == sorted(serials)


OPS = ["publish"] * 4 + ["lose", "hear", "hear", "tick", "ask", "answer", "wait", "part", "join"]


def run(steps):
    world = World()
    for n in (1, 2):  # of a sender that was never heard nobody can tell what is missing
        world.publish(n)
    world.hear(99)
    for op, n in steps:
        getattr(world, op)(n)
        world.check()
    world.finish()
    world.check()
    assert world.reliable <= set(world.got)
    return world


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 11)), max_size=60))
def test_of_one_master_each_publication_is_delivered_once_or_counted_as_lost(steps):
    """Reliable ones come, in the end, all; of the others exactly as many are lost as did not come."""
    world = run(steps)
    assert len(world.got) + world.lost == len(world.all)
    assert world.subscriber.lost == world.lost


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([*OPS, "replace"]), st.integers(0, 11)), max_size=60))
def test_over_the_deaths_of_masters_what_is_reliable_comes_once_and_no_loss_is_silent(steps):
    """What a master took with it is published again, or shows as a hole in the serials of its sender."""
    world = run(steps)
    assert len(world.got) + world.lost == len(world.all)


def test_what_a_master_took_with_it_is_told_once_though_the_next_message_has_two_pieces():
    """Found by a search."""
    world = run([("publish", 2), ("publish", 6), ("replace", 0)])
    assert (len(world.got), world.lost) == (5, 1)


def test_who_begins_to_follow_gets_nothing_old(monkeypatch):
    """Neither what this master has published before, nor what is published again after its death."""
    world = World()
    world.subscriber = Subscriber()
    for n in (6, 6, 2):
        world.publish(n)
    world.now = 5.0
    world.join(0)
    world.replace(99)
    world.join(0)
    world.finish()
    assert world.got == [b"worker:2/1", b"worker:1/4"]
    assert world.lost == 0


def test_the_memory_of_a_master_is_bounded_and_an_order_to_forget_is_kept(monkeypatch):
    """In frames and in bytes; the stretch it does not remember is lost on nobody knows which topic."""
    monkeypatch.setattr(topics_module, "RING_MAX", 10)
    monkeypatch.setattr(topics_module, "RING_MAX_BYTES", 20)
    ring = Ring()
    for number in range(1, 31):
        ring.put(Publication(1, number, "worker:1", number, "t", b"12345", reliable=number % 2 == 0))
    again, word = ring.replay(Missing(1, 30))
    assert [p.number for p in again] == [24, 26, 28]
    assert (word.first, word.last, word.lost) == (1, 28, {"": 20, "t": 5})
    again, word = ring.replay(Missing(29, 30))
    assert [p.number for p in again] == [30]
    assert (word.last, word.lost) == (30, {"t": 1})
    again, word = ring.replay(Missing(1, 5))
    assert (again, word.first, word.last, word.lost) == ([], 1, 5, {"": 5})
    assert Ring().replay(Missing(1, 5)) == ([], Replayed(1, 5, {"": 5}))


def test_a_sender_killed_in_the_middle_of_a_large_one_does_not_use_up_the_room_for_ever(monkeypatch):
    """Its pieces are given up when there is no room for those of others."""
    monkeypatch.setattr(topics_module, "PARTIAL_MAX_BYTES", 10)
    subscriber, number = Subscriber(), 0
    subscriber.joined(1, 0, 1.0)
    out = []
    for sender in ("worker:1", "worker:2", "worker:3"):
        for part in range(2):
            number += 1
            out += subscriber.take(Publication(1, number, sender, 1, "t", b"1234", part, True))
    for part in range(2, 4):
        number += 1
        out += subscriber.take(Publication(1, number, "worker:3", 1, "t", b"1", part, part < 3))
    assert out == [Published("worker:3", "t", b"1234123411")]
    out = subscriber.take(Publication(1, number + 1, "worker:1", 1, "t", b"end", 2, False))
    assert out == [Lost("t", 1)]


def test_what_was_asked_for_is_expected_and_nothing_else():
    """A full subscriber takes the answers to its questions: what it refused of them would be lost for good."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    subscriber.heads(1, 5)
    pieces = [Publication(1, number, "worker:1", number, "t", b"x") for number in range(1, 8)]
    assert not any(map(subscriber.expects, pieces))
    assert subscriber.ask(1.0) is None  # what is on its way comes first
    assert subscriber.ask(subscriber.due) == Missing(1, 5)
    subscriber.heads(1, 7)
    assert [subscriber.expects(piece) for piece in pieces] == [True] * 5 + [False] * 2
    subscriber.take(pieces[0])
    assert not subscriber.expects(pieces[0])
    subscriber.joined(2, 0, 1.0)
    assert not any(map(subscriber.expects, pieces))


def test_who_catches_up_asks_for_the_rest_at_once():
    """An answer of which every piece has come already is an answer, too."""
    subscriber, ring, got = Subscriber(), Ring(), []
    subscriber.joined(1, 0, 0.0)
    for number in range(1, 10):
        ring.put(Publication(1, number, "worker:1", number, "t", b"%d" % number, reliable=True))
    subscriber.heads(1, 9)
    while (asked := subscriber.ask(1.0)) is not None:
        again, last_word = ring.replay(asked)
        for publication in again:
            got += subscriber.take(publication)
        assert subscriber.replayed(last_word) == []
    assert [published.body for published in got] == [b"%d" % number for number in range(1, 10)]


def test_the_memory_of_a_master_is_bounded_in_frames_also_when_their_bodies_are_kept(monkeypatch):
    """A frame takes its body with it, so that the room for bodies is free again."""
    monkeypatch.setattr(topics_module, "RING_MAX", 2)
    monkeypatch.setattr(topics_module, "RING_MAX_BYTES", 15)  # one more, while its room is made
    ring = Ring()
    for number in range(1, 6):
        ring.put(Publication(1, number, "worker:1", number, "t", b"12345", reliable=True))
    again, word = ring.replay(Missing(1, 5))
    assert [p.number for p in again] == [4, 5]
    assert word.lost == {"": 3}


def test_words_of_another_master_and_what_comes_twice_change_nothing():
    """A late frame of the master before must not fill, or make, a hole in the count of this one."""
    subscriber = Subscriber()
    subscriber.joined(2, 0, 1.0)
    subscriber.heads(1, 9)
    assert subscriber.due == float("inf")
    assert subscriber.take(Publication(1, 1, "worker:1", 1, "t", b"old")) == []
    mine = Publication(2, 1, "worker:1", 1, "t", b"new")
    assert subscriber.take(mine) == [Published("worker:1", "t", b"new")]
    assert subscriber.take(mine) == []


def test_of_a_message_that_lacks_its_first_piece_the_rest_is_of_no_use():
    """It is lost once, where it ends."""
    subscriber = Subscriber()
    subscriber.joined(1, 1, 1.0)  # its first piece was published before
    assert subscriber.take(Publication(1, 2, "worker:1", 1, "t", b"b", 1, True)) == []
    assert subscriber.take(Publication(1, 3, "worker:1", 1, "t", b"c", 2, False)) == [Lost("t", 1)]


def test_the_senders_that_are_remembered_are_bounded(monkeypatch):
    """The one that was not heard of for longest is forgotten; what it sends twice then comes twice."""
    monkeypatch.setattr(topics_module, "SEEN_MAX", 2)
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    senders = ("worker:1", "worker:2", "worker:1", "worker:3", "worker:1", "worker:2")
    serials = (1, 1, 2, 1, 2, 1)
    got = [
        bool(subscriber.take(Publication(1, number, sender, serial, "t", b"x")))
        for number, (sender, serial) in enumerate(zip(senders, serials, strict=True), start=1)
    ]
    assert got == [True, True, True, True, False, True]


def following(*senders):
    """A subscriber that has had the first message of each sender from a master that has ended then."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    for number, (sender, serial) in enumerate(senders, 1):
        assert subscriber.take(Publication(1, number, sender, serial, "t", b"x"))
    subscriber.joined(2, 0, 2.0)
    return subscriber


def test_what_nobody_knows_whose_it_is_is_lost_once():
    """It is taken off what the holes in the serials of senders show; what is over is lost besides."""
    subscriber = following(("worker:1", 1), ("worker:2", 1))
    subscriber.heads(2, 2)
    assert subscriber.ask(subscriber.due) == Missing(1, 2)
    assert subscriber.replayed(Replayed(1, 2, {"": 2})) == [Lost("", 2)]
    after = [Publication(2, 3, "worker:1", 5, "t", b"a"), Publication(2, 4, "worker:2", 3, "t", b"b")]
    assert subscriber.take(after[0]) == [Lost("", 1), Published("worker:1", "t", b"a")]
    assert subscriber.take(after[1]) == [Lost("", 1), Published("worker:2", "t", b"b")]
    assert subscriber.lost == 4


def test_what_was_had_from_the_last_master_is_not_had_again_when_a_part_of_it_is_lost():
    """The next master says that it has forgotten an old one of a sender; the ones after that have come as well."""
    subscriber = following(("worker:1", 5))
    subscriber.heads(2, 1)
    assert subscriber.ask(subscriber.due) == Missing(1, 1)
    assert subscriber.replayed(Replayed(1, 1, {"t": 1}, {"worker:1": 3})) == [Lost("t", 1)]
    assert subscriber.take(Publication(2, 2, "worker:1", 4, "t", b"again", reliable=True, at=1.0)) == []


def test_the_memory_of_a_master_holds_the_bodies_of_what_is_reliable_and_no_others(monkeypatch):
    """What it counts is what it has, whichever limit is reached; without any body it forgets as well."""
    monkeypatch.setattr(topics_module, "RING_MAX", 4)
    for kinds, most in ((lambda n: n % 3 == 0, 12), (lambda n: n % 4 != 0, 12), (lambda n: n % 4 != 0, 99)):
        monkeypatch.setattr(topics_module, "RING_MAX_BYTES", most)
        ring = Ring()
        for number in range(1, 30):
            ring.put(Publication(1, number, "worker:1", number, "t", b"12345", reliable=kinds(number)))
            bodies = [publication.body for publication, _kept in ring._frames]
            assert bodies == [b"12345" if kept else b"" for _publication, kept in ring._frames]
            assert ring._bytes == len(b"".join(bodies)) <= most
            assert len(bodies) <= 4
    ring = Ring()
    for number in range(1, 30):
        ring.put(Publication(1, number, "worker:1", number, "t", b"12345"))
    assert (ring._bytes, len(ring._frames)) == (0, 4)


def piece(number, serial, body=b"x", part=0, more=False, sender="worker:1"):
    return Publication(1, number, sender, serial, "t", body, part, more)


def test_when_a_hole_is_asked_for():
    """After what was on its way when it joined; then again, as long as there is no answer."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    assert subscriber.due == float("inf")
    subscriber.heads(1, 2)
    assert subscriber.due == pytest.approx(1.0 + SETTLE_S)
    assert subscriber.ask(2.0) == Missing(1, 2)
    assert subscriber.due == 2.0 + ASK_AGAIN_S


def test_pieces_that_overtake_others_need_not_be_asked_for(monkeypatch):
    """As many as there is room for; the first that there is none for is missing when the hole is closed."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    for number in range(2, 8):  # HELD_MAX is 4
        assert subscriber.take(piece(number, number)) == []
    assert len(subscriber.take(piece(1, 1))) == 5
    assert subscriber.ask(2.0) == Missing(6, 7)


def test_a_piece_that_comes_twice_does_not_spoil_its_message():
    """By pub and by ctl, for example."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    first = piece(1, 1, b"a", 0, True)
    assert subscriber.take(first) == subscriber.take(first) == []
    assert subscriber.take(piece(2, 1, b"b", 1)) == [Published("worker:1", "t", b"ab")]


def test_an_answer_counts_once_and_not_for_what_has_come():
    """It may come twice, or after all that it says is lost has come by another way."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    subscriber.heads(1, 2)
    assert subscriber.ask(2.0) == Missing(1, 2)
    answer = Replayed(1, 2, {"t": 2})
    assert subscriber.replayed(answer) == [Lost("t", 2)]
    subscriber.heads(1, 4)
    assert subscriber.replayed(answer) == []
    assert subscriber.ask(3.0) == Missing(3, 4)
    for number in (3, 4):
        assert subscriber.take(piece(number, number))
    assert subscriber.replayed(Replayed(3, 4, {"t": 2})) == []
    assert subscriber.lost == 2


def test_what_nobody_knows_whose_it_is_adds_up():
    """Two answers of one master, one hole in the serials of a sender."""
    subscriber = following(("worker:1", 1))
    for number in (1, 2):
        subscriber.heads(2, number)
        assert subscriber.ask(3.0) == Missing(number, number)
        assert subscriber.replayed(Replayed(number, number, {"": 1})) == [Lost("", 1)]
    assert subscriber.take(Publication(2, 3, "worker:1", 4, "t", b"x")) == [Published("worker:1", "t", b"x")]


def test_after_a_message_that_lacks_a_piece_its_sender_goes_on():
    """It is lost once, also when its end comes again; the next one is whole."""
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    assert subscriber.take(piece(1, 1, b"b", 1)) == [Lost("t", 1)]
    assert subscriber.take(piece(2, 1, b"b", 1)) == []
    assert subscriber.take(piece(3, 2)) == [Published("worker:1", "t", b"x")]


def test_the_room_for_pieces_is_counted(monkeypatch):
    """By their bytes; all of it may be used, and what is complete or begins again gives it back."""
    monkeypatch.setattr(topics_module, "PARTIAL_MAX_BYTES", 8)
    subscriber = Subscriber()
    subscriber.joined(1, 0, 1.0)
    for number in (1, 2):
        assert subscriber.take(piece(number, 1, b"1234", number - 1, True)) == []
        assert subscriber._partial_bytes == 4 * number
    assert subscriber.take(piece(3, 1, b"5", 2)) == [Published("worker:1", "t", b"123412345")]
    assert subscriber._partial_bytes == 0
    for number in (4, 5):  # of a sender that began the second one without an end of the first
        assert subscriber.take(piece(number, number, b"1234", 0, True)) == []
        assert subscriber._partial_bytes == 4

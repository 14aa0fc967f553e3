"""One stream of mail: whatever its links lose, each message arrives once and in order, and the stream never stops."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.core import streams
from zcluster.core.mail import Mail
from zcluster.core.streams import RETRY_MAX_S, RETRY_S, Incoming, Outgoing, Parcel

PIECE, WINDOW = 4, 5  # small, so that a few steps fill a window


@pytest.fixture(scope="module", autouse=True)
def small():
    """Pieces and windows of a few bytes and frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", PIECE)
        patch.setattr(streams, "WINDOW_PIECES", WINDOW)
        yield


class Pair:
    """Both ends, and two links between them that keep the order and may lose frames."""

    def __init__(self):
        self.out, self.incoming = Outgoing("a", "b", 7), Incoming()
        self.there, self.back = deque(), deque()
        self.room, self.now = WINDOW, 1.0
        self.bodies, self.arrived, self.done = [], [], []

    def put(self, n):
        body = f"{len(self.bodies):02d}".encode()[: 2 * n].ljust(2 * n, b".")  # of 1 to 4 pieces, empty, to the brim
        self.bodies.append(body)
        self.out.put(Parcel("message", body, len(self.bodies)))

    def send(self, n):
        for _ in range(n):
            if (mail := self.out.head()) is not None:
                assert len(mail.body) <= PIECE
                self.there.append(mail)
                self.out.sent(self.now)

    def deliver(self, n):
        for _ in range(min(n, len(self.there))):
            mail = self.there.popleft()
            if self.incoming.meet(mail) and self.room and (body := self.incoming.take(mail)) is not None:
                self.arrived.append(body)

    def answer(self, _n):
        if self.incoming.stream:  # it has met the stream
            self.back.append((self.incoming.stream, self.incoming.upto, self.room))

    def hear(self, n):
        for _ in range(min(n, len(self.back))):
            stream, upto, room = self.back.popleft()
            if self.out.is_forgotten(stream, upto):
                fresh = Outgoing("a", "b", stream + 1)
                for parcel in self.out.parcels():
                    fresh.put(parcel)
                self.out = fresh
            self.done += [parcel.ticket for parcel in self.out.got(stream, upto, room, self.now)]

    def wait(self, n):
        self.now += n / 10
        self.out.expire(self.now)

    def lose(self, n):
        for _ in range(min(n, len(self.there))):
            self.there.popleft()

    def lose_answers(self, n):
        for _ in range(min(n, len(self.back))):
            self.back.popleft()

    def relink(self, _n):
        self.there.clear()
        self.back.clear()
        self.out.again(self.now)

    def receiver_relinks(self, _n):
        self.there.clear()
        self.back.clear()

    def fill(self, _n):
        self.room = 0

    def ease(self, _n):
        self.room = WINDOW

    def check(self):
        assert self.arrived == self.bodies[: len(self.arrived)]
        assert self.done == list(range(1, len(self.done) + 1))
        assert len(self.done) <= len(self.arrived)
        assert len(self.out) == len(self.bodies) - len(self.done)
        assert self.out.bytes == sum(map(len, self.bodies[len(self.done) :]))
        assert self.out.due == float("inf") or self.out.parcels()

    def turn(self):
        """All that is possible without time passing; true when something moved."""
        before = (len(self.there), len(self.arrived), len(self.done))
        self.send(WINDOW + 1)
        moved = bool(self.there)
        self.deliver(len(self.there))
        if moved:
            self.answer(0)
        self.hear(len(self.back))
        return moved or before != (len(self.there), len(self.arrived), len(self.done))

    def finish(self):
        """From now on nothing is lost and there is room; returns how long it took (seconds)."""
        self.room, began = WINDOW, self.now
        self.deliver(len(self.there))
        self.answer(0)
        self.hear(len(self.back))
        for _ in range(10 * len(self.bodies) + 10):
            while self.turn():
                self.check()
            if len(self.done) == len(self.bodies):
                return self.now - began
            assert self.out.due < float("inf"), "it has stopped for ever"
            self.now = max(self.now, self.out.due)
            self.out.expire(self.now)
        raise AssertionError("it makes no progress")


OPS = [
    "put",
    "deliver",
    "answer",
    "hear",
    "wait",
    "lose",
    "lose_answers",
    "relink",
    "receiver_relinks",
    "fill",
    "ease",
]
OPS += ["send", "send"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 7)), max_size=60))
def test_each_message_arrives_once_and_in_order_over_links_that_lose(steps):
    """Any history of losses, new links and full receivers; then the rest arrives, soon, without any other help."""
    pair = Pair()
    for op, n in steps:
        getattr(pair, op)(n)
        pair.check()
    assert pair.finish() <= 2 * RETRY_MAX_S
    assert pair.arrived == pair.bodies
    assert pair.out.due == float("inf")


@given(st.integers(0, 8), st.integers(1, 8), st.booleans())
def test_a_receiver_that_has_forgotten_the_stream_gets_what_it_has_not_acknowledged(before, after, in_the_middle):
    """Its memory of streams is bounded: the sender begins anew, and nothing stops."""
    pair = Pair()
    for _ in range(before):
        pair.put(4)
    if before:
        pair.finish()
    for _ in range(after):
        pair.put(4)
    if in_the_middle:
        pair.send(1)
        pair.deliver(1)
        pair.answer(0)
        pair.hear(1)
    pair.incoming = Incoming()
    pair.finish()
    assert pair.arrived == pair.bodies


def test_a_receiver_that_has_room_again_is_sent_what_it_had_thrown_away_at_once():
    """Otherwise each full inbox would cost the pause of a question, and pauses double."""
    pair = Pair()
    for _ in range(3):
        pair.put(2)
    pair.send(2)
    pair.fill(0)
    pair.deliver(2)
    pair.answer(0)
    pair.hear(1)
    pair.send(1)
    assert not pair.there
    pair.ease(0)
    pair.answer(0)
    pair.hear(1)
    pair.send(3)
    assert [mail.number for mail in pair.there] == [1, 2, 3]


def test_whoever_is_silent_is_asked_with_one_piece_and_ever_more_rarely():
    """A stopped process must find no pile of repetitions."""
    pair = Pair()
    for _ in range(WINDOW + 3):
        pair.put(2)
    pair.send(100)
    assert len(pair.there) == WINDOW
    pair.there.clear()
    pauses = []
    for _ in range(8):
        pauses.append(pair.out.due - pair.now)
        pair.now = pair.out.due
        pair.out.expire(pair.now)
        pair.send(100)
        assert [mail.number for mail in pair.there] == [1]
        pair.there.clear()
    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_MAX_S


def test_answers_of_another_stream_or_from_nowhere_change_nothing():
    """An older stream, a younger one, more than was ever sent, and no room at all (not even zero)."""
    pair = Pair()
    for _ in range(3):
        pair.put(2)
    pair.send(1)
    for stream, upto, room in ((6, 1, 5), (8, 1, 5), (7, 2, 5), (7, 99, 5)):
        assert pair.out.got(stream, upto, room, 1.0) == []
        assert not pair.out.is_forgotten(stream, upto)
    pair.out.got(7, 0, -100, 1.0)
    pair.send(9)
    assert pair.finish() <= RETRY_MAX_S
    assert pair.arrived == pair.bodies


def test_a_message_that_grows_beyond_all_bounds_is_thrown_away(monkeypatch):
    """No sender of ours does that; what comes after it arrives, and memory is bounded meanwhile."""
    monkeypatch.setattr(streams, "PAYLOAD_MAX_BYTES", 10)
    pair = Pair()
    pair.out.put(Parcel("message", b"x" * 24))
    pair.out.put(Parcel("message", b"small"))
    pair.out.put(Parcel("message", b"0123456789"))
    largest = 0
    while pair.turn():
        largest = max(largest, pair.incoming.bytes)
    assert pair.arrived == [b"small", b"0123456789"]
    assert largest <= 10 + PIECE


def test_a_piece_of_a_stream_before_this_one_is_not_even_met():
    """It comes late, after its sender began anew, and takes nothing with it of what has begun."""
    old, new, incoming = Outgoing("a", "b", 7), Outgoing("a", "b", 8), Incoming()
    old.put(Parcel("message", b"old"))
    new.put(Parcel("message", b"x" * 2 * PIECE))
    assert not incoming.is_open
    assert incoming.take(new.head()) is None
    assert not incoming.meet(old.head())
    assert incoming.take(old.head()) is None
    assert incoming.is_open
    assert (incoming.stream, incoming.upto) == (8, 1)


def test_a_new_way_is_used_at_once():
    """All that was on the old one is sent again; where there was no room, one piece asks for it."""
    for room, again in ((5, [2, 3]), (0, [2])):
        stream, numbers = Outgoing("worker:1", "worker:2", 1), []
        for ticket in (1, 2, 3):
            stream.put(Parcel("message", b"x", ticket))
            stream.sent(1.0)
        assert [parcel.ticket for parcel in stream.got(1, 1, room, 1.5)] == [1]
        assert stream.head() is None
        stream.again(2.0)
        assert stream.due == 2.0 + RETRY_S
        while (mail := stream.head()) is not None:
            numbers.append(mail.number)
            stream.sent(2.0)
        assert numbers == again


def sending(count, sent=0, now=1.0):
    """A stream with messages of one piece each, some of them sent."""
    stream = Outgoing("worker:1", "worker:2", 1)
    for ticket in range(1, count + 1):
        stream.put(Parcel("message", b"x", ticket))
    assert sends(stream, now, sent) == list(range(1, sent + 1))
    return stream


def sends(stream, now=1.0, most=99):
    """Send what may be sent; returns the numbers of the pieces."""
    numbers = []
    while len(numbers) < most and (mail := stream.head()) is not None:
        numbers.append(mail.number)
        stream.sent(now)
    return numbers


def test_a_piece_carries_all_that_is_said_of_its_message():
    """Who asks, about what, and whether it is kept."""
    stream = Outgoing("worker:1", "worker:2", 3)
    stream.put(Parcel("request", b"abcdef", ref=7, topic="t", reliable=True, serial=8, at=9.0))
    for number, body, more in ((1, b"abcd", True), (2, b"ef", False)):
        said = Mail("worker:1", "worker:2", 3, number, "request", body, more, 7, "t", True, 8, 9.0)
        assert stream.head() == said
        stream.sent(1.0)


def test_the_time_to_ask_counts_from_the_first_piece_that_is_not_answered():
    """Later ones do not put it off, nor does the one that asks; progress begins it anew, and the end ends it."""
    stream = sending(4, sent=1)
    assert stream.due == 1.0 + RETRY_S
    sends(stream, 1.1, 1)
    assert stream.due == 1.0 + RETRY_S
    stream.expire(1.2)
    assert sends(stream, 1.3) == [1]
    assert stream.due == 1.2 + 2 * RETRY_S
    stream.got(1, 1, 5, 2.0)
    assert stream.due == float("inf")  # nothing is on its way
    assert sends(stream, 2.1) == [2, 3, 4]
    stream.got(1, 3, 5, 2.2)
    assert stream.due == 2.2 + RETRY_S
    stream.got(1, 4, 0, 2.3)
    assert stream.due == float("inf")


def test_an_answer_without_news_repeats_nothing():
    """What is on its way comes; a repeated answer, or one of a receiver with little room, is no loss."""
    stream = sending(4, sent=3)
    assert stream.got(1, 0, 3, 1.0) == []
    assert sends(stream) == []
    assert len(stream.got(1, 1, 1, 1.0)) == 1
    assert sends(stream) == []
    assert stream.got(1, 1, 5, 1.0) == []
    assert sends(stream) == [4]


@pytest.mark.parametrize(("room", "again"), [(0, []), (1, [1]), (2, [1, 2]), (5, [1, 2, 3])])
def test_who_answers_the_question_is_sent_what_there_is_room_for(room, again):
    """From where it stands on; without room it is asked again, ever more rarely."""
    stream = sending(3, sent=3)
    stream.expire(stream.due)
    assert sends(stream) == [1]
    assert sends(stream) == []
    before = stream.due
    stream.got(1, 0, room, before)
    assert sends(stream, before) == again
    if not room:
        stream.expire(stream.due)
        assert stream.due - before > 2 * RETRY_S


@pytest.mark.parametrize(("room", "more"), [(0, []), (1, [3]), (5, [3, 4])])
def test_who_has_everything_that_was_sent_says_how_much_more_may_come(room, more):
    """With no room at all it is asked after a while."""
    stream = sending(4, sent=2)
    assert len(stream.got(1, 2, room, 1.0)) == 2
    assert (stream.due < float("inf")) == (not room)
    assert sends(stream) == more


def test_a_receiver_that_had_no_room_and_has_room_for_one_gets_one():
    """What was on its way is thrown away by then."""
    stream = sending(3, sent=3)
    stream.got(1, 0, 0, 1.0)
    stream.got(1, 0, 1, 1.0)
    assert sends(stream) == [1]


def test_a_message_as_large_as_may_be_arrives_first_of_all(monkeypatch):
    """Exactly the limit, in several pieces."""
    monkeypatch.setattr(streams, "PAYLOAD_MAX_BYTES", 10)
    pair = Pair()
    pair.bodies.append(b"0123456789")
    pair.out.put(Parcel("message", b"0123456789", 1))
    pair.finish()
    assert pair.arrived == [b"0123456789"]

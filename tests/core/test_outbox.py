"""The outbox: what is kept, for how long, in which order, and how much."""

import msgspec
import pytest

from zcluster.core import outbox
from zcluster.core.codec import decode, encode
from zcluster.core.messages import Ask, Beat, Leaving, Ready
from zcluster.core.outbox import ASK_AGAIN_S, FRAME_MAX_BYTES, Outbox, QueueFull
from zcluster.errors import BusError


def drain(box):
    """Send everything; return the messages in order."""
    sent = []
    while (frame := box.head()) is not None:
        sent.append(decode(frame))
        box.sent()
    return sent


def test_order_is_kept_and_questions_stay_until_answered():
    """What was sent goes out once per link; after a rewind only unanswered questions do, oldest first."""
    box = Outbox()
    for message in (Ask(1, "a"), Ready(), Ask(2, "b"), Leaving("x"), Ask(3, "c")):
        box.put(message)
    assert [type(m) for m in drain(box)] == [Ask, Ready, Ask, Leaving, Ask]
    assert box.answered(2)
    assert not box.answered(2)
    box.put(Ask(4, "d"))
    box.rewind()
    assert [m.number for m in drain(box)] == [1, 3, 4]
    assert len(box) == 3


def test_of_a_state_only_the_latest_is_kept():
    """A thousand heartbeats without a master are one heartbeat."""
    box = Outbox(messages_max=2)
    for number in range(1000):
        box.put(Beat(number, 0, 0, 0, 0, 0.0, 0.0))
    box.put(Ask(1, "x"))
    assert drain(box)[0].requests == 999


def test_limits_of_messages_and_bytes_hold_and_free_up():
    """Full says so, with figures; an answer makes room."""
    box = Outbox(messages_max=3, bytes_max=100)
    for number in range(3):
        box.put(Ask(number, "x"))
    with pytest.raises(QueueFull, match="3 messages"):
        box.put(Ask(3, "x"))
    assert box.forget(0)
    with pytest.raises(QueueFull):
        box.put(Ask(3, "x" * 100))
    box.put(Ask(3, "x"))
    assert [m.number for m in drain(box)] == [1, 2, 3]
    for number in (1, 2, 3):
        assert box.answered(number)
    assert len(box) == 0
    assert box.head() is None


def test_a_frame_beyond_the_limit_and_a_number_used_twice_are_refused():
    """The first would cost the connection, the second an answer."""
    box = Outbox()
    payload = msgspec.Raw(msgspec.msgpack.encode(b"x" * FRAME_MAX_BYTES))
    with pytest.raises(BusError, match="bytes"):
        box.put(Ask(1, "x", payload))
    box.put(Ask(1, "x"))
    with pytest.raises(ValueError, match="numbered 1"):
        box.put(Ask(1, "y"))


def test_a_question_whose_answer_was_lost_is_asked_again():
    """On a link that goes on, a question is repeated every ASK_AGAIN_S until it is answered; nothing else is."""
    box, now = Outbox(), 100.0
    box.repeat(now)
    box.put(Ask(1, "a"))
    box.put(Ready())
    assert len(drain(box)) == 2
    box.repeat(now + ASK_AGAIN_S - 0.01)
    assert drain(box) == []
    for times in (1, 2):
        box.repeat(now + times * ASK_AGAIN_S)
        assert [type(message) for message in drain(box)] == [Ask]
        box.repeat(now + times * ASK_AGAIN_S + 0.01)
        assert drain(box) == []
    box.answered(1)
    box.repeat(now + 3 * ASK_AGAIN_S)
    assert drain(box) == []


def test_bytes_are_those_of_the_frames_that_are_kept():
    """Exactly so many; a newer state takes the place of an older one, what is gone gives its room back."""
    beats = [Beat(number, 0, 0, 0, 0, 0.0, 0.0) for number in (1, 100_000)]
    small, large = (len(encode(beat)) for beat in beats)
    ask = Ask(1, "x" * 50)
    box = Outbox(bytes_max=large + len(encode(ask)))
    for _ in range(3):
        for beat in (beats[0], beats[1], beats[0], beats[1]):
            box.put(beat)
        box.put(ask)
        with pytest.raises(QueueFull, match=f"2 messages .{large + len(encode(ask))} bytes."):
            box.put(Ready())
        box.put(beats[0])
        with pytest.raises(QueueFull, match=f"2 messages .{small + len(encode(ask))} bytes."):
            box.put(Ask(2, "x" * 50))
        assert len(drain(box)) == 2
        assert box.answered(1)
        assert len(box) == 0


def test_a_frame_as_large_as_may_be_is_taken(monkeypatch):
    """Exactly the limit."""
    monkeypatch.setattr(outbox, "FRAME_MAX_BYTES", len(encode(Ask(1, "xx"))))
    box = Outbox()
    box.put(Ask(1, "xx"))
    with pytest.raises(BusError, match="bytes"):
        box.put(Ask(2, "xxx"))

"""Verbs: what is understood, what is refused with which text, and that nothing is done twice."""

import msgspec
import pytest

from zcluster.core import fleet_events as f
from zcluster.core import questions
from zcluster.core.messages import Answer, Ask, Received, Size
from zcluster.core.questions import Questions
from zcluster.core.verbs import NO_RELOAD, SIGNAL_MAX, SIZE_MAX, TOKEN_MAX_CHARS, VERBS, Unclear, question

ASKER = (100, 7, 1)


def raw(args):
    return msgspec.Raw(msgspec.msgpack.encode(args))


@pytest.mark.parametrize(
    ("verb", "args", "wish"),
    [
        ("scale", {"to": 4}, f.Scale(ASKER, 4, 0)),
        ("scale", {"to": 0}, f.Scale(ASKER, 0, 0)),
        ("scale", {"by": -1}, f.Scale(ASKER, None, -1)),
        ("fork", None, f.Open(ASKER, {})),
        ("fork", {}, f.Open(ASKER, {})),
        ("fork", {"env": {"COLOR": "blue", "NAME": ""}}, f.Open(ASKER, {"COLOR": "blue", "NAME": ""})),
        ("disconnect", {}, f.Close(ASKER, None)),
        ("disconnect", {"worker": 3}, f.Close(ASKER, 3)),
        ("reload", {"token": "a"}, f.Reload(ASKER, "a")),
        ("scale", {"to": SIZE_MAX}, f.Scale(ASKER, SIZE_MAX, 0)),
        ("reload", {"token": "x" * TOKEN_MAX_CHARS}, f.Reload(ASKER, "x" * TOKEN_MAX_CHARS)),
        ("restart", {"slot": 1}, f.Restart(ASKER, 1)),
        ("restart", {"slot": 1, "worker": 4}, f.Restart(ASKER, 1, 4)),
        ("kill", {"slot": 1, "signal": 1}, f.Signal(ASKER, 1, 1, 0)),
        ("kill", {"slot": 1, "signal": SIGNAL_MAX}, f.Signal(ASKER, 1, SIGNAL_MAX, 0)),
        ("kill", {"slot": 1, "signal": 15, "worker": 4}, f.Signal(ASKER, 1, 15, 4)),
    ],
)
def test_what_is_understood(verb, args, wish):
    """The arguments of the contract."""
    assert question(verb, raw(args), ASKER) == wish
    assert verb in VERBS


@pytest.mark.parametrize(
    ("verb", "args", "text"),
    [
        ("scale", {}, "{'to': N} or {'by': +N or -N}"),
        ("scale", {"to": 1, "by": 1}, "{'to': N} or {'by': +N or -N}"),
        ("scale", {"to": -1}, "cannot have -1 workers"),
        ("scale", {"by": -(10**9)}, "at most"),
        ("scale", {"to": SIZE_MAX + 1}, "at most"),
        ("scale", {"to": "four"}, "arguments of 'scale' cannot be understood: Expected `int"),
        ("scale", {"too": 4}, "unknown field `too`"),
        ("scale", [4], "cannot be understood"),
        ("fork", {"env": {"A=B": "c"}}, "'A=B' cannot be the name"),
        ("fork", {"env": {"": "c"}}, "'' cannot be the name"),
        ("fork", {"env": {"A\0B": "c"}}, "'A\\x00B' cannot be the name"),
        ("fork", {"env": {"A": "b\0c"}}, "'A' has a NUL"),
        ("fork", {"env": {"A": 1}}, "cannot be understood"),
        ("disconnect", {"worker": "x"}, "cannot be understood"),
        ("reload", {}, "missing required field `token`"),
        ("reload", {"token": ""}, "1 to 64 characters, not 0"),
        ("reload", {"token": "x" * 65}, "1 to 64 characters, not 65"),
        ("kill", {"slot": 1, "signal": 0}, "there is no signal 0; signals are 1 to"),
        ("kill", {"slot": 1, "signal": 65}, "there is no signal 65; signals are 1 to"),
        ("dance", {}, "does not know the verb 'dance'"),
    ],
)
def test_what_is_not(verb, args, text):
    """The text says what is wrong and how it should be."""
    with pytest.raises(Unclear) as caught:
        question(verb, raw(args), ASKER)
    assert text in str(caught.value)


@pytest.mark.parametrize("verb", sorted(VERBS))
@pytest.mark.parametrize("data", [b"", b"\xff", b"\x91" * 5000, b"\xc1", b"\x81\xa2\xff\xfe\x01"])
def test_garbage_is_refused(verb, data):
    """Bytes that are no msgpack, or nested without end."""
    with pytest.raises(Unclear, match="cannot be understood"):
        question(verb, msgspec.Raw(data), ASKER)


def test_a_question_is_acted_upon_once():
    """Repeated while it is open: nothing, but the answer goes to the new link; repeated later: the same answer."""
    asked = Questions(can_reload=True)
    ask = Ask(1, "scale", raw({"to": 4}))
    assert asked.hear(b"first", ASKER, ask) == f.Scale(ASKER, 4)
    assert asked.hear(b"second", ASKER, ask) is None
    link, answer, told = asked.answer(f.Reply(ASKER, body={"slots": [0]}))
    assert (link, answer, told) == (b"second", Answer(1, body=raw({"slots": [0]})), [])
    assert asked.hear(b"third", ASKER, ask) == answer
    other = (100, 8, 1)  # another process that was given the number later
    assert asked.hear(b"fourth", other, ask) == f.Scale(other, 4)
    assert asked.answer(f.Reply((9, 9, 9), "nobody asked")) == (b"", Answer(9, "nobody asked", raw({})), [])


def test_the_next_master_knows_what_was_fulfilled():
    """The size goes to the launcher with the answer it was made for, and comes back as an answer."""
    asked = Questions(can_reload=True)
    for number in range(1, 20):
        asker = (100, 7, number)
        asked.hear(b"link", asker, Ask(number, "fork"))
        asked.resize(f.Resize((0, number), {number: {"A": "b"}}))
        (size,) = asked.answer(f.Reply(asker, body={"slot": number}))[2]
    assert (size.slots, size.env, len(size.answered)) == ((0, 19), {19: {"A": "b"}}, questions.RECENT_MAX)
    asked.hear(b"link", (100, 7, 20), Ask(20, "reload", raw({"token": "a"})))
    assert asked.answer(f.Reply((100, 7, 20)))[2] == []
    after = Questions(can_reload=True)
    after.recall(msgspec.msgpack.decode(msgspec.msgpack.encode(size), type=Size))
    assert after.hear(b"link", (100, 7, 19), Ask(19, "fork")) == Answer(19, body=raw({"slot": 19}))
    assert after.hear(b"link", (100, 7, 21), Ask(21, "fork")) == f.Open((100, 7, 21))
    after.recall(Received(1))
    after.resize(f.Resize((0, 21), {}))
    link, _, (told,) = after.answer(f.Reply((100, 7, 21), body={"slot": 21}))
    assert link == b"link"
    assert [number for _, _, number, _ in told.answered] == [*range(5, 20), 21]


def test_the_launcher_is_told_that_it_was_heard():
    """What it asked for the operator, fulfilled or refused; in the size first, should we die in between."""
    asked = Questions(can_reload=True)
    asker = (*f.LAUNCHER, 5)
    asked.resize(f.Resize((0, 1), {}))
    body = {"slots": [0, 1]}
    link, _, told = asked.answer(f.Reply(asker, body=body))
    assert (link, told) == (b"", [Size((0, 1), {}, ((*asker, raw(body)),)), Received(5)])
    assert asked.answer(f.Reply((*f.LAUNCHER, 6), "no"))[2] == [Received(6)]


def test_mistakes_are_answered_at_once():
    """Unclear arguments, and a reload of what cannot be loaded again."""
    asked = Questions(can_reload=False)
    heard = asked.hear(b"link", ASKER, Ask(1, "scale"))
    assert isinstance(heard, Answer)
    assert heard.number == 1
    assert "'to': N" in heard.error
    reload = Ask(2, "reload", raw({"token": "a"}))
    assert asked.hear(b"link", ASKER, reload) == Answer(2, NO_RELOAD)
    assert asked.hear(b"link", ASKER, Ask(3, "fork")) == f.Open(ASKER)
    assert Questions(can_reload=True).hear(b"link", ASKER, reload) == f.Reload(ASKER, "a")


def test_what_is_kept_is_bounded(monkeypatch):
    """Open questions are refused beyond the limit, old answers are forgotten."""
    monkeypatch.setattr(questions, "OPEN_MAX", 2)
    monkeypatch.setattr(questions, "ANSWERED_MAX", 2)
    asked = Questions(can_reload=True)
    for number in (1, 2):
        assert asked.hear(b"link", (1, 1, number), Ask(number, "fork")) == f.Open((1, 1, number))
    refused = asked.hear(b"link", (1, 1, 3), Ask(3, "fork"))
    assert isinstance(refused, Answer)
    assert refused.number == 3
    assert "wait for an answer already" in refused.error
    for number in (1, 2, 3):
        asked.answer(f.Reply((1, 1, number)))
    assert asked.hear(b"link", (1, 1, 1), Ask(1, "fork")) == f.Open((1, 1, 1))
    for number in (2, 3):
        assert isinstance(asked.hear(b"link", (1, 1, number), Ask(number, "fork")), Answer)

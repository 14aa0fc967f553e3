"""Frames: everything we say survives the trip, everything else is a BadFrame and nothing but a BadFrame."""

import contextlib
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.core import messages
from zcluster.core.codec import (
    MAX_TOPIC_BYTES,
    decode,
    decode_control,
    decode_pub,
    encode,
    encode_control,
    encode_pub,
    subscription,
)
from zcluster.core.messages import Answer, Ask, Control, Hello, Message, Probe, Stop, Tick, Totals
from zcluster.errors import BadFrame, BusError

_raw = st.binary(max_size=50).map(lambda b: msgspec.Raw(msgspec.msgpack.encode(b)))
_small = st.integers(-(2**63), 2**63 - 1)
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_by_type = {int: _small, float: st.floats(allow_nan=False), str: _text, bool: st.booleans(), msgspec.Raw: _raw}


def struct_strategy(kind):
    """Any instance of a message, field by field, from its annotations."""
    return st.builds(kind, **{name: strategy(hint) for name, hint in typing.get_type_hints(kind).items()})


def strategy(hint):
    """Values of one annotation."""
    if hint in _by_type:
        return _by_type[hint]
    if hint is type(None):
        return st.none()
    if hint is bytes:
        return st.binary(max_size=20)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(args)
    if origin is dict:
        return st.dictionaries(strategy(args[0]), strategy(args[1]), max_size=3)
    if origin is tuple and args[-1] is not ...:
        return st.tuples(*[strategy(arg) for arg in args])
    if origin is tuple:
        return st.lists(strategy(args[0]), max_size=2).map(tuple)
    if args:
        return st.one_of([strategy(arg) for arg in args])
    return struct_strategy(hint)


def same(one, other):
    """Equality that also sees through Raw, whose own is identity of the buffer."""
    return type(one) is type(other) and msgspec.msgpack.encode(one) == msgspec.msgpack.encode(other)


@given(st.one_of([struct_strategy(kind) for kind in typing.get_args(Message)]), _text)
def test_every_message_survives_the_trip(message, topic):
    """encode and decode are inverse, on ctl, evt and pub, for every kind of message."""
    assert same(decode(encode(message)), message)
    if topic and "\0" not in topic:
        name, again = decode_pub(encode_pub(topic, message))
        assert name == topic
        assert same(again, message)


@given(st.one_of([struct_strategy(kind) for kind in typing.get_args(Control)]))
def test_every_control_message_survives_the_trip(message):
    """The same for the launcher's sockets."""
    assert same(decode_control(encode_control(message)), message)


def test_all_structs_are_in_a_union_and_tags_are_unique():
    """A message that no union names could be sent but never received."""
    kinds = [*typing.get_args(Message), *typing.get_args(Control)]
    tagged = [
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
    ]
    assert set(tagged) == set(kinds)
    tags = [kind.__struct_config__.tag for kind in kinds]
    assert len(tags) == len(set(tags))


@settings(max_examples=500)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_a_bad_frame_and_nothing_else(data, versioned):
    """No input makes a decode function raise anything but BadFrame (with our version byte in front or not)."""
    frame = b"\x01" + data if versioned else data
    for function in (decode, decode_control, decode_pub, lambda f: decode_pub(subscription("t") + f)):
        with contextlib.suppress(BadFrame):
            function(frame)


@given(struct_strategy(Totals) | struct_strategy(Hello) | struct_strategy(Ask), st.data())
def test_a_truncated_or_extended_frame_is_a_bad_frame(message, data):
    """Half a message is none, and neither is one with something after it."""
    frame = encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(BadFrame):
        decode(frame[:cut])
    with pytest.raises(BadFrame):
        decode(frame + b"\xc0")


DEEP = b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        b"\x00" + encode(Ask(1, "x"))[1:],
        b"\x02" + encode(Ask(1, "x"))[1:],
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01" + DEEP,
        b"\x01" + b"\x81" * 100_000,
        b"\x01" + msgspec.msgpack.encode(Ask(1, "x", msgspec.Raw(DEEP))),
        b"\x01\xdd\xff\xff\xff\xff",
        b"\x01\xdf\xff\xff\xff\xff",
        b"\x01\xc6\xff\xff\xff\xff",
        b"\x01\x94\xa3inc\x01\x01\xdf\xff\xff\xff\xff",
        b"\x01\x92\xa5probe\xdb\xff\xff\xff\xff",
        b"\x01\x93\xa3ask\x01\xa4\xff\xfe\xfd\xfc",
        b"\x01\x91\xa4\xff\xfe\xfd\xfc",
        b"\x01\x92\xa5nosuch\x01",
        b"\x01\x93\xa3ask\xcf\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x01\xc1",
        b"\x01" * 1_000_000,
    ],
    ids=range(19),
)
def test_nasty_frames_are_bad_frames(frame):
    """Foreign versions, deep nesting, lying lengths, broken strings, unknown tags: BadFrame, and it is a BusError."""
    for function in (decode, decode_control, lambda f: decode_pub(f[:1] + b"totals\0" + f[1:])):
        with pytest.raises(BadFrame) as caught:
            function(frame)
        assert isinstance(caught.value, BusError)


def test_a_large_payload_is_carried_and_not_looked_into():
    """Thirty-two MiB of the user's bytes go through untouched; a payload is one complete msgpack value or refused."""
    payload = msgspec.Raw(msgspec.msgpack.encode(b"x" * (32 << 20)))
    message = decode(encode(Answer(1, "", payload)))
    assert isinstance(message, Answer)
    assert bytes(message.body) == bytes(payload)


@pytest.mark.parametrize("topic", ["", "a\0b", "x" * (MAX_TOPIC_BYTES + 1), "é" * 128])
def test_a_topic_that_could_not_be_matched_is_refused(topic):
    """Empty, with a NUL, too long in bytes: an error of the caller, before anything is sent."""
    with pytest.raises(ValueError, match="a topic is"):
        encode_pub(topic, Probe(b"x"))


def test_a_subscription_is_the_beginning_of_its_frames_and_of_no_others():
    """The NUL keeps `totals` from matching `totals2`."""
    frame = encode_pub("totals2", Tick(1, 1, {}))
    assert frame.startswith(subscription("totals2"))
    assert not frame.startswith(subscription("totals"))
    longest = "x" * MAX_TOPIC_BYTES
    assert decode_pub(encode_pub(longest, Tick(1, 1, {})))[0] == longest


@pytest.mark.parametrize(
    "head",
    [
        b"\x01\0",
        b"\x01\0t\0",
        b"\x01" + b"x" * 300 + b"\0",
        b"\x01" + b"x" * (MAX_TOPIC_BYTES + 1) + b"\0",
        b"\x01\xff\xfe\0",
        b"\x01totals",
        b"\x02t\0",
    ],
)
def test_a_frame_of_pub_without_a_proper_topic_is_a_bad_frame(head):
    """No topic, an endless one, one that is not UTF-8, no NUL, another version."""
    with pytest.raises(BadFrame):
        decode_pub(head + encode(Tick(1, 1, {}))[1:])


def test_control_and_bus_do_not_understand_each_other():
    """A message of the launcher's sockets is a bad frame on the bus, and the other way round."""
    with pytest.raises(BadFrame):
        decode(encode_control(Stop(quick=True)))
    with pytest.raises(BadFrame):
        decode_control(encode(Ask(1, "x")))

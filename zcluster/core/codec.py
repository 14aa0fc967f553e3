"""Frames: how a message becomes bytes and comes back, for the bus and for the launcher's sockets alike.

Invariant: whatever bytes come in, a decode function returns a message of its union or raises `BadFrame`; nothing
else ever leaves it, so a hostile or a newer peer can be counted and dropped but never ends a process.

A frame is one version byte and one msgpack-encoded, tagged struct. On `pub` the topic stands between the two, closed
by a NUL: a SUB compares first bytes, hence topic first, and the NUL keeps "totals" from matching "totals-of-others".
Payloads of the user are `msgspec.Raw`: carried, never looked into.
"""

from typing import Final, TypeVar

import msgspec

from zcluster.core.messages import VERSION, Control, Message
from zcluster.errors import BadFrame

_T = TypeVar("_T")
MAX_TOPIC_BYTES: Final = 255  # a name, not a payload; it is compared by every SUB for every message
_HEAD: Final = bytes([VERSION])
_encoder: Final = msgspec.msgpack.Encoder()
_message_decoder: Final[msgspec.msgpack.Decoder[Message]] = msgspec.msgpack.Decoder(Message)
_control_decoder: Final[msgspec.msgpack.Decoder[Control]] = msgspec.msgpack.Decoder(Control)


def encode(message: Message) -> bytes:
    """Return the frame of a message on `ctl` or `evt`."""
    return _HEAD + _encoder.encode(message)


def encode_control(message: Control) -> bytes:
    """Return the datagram of a message on one of the launcher's or a zygote's sockets."""
    return _HEAD + _encoder.encode(message)


def encode_pub(topic: str, message: Message) -> bytes:
    """Return the frame of a message on `pub`; raises `ValueError` for a topic that `subscription` refuses."""
    return subscription(topic) + _encoder.encode(message)


def subscription(topic: str) -> bytes:
    """Return the first bytes of every frame of this topic: what a SUB subscribes to.

    Raises `ValueError` when the topic is empty, longer than 255 bytes of UTF-8, or contains a NUL.
    """
    name = topic.encode()
    if not name or b"\0" in name or len(name) > MAX_TOPIC_BYTES:
        raise ValueError(f"a topic is 1 to {MAX_TOPIC_BYTES} bytes of UTF-8 without a NUL, not {topic!r:.80}")
    return _HEAD + name + b"\0"


def decode(frame: bytes) -> Message:
    """Return the message in a frame of `ctl` or `evt`; raises `BadFrame`."""
    return _decode(_message_decoder, frame, 1)


def decode_control(frame: bytes) -> Control:
    """Return the message in a datagram; raises `BadFrame`."""
    return _decode(_control_decoder, frame, 1)


def decode_pub(frame: bytes) -> tuple[str, Message]:
    """Return topic and message of a frame of `pub`; raises `BadFrame`."""
    end = frame.find(b"\0", 1, MAX_TOPIC_BYTES + 2)
    if end < 2:
        raise BadFrame(f"a frame of {len(frame)} bytes on pub has no topic; the sender is not a zcluster master")
    message = _decode(_message_decoder, frame, end + 1)
    try:
        return frame[1:end].decode(), message
    except UnicodeDecodeError as error:
        raise BadFrame(f"a topic on pub is not UTF-8: {error}") from None


def _decode(decoder: msgspec.msgpack.Decoder[_T], frame: bytes, start: int) -> _T:
    """Check the version, decode from `start`, and give every way this can fail one name.

    All four happen with hostile input: a wrong type or a truncation is `DecodeError` (`ValidationError` is one), a
    bad string `UnicodeDecodeError`, deep nesting `RecursionError`, a header that announces 4 Gi items `MemoryError`.
    """
    if frame[:1] != _HEAD:
        seen = f"version {frame[0]}" if frame else "nothing at all"
        raise BadFrame(f"a frame with {seen}, this is version {VERSION}; do not mix releases in one cluster")
    try:
        return decoder.decode(memoryview(frame)[start:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise BadFrame(f"a frame of {len(frame)} bytes is not one of our messages: {error!r:.200}") from None

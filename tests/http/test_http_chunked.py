"""The decoder of chunked bodies by itself."""

import itertools

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.http.chunked import EXTENSION_BYTES, OVERHEAD, OVERHEAD_ALLOWANCE_BYTES, ChunkDecoder
from zcluster.http.head import Refusal
from zcluster.http.limits import Limits

NEXT = b"GET / HTTP/1.1\r\n"


def decode(*pieces, limits=None):
    """Payload and rest of a message in these pieces, or the status and the reason it is refused with."""
    decoder = ChunkDecoder(limits or Limits())
    payload, rest = b"", b""
    try:
        for piece in pieces:
            assert not rest or decoder.done
            some, rest = decoder.feed(rest + piece)
            payload += some
    except Refusal as refusal:
        return refusal.status, refusal.reason
    return payload, rest, decoder.done


def test_whole():
    """Payload, rest and end of a message in one piece."""
    assert decode(b"2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX: y\r\n\r\n" + NEXT) == (b"hello", NEXT, True)


def test_what_is_there_comes_at_once():
    """Payload is given out as it comes, and nothing else is."""
    decoder = ChunkDecoder(Limits())
    assert decoder.feed(b"5\r") == (b"", b"")
    assert decoder.feed(b"\nhe") == (b"he", b"")
    assert decoder.feed(b"llo\r\n1\r\n!\r\nFf\r\n") == (b"llo!", b"")
    assert decoder.feed(b"x" * 255) == (b"x" * 255, b"")
    assert not decoder.done
    assert decoder.feed(b"\r\n0\r\n\r\n" + NEXT) == (b"", NEXT)
    assert decoder.done
    assert decoder.feed(NEXT) == (b"", NEXT)


def test_the_middle_of_a_large_chunk_is_not_copied():
    """Bytes that are payload and nothing else are handed back as they are."""
    decoder = ChunkDecoder(Limits())
    decoder.feed(b"20000\r\n")
    block = bytes(65536)
    for _ in range(2):
        assert decoder.feed(block)[0] is block
    assert decoder.feed(b"\r\n0\r\n\r\n") == (b"", b"")
    assert decoder.done


def test_the_limit_is_exact():
    """A body at the limit passes; one byte more is refused when it is announced, before any of it has come."""
    limits = Limits(body_bytes=10)
    assert decode(b"9\r\n123456789\r\n1\r\n0\r\n0\r\n\r\n", limits=limits) == (b"1234567890", b"", True)
    assert decode(b"9\r\n123456789\r\n2\r\n", limits=limits) == (413, "body too large")
    assert decode(b"b\r\n", limits=limits) == (413, "body too large")
    assert decode(b"b\r\n12345678901\r\n0\r\n\r\n", limits=limits) == (413, "body too large")
    assert decode(b"0\r\n\r\n", limits=Limits(body_bytes=0)) == (b"", b"", True)


def test_an_extension_is_bounded():
    """The line with a size may be as long as said, with its end; then it is refused, also before its end has come."""
    line = b"1;" + b"x" * (EXTENSION_BYTES - 4) + b"\r\n"
    assert decode(line + b"x\r\n0\r\n\r\n") == (b"x", b"", True)
    assert decode(b"1;x" + line[2:] + b"x\r\n0\r\n\r\n") == (400, "malformed chunk size")
    assert decode(b"1;x" + line[2:-2]) == (b"", b"", False)
    assert decode(b"1;x" + line[2:-2], b"x") == (400, "malformed chunk size")


def test_extensions_are_bounded_together():
    """Many extensions with little data between them are refused; as many with enough data are not."""
    line = b";" + b"x" * 4000 + b"\r\n"
    count = OVERHEAD_ALLOWANCE_BYTES // len(line) + 2
    assert decode(*[b"1" + line + b"x\r\n"] * count) == (400, "chunk overhead")
    size = len(line) // OVERHEAD + 1
    payload, _, _ = decode(*[b"%x%b%b\r\n" % (size, line, b"x" * size)] * count * 3)
    assert len(payload) == size * count * 3


def test_the_smallest_chunks_are_no_overhead():
    """An honest client that sends one byte in each chunk can do so for ever."""
    assert decode(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n") == (b"x" * 50_000, b"", True)
    assert decode(*[b"0000000", b"1\r", b"\nx\r", b"\n"] * 30_000) == (b"x" * 30_000, b"", False)


@pytest.mark.parametrize(
    ("limits", "trailers"),
    [
        ({"header_count": 3}, b"A: 1\r\nB: 2\r\nC: 3\r\n"),
        ({"header_field_bytes": 10}, b"A: 3456789\r\n"),
        ({"head_bytes": 18}, b"A: 1\r\nB: 2\r\nC: 3\r\n"),
    ],
)
def test_trailers_are_bounded(limits, trailers):
    """Trailers at a limit pass, one more byte or field does not."""
    message = b"0\r\n" + trailers + b"\r\n"
    assert decode(message, limits=Limits(**limits)) == (b"", b"", True)
    name, value = next(iter(limits.items()))
    assert decode(message, limits=Limits(**{name: value - 1}))[0] == 431


@pytest.mark.parametrize(
    "data",
    [b"x", b"\n", b"\r", b"5\rx", b"5x", b"5\r\nhellox", b"5\r\nhello\rx", b"0\r\n ", b"0\r\n(", b"0\r\n\rx"],
)
def test_nonsense_is_refused_when_it_comes(data):
    """A wrong byte is refused at once, not when its line ends or the client gives up; what precedes it is not."""
    assert decode(data)[0] == 400
    assert decode(*(data[index : index + 1] for index in range(len(data))))[0] == 400
    assert decode(data[:-1]) == (data[3:8] if data.startswith(b"5\r\nh") else b"", b"", False)


EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b'; a = "b;\\"c" ;d', b";" + b"x" * 100])
CHUNKS = st.lists(
    st.tuples(st.binary(min_size=1, max_size=300), EXTENSIONS, st.sampled_from([b"%x", b"%X", b"000%x"])), max_size=12
)
TRAILERS = st.sampled_from([b"", b"X: y\r\n", b"X:\r\nY: \xff\t \r\n"])


@settings(deadline=None, max_examples=500)
@given(CHUNKS, TRAILERS, st.lists(st.integers(0, 4000), max_size=20), st.integers(0, 1))
def test_what_was_encoded_is_decoded(parts, trailers, marks, bytewise):
    """Any chunks with any extensions, in any pieces: the payload is theirs, the rest is untouched, llhttp agrees."""
    message = b"".join(size % len(data) + extension + b"\r\n" + data + b"\r\n" for data, extension, size in parts)
    message += b"0\r\n" + trailers + b"\r\n"
    body = b"".join(data for data, _, _ in parts)
    whole = message + NEXT
    places = range(len(whole) + 1) if bytewise else sorted({0, len(whole), *(mark % len(whole) for mark in marks)})
    assert decode(*(whole[start:stop] for start, stop in itertools.pairwise(places))) == (body, NEXT, True)
    if not any(b" " in extension for _, extension, _ in parts):  # llhttp does not know all blanks of the grammar
        assert referee(message) == body


def referee(message):
    """llhttp's reading of a chunked body; None when it sees no end, or refuses it."""
    found = []

    class Callbacks:
        ended = False

        def on_body(self, data):
            found.append(data)

        def on_message_complete(self):
            self.ended = True

    callbacks = Callbacks()
    parser = httptools.HttpRequestParser(callbacks)
    try:
        parser.feed_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + message)
    except httptools.HttpParserError:
        return None
    return b"".join(found) if callbacks.ended else None


DAMAGE = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b";", b"=", b'"', b"0", b"1", b"a", b"-", b"+", b"_", b"x", b""]
)


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 2), DAMAGE), min_size=1, max_size=3))
def test_llhttp_agrees(damage):
    """A damaged message that we read to its end is read by llhttp to the same end, with the same payload."""
    message = bytearray(b'2\r\nhe\r\n3;a=b;c="d"\r\nllo\r\n0\r\nX: y\r\n\r\n')
    for place, count, piece in damage:
        place %= len(message)
        message[place : place + count] = piece
    outcome = decode(bytes(message))
    if outcome[-1] is True and b" " not in message.replace(b": ", b"") and b"\t" not in message:
        payload, rest, _ = outcome
        assert referee(bytes(message)[: len(message) - len(rest)]) == payload
    bits = decode(*(bytes(message)[index : index + 1] for index in range(len(message))))
    assert bits == outcome or bits[0] == outcome[0] == 400

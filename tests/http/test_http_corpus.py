"""One verdict for each message, however it is cut: at every byte, byte by byte, in random pieces, behind another."""

import itertools

import pytest
from http_hostile import BAD, label
from http_reader import bytewise, read
from http_rig import GET, Rig, serve
from http_valid import GOOD
from hypothesis import given, settings
from hypothesis import strategies as st

CUTS = 300  # at most, in the messages too long to be cut at every byte

each_bad = pytest.mark.parametrize(("data", "status", "reason"), BAD, ids=label)
each_good = pytest.mark.parametrize(("data", "environ", "body"), GOOD, ids=label)


def cuts(data):
    """Where to cut a message in two."""
    return range(1, len(data), 1 + len(data) // CUTS)


@each_good
def test_served(data, environ, body):
    """A good message is one request with the environ and the body it says, and nothing is left over."""
    reader = read(data)
    assert reader.refusal is None
    assert len(reader.requests) == 1
    seen, _, seen_body = reader.requests[0]
    assert {key: seen.get(key) for key in environ} == environ
    assert seen_body == body
    assert reader.outcome[2] == b""


@each_good
def test_served_in_pieces(data, environ, body):
    """A good message is the same request wherever it is cut, and never a request before its last byte."""
    outcome = read(data).outcome
    for cut in cuts(data):
        reader = read(data[:cut])
        assert reader.refusal is None, f"refused after {cut} bytes"
        assert not reader.requests
        assert reader.feed(data[cut:]).outcome == outcome
    assert read(*bytewise(data)).outcome == outcome


@each_good
def test_served_between_others(data, environ, body):
    """A good message takes nothing from its neighbours in a pipeline, and gives them nothing."""
    reader = read(GET + data + data + GET)
    assert reader.refusal is None
    alone, get = read(data).requests, read(GET).requests
    assert reader.requests == get + alone + alone + get


@each_bad
def test_refused(data, status, reason):
    """A bad message is refused with its status and its reason, and no request is seen in it."""
    reader = read(data)
    assert reader.refusal == (status, reason)
    assert not reader.requests


@each_bad
def test_refused_in_pieces(data, status, reason):
    """A bad message is refused with the same words wherever it is cut."""
    for cut in cuts(data):
        reader = read(data[:cut], data[cut:])
        assert reader.refusal == (status, reason), f"cut after {cut} bytes"
        assert not reader.requests
    if len(data) < 20_000:
        assert read(*bytewise(data)).refusal == (status, reason)


@each_bad
def test_refused_behind_a_good_one(data, status, reason):
    """The request before a bad one is served, the one behind it is not."""
    reader = read(GET + data + b"\r\n\r\n" + GET)
    assert reader.refusal == (status, reason)
    assert reader.requests == read(GET).requests


def pieces(data, marks):
    """`data`, cut at these places as far as it has them."""
    places = sorted({0, len(data), *(mark % (len(data) + 1) for mark in marks)})
    return [data[start:stop] for start, stop in itertools.pairwise(places)]


@settings(deadline=None, max_examples=500)
@given(
    st.lists(st.sampled_from([data for data, _, _ in GOOD if len(data) < 3000]), min_size=1, max_size=5),
    st.sampled_from([b"", *(data for data, _, _ in BAD if len(data) < 3000)]),
    st.lists(st.integers(0, 20_000), max_size=30),
)
def test_random_pieces(good, bad, marks):
    """A pipeline of good messages, with a bad one at its end or without, is read the same in any pieces."""
    data = b"".join(good) + bad
    whole = read(data)
    assert len(whole.requests) == len(good)
    assert (whole.refusal is None) == (not bad)
    assert read(*pieces(data, marks)).outcome == whole.outcome


@settings(deadline=None, max_examples=1000)
@given(st.data())
def test_random_damage(data):
    """A message with some bytes changed is the same requests and the same status, in one piece and byte by byte."""
    message = bytearray(data.draw(st.sampled_from([data for data, _, _ in GOOD if len(data) < 400])))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(message) - 1))
        piece = data.draw(
            st.sampled_from([b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"\xff", b""])
        )
        message[place : place + data.draw(st.integers(0, 1))] = piece
    message += GET * 2
    whole, bits = read(bytes(message)), read(*bytewise(bytes(message)))
    assert bits.requests == whole.requests
    # only the status: of two faults in one line, what comes byte by byte meets the first one first
    assert (bits.refusal or [None])[0] == (whole.refusal or [None])[0]


def mirror(environ, start_response):
    """Answers with the request's body."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class SHARED:
    """One engine for all examples."""

    rig: Rig


@pytest.fixture(scope="module", autouse=True)
def shared_rig():
    """Run that engine."""
    with serve(mirror) as SHARED.rig:
        yield


@each_good
def test_served_by_the_engine(data, environ, body):
    """The engine answers a good message, and the connection can be used again unless it was HTTP/1.0."""
    client = SHARED.rig.client()
    head_only = data.startswith(b"HEAD ")
    response = client.request(data, head_only)
    assert response.status == 200
    if not head_only:
        assert response.body == body
    if b"HTTP/1.0\r\n" in data:
        assert client.at_end()
    else:
        assert client.request(GET).status == 200
    client.close()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([one for one in GOOD if len(one[0]) < 3000]), min_size=1, max_size=4),
    st.lists(st.integers(0, 12_000), max_size=10),
)
def test_random_pieces_to_the_engine(messages, marks):
    """The engine answers a pipeline of good messages the same in any pieces."""
    messages = [one for one in messages if b"HTTP/1.0\r\n" not in one[0]]
    client = SHARED.rig.client()
    for piece in pieces(b"".join(data for data, _, _ in messages), marks):
        client.send(piece)
    for data, _, body in messages:
        head_only = data.startswith(b"HEAD ")
        response = client.receive(head_only)
        assert response.status == 200
        assert head_only or response.body == body
    client.close()

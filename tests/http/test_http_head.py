"""The head parser by itself: what it finds, its limits, its two ways, and llhttp as a referee."""

import httptools
import pytest
from http_hostile import BAD, field, get, host, label
from http_reader import BASE, read
from http_rig import GET
from http_valid import GOOD
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.http import head as head_module
from zcluster.http.head import CHUNKED, CLOSE, EXPECT, OLD, SIZED, HeadParser, Refusal, check_beginning
from zcluster.http.limits import Limits
from zcluster.http.stats import Stats


def parse(head, limits=None, stats=None):
    """Environ and flags of one head, or its refusal."""
    environ = BASE.copy()
    try:
        flags = HeadParser(limits or Limits(), stats or Stats(list)).parse(head, environ)
    except Refusal as refusal:
        return refusal.status, refusal.reason
    return environ, flags


def with_fields(*lines, version=b"1.1"):
    """A head with these field lines behind Host."""
    return b"GET / HTTP/" + version + b"\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


FLAGS = [
    ([], b"1.1", 0),
    ([b"Connection: keep-alive"], b"1.1", 0),
    ([b"Connection: close"], b"1.1", CLOSE),
    ([b"connection: CLOSE"], b"1.1", CLOSE),
    ([b"Connection: a, b ,\tClose\t, c"], b"1.1", CLOSE),
    ([b"Connection: keep-alive, close"], b"1.1", CLOSE),
    ([b"Connection: keep-alive", b"X: y", b"Connection: close"], b"1.1", CLOSE),
    ([b"Connection: closed"], b"1.1", 0),
    ([b"Connection: not close"], b"1.1", 0),
    ([b"Connection:"], b"1.1", 0),
    ([], b"1.0", OLD | CLOSE),
    ([b"Connection: keep-alive"], b"1.0", OLD),
    ([b"Connection: Keep-Alive"], b"1.0", OLD),
    ([b"Connection: x, KEEP-ALIVE"], b"1.0", OLD),
    ([b"Connection: keep-alive, close"], b"1.0", OLD | CLOSE),
    ([b"Connection: x"], b"1.0", OLD | CLOSE),
    ([b"Content-Length: 1"], b"1.1", SIZED),
    ([b"Content-Length: 0"], b"1.1", 0),
    ([b"Content-Length: 1"], b"1.0", OLD | CLOSE | SIZED),
    ([b"Transfer-Encoding: chunked"], b"1.1", CHUNKED),
    ([b"Expect: 100-continue", b"Content-Length: 1"], b"1.1", EXPECT | SIZED),
    (
        [b"Expect: 100-CONTINUE", b"Transfer-Encoding: Chunked", b"Connection: close"],
        b"1.1",
        EXPECT | CHUNKED | CLOSE,
    ),
    ([b"Expect: 100-continue"], b"1.0", OLD | CLOSE),
    ([b"Expect: something"], b"1.0", OLD | CLOSE),
    ([b"Expect:"], b"1.1", 0),
]


@pytest.mark.parametrize(("lines", "version", "flags"), FLAGS)
def test_flags(lines, version, flags):
    """What the connection has to know of a head."""
    assert parse(with_fields(*lines, version=version))[1] == flags


def test_the_environ_is_completed():
    """The parser adds what the head says and touches nothing else."""
    environ, _ = parse(get(b"/a%20b?c=%20", b"Host: h\r\nAccept: x\r\nX-Y: z\r\nContent-Type: t\r\n", b"PUT"))
    assert environ == BASE | {
        "REQUEST_METHOD": "PUT",
        "RAW_URI": "/a%20b?c=%20",
        "REQUEST_URI": "/a%20b?c=%20",
        "PATH_INFO": "/a b",
        "QUERY_STRING": "c=%20",
        "HTTP_HOST": "h",
        "HTTP_ACCEPT": "x",
        "HTTP_X_Y": "z",
        "CONTENT_TYPE": "t",
    }


def test_dropped_names_are_counted():
    """Names with an underscore are counted, however many there are."""
    stats = Stats(list)
    parse(with_fields(b"X_Y: 1", b"X_Y: 2", b"_: 3", b"X-Y: 4"), stats=stats)
    assert stats.headers_dropped == 3


def test_a_parser_remembers_nothing():
    """Whatever came before it, a head is read as if it were the first."""
    parser = HeadParser(Limits(), Stats(list))
    for data, _, _ in [*BAD, *GOOD]:
        end = data.find(b"\r\n\r\n") + 4
        if end > 3:
            environ = BASE.copy()
            try:
                outcome = environ, parser.parse(data[:end], environ)
            except Refusal as refusal:
                outcome = refusal.status, refusal.reason
            assert outcome == parse(data[:end])


LINE = b"GET /" + b"a" * 50
LIMITS = [
    ({"request_line_bytes": 64}, LINE + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, 1),
    ({"header_field_bytes": 20}, get(b"/" + b"a" * 30, b"Host: h\r\nX: " + b"y" * 17 + b"\r\n"), 431, 1),
    ({"header_field_bytes": 20}, get(b"/", b"Host: h\r\nX: " + b"y" * 15 + b" \t\r\n"), 431, 1),
    ({"header_count": 4}, with_fields(b"A: 1", b"B: 2", b"C: 3"), 431, 1),
    ({"header_count": 4}, b"\r\n" + with_fields(b"A: 1", b"B: 2", b"C: 3"), 431, 1),
    ({"head_bytes": 100}, with_fields(b"X: " + b"y" * 68), 431, 1),
    ({"body_bytes": 3}, with_fields(b"Content-Length: 3"), 413, 1),
]


@pytest.mark.parametrize(("limits", "data", "status", "step"), LIMITS)
def test_limits_are_exact(limits, data, status, step):
    """A head at a limit passes; the same limit one lower refuses it, in one piece and byte by byte."""
    name, value = next(iter(limits.items()))
    assert read(data, limits=Limits(**limits)).refusal is None
    lower = Limits(**{name: value - step})
    assert read(data, limits=lower).refusal[0] == status
    assert read(*(data[index : index + 1] for index in range(len(data))), limits=lower).refusal[0] == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 8192, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 11_000, 431),
        (b"GET /" + b"a" * 8192, 414),
        (b"\r\nGET /" + b"a" * 8192, 414),
        (b"get / HTTP/1.1\r\n", 501),
        (b"GET / HTTP/3.1\r\n", 505),
        (b"GET http://\r\n", 400),
        (b"\r\n\r", 400),
        (b"GET / HTTP/1.1\r\nA\n", 400),
        (b"GET / HTTP/1.1\r\nA\rB", 400),
    ],
)
def test_a_beginning_can_be_hopeless(data, status):
    """What cannot become a good head any more is refused before its end has come."""
    with pytest.raises(Refusal) as caught:
        check_beginning(data, 0, Limits())
    assert caught.value.status == status


class Nothing(dict):
    """A table of names that knows none."""

    def __missing__(self, name):
        raise KeyError(name)


PIECES = st.sampled_from(
    [
        b"Host: h", b"Host:", b"X-A: 1", b"x-a: 2", b"X_A: 3", b"Cookie: a", b"cookie:b ", b"Accept:\t x",
        b"Connection: close",
        b"Content-Length: 3", b"Content-Length: 03", b"Transfer-Encoding: chunked", b"Expect: 100-continue",
        b"Bad name: x", b"Nothing",
        b" folded", b"", b"X:\xff", b"X-\xff: 1", b"a:b:c", b"X: \x01", b"Host: a b", b"Accept: a\nb",
    ]
)  # fmt: skip
LINES = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a%41?b HTTP/1.1", b"GET /a#b HTTP/1.1", b"GET http://h/a HTTP/1.1",
    b"GET / HTTP/1.0", b"X / HTTP/1.1",
     b"GET /\t HTTP/1.1", b"GET /\xff HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET  / HTTP/1.1", b"GET /? HTTP/1.1",
     b"PUT / HTTP/1.2"]
)  # fmt: skip


@settings(deadline=None, max_examples=1000)
@given(LINES, st.lists(PIECES, max_size=5))
def test_both_ways_lead_to_the_same(line, fields):
    """The short way through a head is nothing but a shorter one."""
    head = b"".join(part + b"\r\n" for part in [line, b"Host: h", *fields, b""])
    head = head[: head.index(b"\r\n\r\n") + 4]
    short = parse(head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "_ordinary", lambda text: None)
        patch.setattr(head_module, "_KEYS", Nothing())
        assert parse(head) == short


@pytest.mark.parametrize("second", [GET, b"GET / HTTP/1.1\r\n\r\n", b"X: y\r\n\r\n", b"\r\n"], ids=label)
def test_the_short_way_takes_one_head(second):
    """What ends as a head does and is more than one is left to whoever looks for the first one's end."""
    parser = HeadParser(Limits(), Stats(list))
    assert parser.parse_ordinary(GET, BASE.copy()) == 0
    assert parser.parse_ordinary(GET + second, BASE.copy()) == -1
    assert parser.parse_ordinary(with_fields(b"Expect: x", b"Content-Length: 1") + second, BASE.copy()) == -1


class Referee:
    """llhttp's reading of a head."""

    def __init__(self, head):
        self.fields = []
        self.complete = 0
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        self.method = parser.get_method()

    def on_url(self, url):
        self.url = url

    def on_header(self, name, value):
        self.fields.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self):
        self.complete += 1


KNOWN = (b"GET", b"PUT", b"POST", b"OPTIONS", b"HEAD", b"DELETE")
HEADS = [
    data[: data.index(b"\r\n\r\n") + 4]
    for data in (GET, *(good for good, _, _ in GOOD), *(bad for bad, _, _ in BAD))
    if b"\r\n\r\n" in data and data.startswith(KNOWN) and len(data) < 1000
]


@settings(deadline=None, max_examples=1000)
@given(
    st.sampled_from(HEADS),
    st.lists(
        st.tuples(
            st.integers(0, 200), st.integers(0, 1), st.sampled_from([bytes([byte]) for byte in range(256)] + [b""])
        ),
        max_size=3,
    ),
)
def test_llhttp_agrees(head, damage):
    """What we accept, damaged or not, llhttp in its strict mode accepts too and reads the same."""
    changed = bytearray(head)
    for place, count, piece in damage:
        place %= len(changed) - 4  # its end remains
        changed[place : place + count] = piece
    head = bytes(changed)
    head = head[: head.index(b"\r\n\r\n") + 4]
    environ, _ = parse(head)
    if isinstance(environ, int) or environ["REQUEST_METHOD"].encode() not in KNOWN:
        return  # refused, or a method llhttp does not know
    if b"chunked" in head.lower() and b"\t" in head:
        return  # a legal blank that llhttp does not know there
    referee = Referee(head)
    assert referee.complete == 1
    assert referee.method == environ["REQUEST_METHOD"].encode()
    assert referee.url == environ["RAW_URI"].encode("ascii")
    fields = {}
    for name, value in referee.fields:
        if b"_" not in name:
            key = head_module.environ_key(name.decode("ascii"))
            fields.setdefault(key, []).append(value.decode("latin-1"))
    for key, values in fields.items():
        if key == "CONTENT_LENGTH":
            assert int(environ[key]) == int(values[0])
        elif key != "HTTP_HOST" or not environ["RAW_URI"].lower().startswith("http"):
            assert environ[key] == ("; " if key == "HTTP_COOKIE" else ", ").join(values)
    assert {key for key in environ if key.startswith(("HTTP_", "CONTENT_"))} - {"HTTP_HOST"} == fields.keys() - {
        "HTTP_HOST"
    }


@pytest.mark.parametrize(
    "value", [b"h", b"h:80", b"1.2.3.4:8000", b"a-b.c:1", b"[::1]:80", b"a_b", b"h:65535"], ids=label
)
def test_hosts_of_targets_and_fields_have_one_grammar(value):
    """An authority is accepted in a target when it is accepted as Host, and the other way round."""
    assert parse(get(b"http://" + value + b"/"))[0]["HTTP_HOST"] == parse(host(value))[0]["HTTP_HOST"]
    assert parse(get(b"http://" + value + b"x:/"))[0] == parse(host(value + b"x:"))[0] == 400 or b":" not in value


def test_a_name_of_our_table_is_spelled_by_anyone():
    """The table of known names changes nothing but the time it takes."""
    for name in head_module._NAMES:
        if name in ("Host", "Content-Length", "Transfer-Encoding", "Expect", "Connection"):
            continue
        keys = {tuple(parse(field(spelled.encode() + b": x"))[0]) for spelled in (name, name.lower(), name.upper())}
        assert len(keys) == 1

"""The HTTP engine on a real socket: whatever comes in, what goes out are valid responses or the end.

Each input goes to it twice, in one piece and cut: both must be answered alike. Then the engine must still serve, have
logged nothing but what it says of clients, and hold no connection.
"""

import contextlib
import itertools
import logging
import re
import socket
import threading
import time

from fuzz_inputs import mutated, pieces

from zcluster.http import Engine, Limits

WAIT_S = 20.0  # for an answer that takes a millisecond
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p?q=1 HTTP/1.1\r\nHost: h\r\n"
SAMPLES = (
    GET,
    b"HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /k HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET http://h/a%20b?c HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    POST + b"Content-Length: 5\r\n\r\nhello",
    POST + b"Content-Length: 0\r\n\r\n",
    POST + b"Content-Length: 3000\r\n\r\n" + b"b" * 3000,
    POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"800\r\n" + b"c" * 2048 + b"\r\n0\r\n\r\n",
    POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\nCookie: c=d\r\nX_Y: z\r\nAccept: */*\r\nUser-Agent: f\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A\r\n\r\n",
)
TOKENS = (
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"\0",
        b" ",
        b"\t",
        b":",
        b";",
        b",",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"%",
        b"#",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 300000\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"-1",
        b"+1",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n",
        b"HTTP/1.0",
    ),
    *(
        b"Expect: 100-continue\r\n",
        b"Host: evil\r\n",
        b"X: y\r\n" * 101,
        b"a" * 9000,
        b"ffffffffffffffff\r\n",
        b"HTTP/2.0",
    ),
    *(
        b"\xff",
        b"\xc3\xa9",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"HEAD",
        b"CONNECT",
        b"*",
        b"8" * 70,
    ),
)
LIMITS = {"body_bytes": 1 << 20, "body_memory_bytes": 1000, "linger_s": 1.0}
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [ -~]*")
_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t -~]*")


def answering(environ, start_response):
    """Says which request it was, so that two ways of sending it can be compared."""
    body = environ["wsgi.input"].read()
    said = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {len(body)} {sum(body)}\n".encode("latin-1")
    start_response("200 OK", [("Content-Length", str(len(said))), ("X-Method", environ["REQUEST_METHOD"])])
    return [said]


def responses(data):
    """(status, body) of each response in what the engine sent; AssertionError when it is no sequence of responses.

    The last may be cut: a client that sends nonsense may be left in the middle of it.
    """
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert end, f"half a head: {head[:200]!r}"
        status = _STATUS.fullmatch(lines[0])
        assert status, f"no status line: {lines[0][:200]!r}"
        assert all(map(_FIELD.fullmatch, lines[1:])), f"malformed fields: {head[:500]!r}"
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        code = int(status[1])
        size = 0 if code == 100 or fields.get(b"x-method") == b"head" else int(fields[b"content-length"])
        if code >= 400 and not rest:
            size = 0  # to HEAD
        body, data = rest[:size], rest[size:]
        assert len(body) == size, "half a body"
        found.append((code, body if code == 200 else b""))
    return found


def verdicts(found):
    """What must not depend on where the input was cut.

    Of two faults, what comes in pieces meets the first one first. What is here with its head needs no 100.
    """
    return ["refused" if code >= 400 else body for code, body in found if code != 100]


class Http:
    """Bytes to an engine with two threads and small limits."""

    name = "http"

    def __enter__(self):
        self.lines = []
        log = logging.Logger("fuzz")
        sink = logging.Handler(logging.WARNING)
        sink.emit = lambda record: self.lines.append(logging.Formatter().format(record))
        log.addHandler(sink)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # an abstract name that the kernel chooses
        listener.listen(64)
        self.address = listener.getsockname()
        self.engine = Engine(answering, [listener], log=log, limits=Limits(**LIMITS), threads=2)
        self.thread = threading.Thread(target=self.engine.run, name="engine")
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.engine.drain(quick=True)
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the engine does not end"

    def make(self, random):
        """The pieces of one connection."""
        data = b"".join(random.choice(SAMPLES) for _ in range(random.choice((1, 1, 1, 2, 3, 30))))
        if random.random() < 0.9:
            data = mutated(random, data, TOKENS, SAMPLES)
        return pieces(random, data)

    def run(self, value):
        whole, cut = (responses(self._said(*sent)) for sent in ((b"".join(value),), value))
        assert verdicts(cut) == verdicts(whole), f"in pieces {cut}, in one {whole}"
        assert responses(self._said(GET)) == [(200, b"GET / 0 0\n")], "it does not serve any more"
        assert not self.lines, "\n".join(self.lines)
        end = time.monotonic() + WAIT_S
        pause = threading.Event()
        while self.engine.stats.connections:
            assert time.monotonic() < end, "a connection stays open"
            pause.wait(0.0005)

    def _said(self, *sent):
        """All that the engine answers to these pieces and the end of sending."""
        received = []
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_S)
            client.connect(self.address)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in sent:
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                for _ in itertools.count():
                    data = client.recv(65536)
                    if not data:
                        break
                    received.append(data)
        return b"".join(received)

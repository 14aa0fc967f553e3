"""wsgi.file_wrapper: what leaves by os.sendfile, what does not, and what becomes of the files."""

import contextlib
import gzip
import io
import os
import tempfile
import threading
from pathlib import Path

import pytest
from clients_rig import reset
from django.core.files.base import File as DjangoFile
from http_rig import GET, HEAD_REQUEST, OLD, open_fds, plain, serve, until
from werkzeug.utils import send_file
from werkzeug.wrappers import Request

DATA = os.urandom(1 << 20) * 9


@pytest.fixture
def path(tmp_path):
    """A file on a disk, with DATA in it."""
    path = tmp_path / "data"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def sent(monkeypatch):
    """What os.sendfile is called with; it does its work."""
    calls, real = [], os.sendfile

    def sendfile(out, file, offset, count):
        calls.append((offset, count))
        return real(out, file, offset, count)

    monkeypatch.setattr(os, "sendfile", sendfile)
    return calls


class Closing(io.FileIO):
    """A file that counts how often it is closed."""

    closed_times = 0

    def close(self):
        self.closed_times += not self.closed
        super().close()


def sending(opened, *headers, wrap=None, status="200 OK"):
    """An application that returns what `opened()` gives in a file wrapper."""

    def app(environ, start_response):
        file = opened()
        start_response(status, list(headers))
        return (wrap or environ["wsgi.file_wrapper"])(file)

    return app


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("offset", [0, 1, 5_000_000, len(DATA) - 1])
def test_whole_file(path, sent, offset, threads):
    """A file leaves from its position on, with its length in the head, without passing through Python."""

    def opened():
        file = path.open("rb")
        file.read(offset)
        return file

    with serve(sending(opened), threads=threads) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert response.get("Content-Length") == str(len(DATA) - offset)
            assert response.body == DATA[offset:]
    assert sent[0][0] == offset


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: path.open("rb", buffering=0), True),
        (lambda path: path.open("r+b"), True),
        (lambda path: temporary(tempfile.TemporaryFile()), True),  # noqa: SIM115 (the application's response closes it)
        (lambda path: temporary(tempfile.NamedTemporaryFile()), True),  # noqa: SIM115
        (lambda path: temporary(tempfile.SpooledTemporaryFile()), False),  # noqa: SIM115
        (lambda path: DjangoFile(path.open("rb")), True),
        (lambda path: DjangoFile(io.BytesIO(DATA)), False),
        (lambda path: io.BytesIO(DATA), False),
        (lambda path: OnlyRead(path), False),
        (lambda path: Own(path), False),
    ],
    ids=[
        "raw",
        "random",
        "temporary",
        "named",
        "spooled",
        "django",
        "django-memory",
        "memory",
        "read-only",
        "own-read",
    ],
)
def test_kinds_of_files(path, sent, make, expected):
    """Only what is a plain file, and is read as one, is left to the kernel; the client gets the same of all."""
    with serve(sending(lambda: make(path)), threads=4) as rig:
        client = rig.client()
        assert [client.request(GET).body == DATA for _ in range(2)] == [True, True]
    assert bool(sent) is expected


def temporary(file):
    """DATA in a temporary file."""
    file.write(DATA)
    file.seek(0)
    return file


class OnlyRead:
    """All that PEP 3333 asks of a file-like object."""

    def __init__(self, path):
        self._blocks = io.BytesIO(path.read_bytes())

    def read(self, size=-1):
        return self._blocks.read(size)


class Own(io.FileIO):
    """A file with a way of reading of its own."""

    def read(self, size=-1):
        return super().read(size)  # it might as well decrypt


def test_compressed_file_is_decompressed(tmp_path, sent):
    """A reader that has a descriptor but gives other bytes than are in the file is iterated over."""
    path = tmp_path / "data.gz"
    path.write_bytes(gzip.compress(DATA[:100_000]))
    with serve(sending(lambda: gzip.open(path)), threads=4) as rig:
        assert rig.client().request(GET).body == DATA[:100_000]
    assert not sent


@pytest.mark.parametrize("name", ["/proc/self/cmdline", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_that_do_not_know_their_size(name):
    """Files of the kernel say that they are empty, or a page long; what they hold is sent."""
    path = Path(name)
    if not path.exists():
        path = Path("/proc/self/status")
    with serve(sending(lambda: path.open("rb")), threads=4) as rig:
        response = rig.client().request(GET)
        assert response.status == 200
        assert response.body[:9] == path.read_bytes()[:9] != b""


def test_pipe():
    """What comes out of a pipe is sent as it comes."""

    def opened():
        reader, writer = os.pipe()
        os.write(writer, b"through a pipe")
        os.close(writer)
        return open(reader, "rb")

    with serve(sending(opened), threads=4) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(GET)
            assert (response.body, response.get("Transfer-Encoding")) == (b"through a pipe", "chunked")


@pytest.mark.parametrize("request_", [HEAD_REQUEST, GET], ids=["head", "get"])
@pytest.mark.parametrize("length", [0, 1, 1_000_000, len(DATA)])
def test_content_length_of_a_part(path, sent, length, request_):
    """With a Content-Length up to the file's, that much of it is sent; to HEAD nothing is."""
    with serve(sending(lambda: path.open("rb"), ("Content-Length", str(length))), threads=4) as rig:
        client = rig.client()
        for _ in range(2):
            response = client.request(request_, head_only=request_ is HEAD_REQUEST)
            assert response.get("Content-Length") == str(length)
            assert response.body == (DATA[:length] if request_ is GET else b"")
    if request_ is HEAD_REQUEST:
        assert not sent


def test_content_length_beyond_the_file(path):
    """With a longer Content-Length the connection is cut behind the file, and it is logged."""
    with serve(sending(lambda: path.open("rb"), ("Content-Length", str(len(DATA) + 7))), threads=4) as rig:
        with pytest.raises((EOFError, ConnectionResetError)):
            rig.client().request(GET)
        assert "gave 7 bytes less than its Content-Length" in str(rig.log)


def test_status_without_a_body(path, sent):
    """A 304 sends nothing of the file."""
    with serve(sending(lambda: path.open("rb"), status="304 Not Modified"), threads=4) as rig:
        client = rig.client()
        assert client.request(GET, head_only=True).status == 304
        assert client.request(GET, head_only=True).status == 304
    assert not sent


def test_empty_file(tmp_path):
    """An empty file is an empty response."""
    (tmp_path / "empty").touch()
    with serve(sending(lambda: (tmp_path / "empty").open("rb")), threads=4) as rig:
        client = rig.client()
        assert [client.request(GET).body for _ in range(2)] == [b"", b""]


def test_old_client(path):
    """A client of HTTP/1.0 gets the file, and the end."""
    with serve(sending(lambda: path.open("rb")), threads=4) as rig:
        client = rig.client()
        response = client.request(OLD)
        assert (response.get("Content-Length"), response.body == DATA) == (str(len(DATA)), True)
        assert client.at_end()


def test_werkzeug_and_ranges(path, sent):
    """Werkzeug's send_file: whole by sendfile, ranges and conditions as Werkzeug makes them."""

    with serve(Request.application(lambda request: send_file(path, request.environ, conditional=True)),
               threads=4) as rig:  # fmt: skip
        client = rig.client()
        response = client.request(GET)
        assert response.body == DATA
        assert sent
        for range_, part in (
            (b"0-0", DATA[:1]), (b"100-5000000", DATA[100:5_000_001]), (b"9000000-", DATA[9_000_000:]),
        ):  # fmt: skip
            answer = client.request(GET[:-2] + b"Range: bytes=" + range_ + b"\r\n\r\n")
            assert (answer.status, answer.body == part) == (206, True)
        again = GET[:-2] + b"If-None-Match: " + response.get("ETag").encode() + b"\r\n\r\n"
        assert client.request(again).status == 304
        assert client.request(GET[:-2] + b"Range: bytes=99999999-\r\n\r\n").status == 416
        assert client.request(HEAD_REQUEST, head_only=True).get("Content-Length") == str(len(DATA))
        assert client.request(GET).body == DATA


@pytest.mark.parametrize("request_", [GET, HEAD_REQUEST])
def test_file_is_closed_once(path, request_):
    """The file is closed once, as soon as the application is through, although the client has not read it yet."""
    files = []

    def opened():
        files.append(Closing(path))
        return files[-1]

    with serve(sending(opened), threads=4) as rig:
        client = rig.client().send(request_)
        until(lambda: rig.stats.requests == 1, "the request's end")
        assert [file.closed_times for file in files] == [1]
        assert client.receive(head_only=request_ is HEAD_REQUEST).get("Content-Length") in (str(len(DATA)), None)
    assert [file.closed_times for file in files] == [1]


def test_wrapper_behind_a_middleware(path):
    """A wrapper that a middleware has wrapped again is an iterable like others, and closed."""
    files, closed = [], []

    class Outer:
        def __init__(self, inner):
            self._inner = inner

        def __iter__(self):
            return iter(self._inner)

        def close(self):
            closed.append(True)
            self._inner.close()

    def app(environ, start_response):
        files.append(Closing(path))
        start_response("200 OK", [])
        return Outer(environ["wsgi.file_wrapper"](files[-1], 8192))

    with serve(app, threads=4) as rig:
        assert rig.client().request(GET).body == DATA
    assert (closed, files[0].closed_times) == ([True], 1)


def test_write_and_then_a_file(path):
    """What was written comes before the file."""

    def app(environ, start_response):
        start_response("200 OK", [])(b"first")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    with serve(app, threads=4) as rig:
        assert rig.client().request(GET).body == b"first" + DATA


@pytest.mark.parametrize("threads", [1, 4])
def test_truncated_while_it_is_sent(path, threads):
    """A file that becomes shorter cuts the connection, with a reset, and the operator is told."""
    with serve(sending(lambda: path.open("rb")), threads=threads) as rig:
        client = rig.client().send(GET)
        until(lambda: rig.stats.requests == 1, "the request's end")
        os.truncate(path, 10)
        with pytest.raises((EOFError, ConnectionResetError)):
            client.receive()
        until(lambda: "became shorter while it was sent" in str(rig.log), "the log")
        assert rig.client().request(GET).body == DATA[:10]


def test_pipeline_behind_a_file(path):
    """Requests that came with the one for a file are answered behind it."""
    app = sending(lambda: path.open("rb"))
    with serve(lambda e, s: (app if e["PATH_INFO"] == "/" else plain(b"next"))(e, s), threads=4) as rig:
        client = rig.client().send(GET + GET.replace(b"/", b"/next", 1) + GET)
        assert [client.receive().body for _ in range(3)] == [DATA, b"next", DATA]


@pytest.mark.parametrize("threads", [1, 8])
def test_many_downloads_at_once(path, threads):
    """A hundred clients load the file at once, and half of them leave in the middle: no descriptor is left."""
    with serve(sending(lambda: path.open("rb")), threads=threads) as rig:
        before = set(os.listdir("/proc/self/fd"))
        clients = [rig.client().send(GET) for _ in range(100)]
        until(lambda: rig.stats.requests == 100, "all requests")
        assert sum(str(path) == name for name in open_fds().values()) == 100
        for client in clients[::2]:
            client.sock.recv(1000)
            reset(client)
        readers = [threading.Thread(target=read_all, args=(clients[at::8],)) for at in (1, 3, 5, 7)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert all(client.whole for client in clients[1::2])
        for client in clients:
            client.close()
        until(lambda: set(os.listdir("/proc/self/fd")) <= before, "all descriptors' end")


def read_all(clients):
    for client in clients:
        client.whole = False
        with contextlib.suppress(OSError, EOFError):
            client.whole = client.receive().body == DATA

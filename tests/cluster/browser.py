"""What the tests of Flask and Django see a cluster with: a client with one keep-alive connection and a cookie jar."""

import http.client
import json
import os
import secrets
import select
import socket
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from pathlib import Path

from harness import running, wait_for

SMALL, LARGE = 1000, 5 << 20  # bytes of a file: in one read with its head, and far more than any buffer on the way
NO_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


@dataclass
class Reply:
    """A whole response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        assert self.headers.get_content_type() == "application/json", self
        return json.loads(self.body)


class Browser:
    """Sends every request on the one connection it has: a server that closes it fails the test."""

    def __init__(self, address):
        self.connection = http.client.HTTPConnection(*address, timeout=20)
        self.connection.connect()
        self.connection.auto_open = 0
        self.cookies = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def ask(self, method, path, body=None, headers=None, chunked=False):
        """Send a request."""
        fields = dict(headers or {})
        if self.cookies:
            fields["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
        self.connection.request(method, path, body=body, headers=fields, encode_chunked=chunked)

    def answer(self):
        """The response to what was asked, its body unread."""
        response = self.connection.getresponse()
        for line in response.headers.get_all("Set-Cookie", []):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.coded_value
        return response

    def send(self, method, path, body=None, headers=None, chunked=False):
        """Send a request and return its whole reply."""
        self.ask(method, path, body, headers, chunked)
        return self.reply()

    def reply(self):
        """The whole response to what was asked."""
        response = self.answer()
        return Reply(response.status, response.headers, response.read())

    def begin(self, path):
        """GET, and return the response with its body unread."""
        self.ask("GET", path)
        return self.answer()

    def get(self, path, **headers):
        """GET; `If_Range="x"` is the field If-Range."""
        return self.send("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})


def form(fields, files, token=""):
    """A multipart form with these fields and {file name: bytes} as "file": its body and its headers."""
    mark = secrets.token_hex(16)
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, data in files.items():
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n")
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    if token:
        headers["X-CSRFToken"] = token
    return b"".join(parts) + f"--{mark}--\r\n".encode(), headers


def pieces(data, size=30_000):
    """The data in pieces, for a chunked request."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@contextmanager
def one_per_worker(cluster, path="/who"):
    """A browser on each worker: connections are opened, and kept, until every worker holds one."""
    workers = len(cluster.workers())
    opened, by_pid = [], {}

    def found():
        opened.append(Browser(cluster.address))
        by_pid.setdefault(opened[-1].get(path).json["pid"], opened[-1])
        return len(by_pid) == workers

    try:
        wait_for(found, what=f"a connection on each of {workers} workers")
        yield list(by_pid.values())
    finally:
        for browser in opened:
            browser.connection.close()


def break_off(cluster, path, chunked=False, reset=False):
    """Put the first of 5 MiB, and go away: with a FIN, or a reset."""
    with cluster.connect() as client:
        framing = "Transfer-Encoding: chunked\r\n\r\n500000" if chunked else f"Content-Length: {LARGE}\r\n"
        client.sendall(f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{framing}\r\n".encode() + bytes(1 << 20))
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def with_consent(cluster, path, data, chunked=False):
    """Put as curl does it, with more patience: the body goes when the server has said 100 (Continue), or nothing.

    Returns whether the server consented, and its reply.
    """
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(data)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if chunked else data
    with cluster.connect(20.0) as client:
        client.sendall(
            f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\n{framing}\r\n\r\n".encode()
        )
        readable, _, _ = select.select([client], [], [], 10.0)
        start = client.recv(12, socket.MSG_PEEK) if readable else b""
        if start in (b"", b"HTTP/1.1 100"):
            client.sendall(body)
        response = http.client.HTTPResponse(client)
        response.begin()  # it passes over the 100
        return start == b"HTTP/1.1 100", Reply(response.status, response.headers, response.read())


def open_files(cluster, folder):
    """The files below `folder` that workers have open."""
    found = []
    for worker in cluster.workers():
        for entry in os.listdir(f"/proc/{worker['pid']}/fd"):
            try:
                target = os.readlink(f"/proc/{worker['pid']}/fd/{entry}")
            except FileNotFoundError:  # closed while we looked
                continue
            if Path(target).is_relative_to(folder):
                found.append(target)
    return found


class Site:
    """A cluster that runs one of the framework apps, and the folder that it works in."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder

    def browser(self):
        return Browser(self.cluster.address)

    def open_gate(self, name):
        (self.folder / f"gate-{name}").touch()

    def note(self, name, timeout_s=15.0):
        """What the app has written down, once it has."""
        path = self.folder / f"note-{name}"
        wait_for(path.exists, timeout_s, f"{path}; log:\n{self.cluster.log}")
        return path.read_text()

    def idle(self):
        """Wait until no worker has a request in hand."""
        wait_for(lambda: not any(w["inflight"] for w in self.cluster.workers()), what="no request in flight")

    def log_since(self, mark):
        """What was logged since the log had this length."""
        return self.cluster.log[mark:]


def environment(folder):
    """What the apps read from their environment."""
    (folder / "files").mkdir(exist_ok=True)
    return {"FOLDER": str(folder), "SECRET_KEY": "fixed, so that every worker can read what another one signed"}


@contextmanager
def serving(app, folder, *options, env=None, **more):
    """Run the app; whatever the tests did to it, the engine must never have had to report a bug of its own."""
    with running(app, *options, env={**environment(folder), **(env or {})}, **more) as cluster:
        yield Site(cluster, folder)
        assert "internal error" not in cluster.log, cluster.log

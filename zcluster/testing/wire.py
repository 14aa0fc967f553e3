"""Werkzeug's test client over a real socket: `client.get("/", json=...)` asks a server and returns a `TestResponse`.

Theory of operation. Werkzeug's client makes a WSGI environ of its arguments and calls an application with it. Ours is
given an application that writes the environ to a connection as a request, and returns what comes back: so arguments,
cookies, redirects and files work as they do in Werkzeug, because they are Werkzeug's.

Invariant: a request is sent once. A connection that was closed while it was idle is not used for another one; one
that breaks under a request, or a body that ends too early, is an error that the test sees.
"""

import http.client
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self
from urllib.parse import quote, unquote_to_bytes, urlsplit

from werkzeug.datastructures import EnvironHeaders
from werkzeug.test import Client, TestResponse
from werkzeug.urls import iri_to_uri

TIMEOUT_S: Final = 30.0  # of each read and write: longer than anything healthy takes, shorter than a test run
READ_BYTES: Final = 1 << 16
IDLE_MAX: Final = 64  # connections kept open between requests: as many as a test has threads that ask at once

_BODILESS: Final = ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE")
_PATH_SAFE: Final = "/!$&'()*+,:;=@~"  # RFC 3986 section 3.3: what a path may hold as it is


def connect(url: str, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Return a socket connected to a URL as `Cluster.urls` holds them; over TLS when it says https.

    No certificate is checked: a test's is its own. Raises `OSError`.
    """
    if url.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(url.removeprefix("unix:"))
        except BaseException:
            sock.close()
            raise
        return sock
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname or "", parts.port or 80), timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    if parts.scheme != "https":
        return sock
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        return context.wrap_socket(sock, server_hostname=parts.hostname)
    except BaseException:
        sock.close()
        raise


class _Connection(http.client.HTTPConnection):
    """A connection of the standard library's client, made by the function above."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._url, self._timeout_s = url, timeout_s

    def connect(self) -> None:
        self.sock = connect(self._url, self._timeout_s)

    def is_usable(self) -> bool:
        """Whether the server has left an idle connection open: neither closed it nor written to it unasked."""
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        return not poller.poll(0)


class _Body:
    """What is left of a response on its connection, which is given back at its end. One thread at a time."""

    def __init__(self, response: http.client.HTTPResponse, give_back: Callable[[bool], None]) -> None:
        self._response = response
        self._give_back = give_back

    def __iter__(self) -> Iterator[bytes]:
        while part := self._response.read1(READ_BYTES):
            yield part
        if self._response.length:  # read1 does not tell the end of the body from the end of the connection
            raise http.client.IncompleteRead(b"", self._response.length)

    def close(self) -> None:
        left = self._response.length  # None: chunked, or up to the end of the connection
        at_end = self._response.isclosed() if left is None else left == 0
        self._response.close()
        self._give_back(at_end and not self._response.will_close)


class WireClient(Client):
    """A `werkzeug.test.Client` whose application is a server, asked over connections that are kept open.

    Differs from Werkzeug's in this: the host and the cookies' domain are the server's unless you say otherwise;
    bodies are read to their end at once, unless you say `buffered=False`. Any thread may use it; requests that
    overlap have connections of their own, all others share one. A connection that fails raises `OSError` or
    `http.client.HTTPException`.
    """

    def __init__(self, url: str, *, use_cookies: bool = True, timeout_s: float = TIMEOUT_S) -> None:
        """`url`: as in `Cluster.urls`; `timeout_s`: of each read and write."""
        super().__init__(self._ask, use_cookies=use_cookies)
        self.url, self.timeout_s = url, timeout_s
        self._base_url = "http://localhost" if url.startswith("unix:") else url
        self._host = urlsplit(self._base_url).hostname or "localhost"
        self._lock = threading.Lock()  # guards what follows
        self._idle: list[_Connection] = []
        self._bodies: set[_Body] = set()  # that have a connection
        self._closed = False

    def __repr__(self) -> str:
        return f"<WireClient {self.url}>"

    def open(self, *args: Any, buffered: bool = True, follow_redirects: bool = False, **kwargs: Any) -> TestResponse:
        """Send a request and return the response; the arguments are those of `werkzeug.test.EnvironBuilder`."""
        if len(args) <= 1 and all(isinstance(path, str) for path in args):
            parts = urlsplit(args[0] if args else kwargs.get("path", "/"))
            named = f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else ""
            kwargs.setdefault("base_url", named or self._base_url)
        return super().open(*args, buffered=buffered, follow_redirects=follow_redirects, **kwargs)

    def get_cookie(self, key: str, domain: str = "", path: str = "/") -> Any:
        """Return a cookie by domain (default: the server's), path and name, or None."""
        return super().get_cookie(key, domain or self._host, path)

    def set_cookie(self, key: str, value: str = "", *, domain: str = "", **kwargs: Any) -> None:
        """Send a cookie with the next requests to this domain (default: the server's)."""
        super().set_cookie(key, value, domain=domain or self._host, **kwargs)

    def delete_cookie(self, key: str, *, domain: str = "", path: str = "/") -> None:
        """Forget a cookie of this domain (default: the server's)."""
        super().delete_cookie(key, domain=domain or self._host, path=path)

    def close(self) -> None:
        """Close all connections, also that of a response not read to its end; a second call does nothing."""
        with self._lock:
            self._closed, unfinished = True, list(self._bodies)
        for body in unfinished:
            body.close()
        self.close_idle()

    def close_idle(self) -> None:
        """Close the connections that no request uses; the next request opens one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *what: object) -> None:
        self.close()

    # ---- the application -------------------------------------------------------------------------------------------
    def _ask(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        connection = self._take()
        broken: OSError | None = None
        try:
            try:
                _send(connection, environ)
            except (BrokenPipeError, ConnectionResetError) as error:
                broken = error  # a server that wants no more of the request may have said why (413)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            if broken is not None:
                raise broken from None
            raise
        start_response(f"{response.status} {response.reason}", response.getheaders())
        body = _Body(response, lambda at_end: self._give_back(body, connection, at_end and broken is None))
        with self._lock:
            self._bodies.add(body)
        return body

    def _take(self) -> _Connection:
        while True:
            with self._lock:
                if self._closed:
                    raise ValueError("this client is closed; a cluster's is when the cluster has ended")
                if not self._idle:
                    return _Connection(self.url, self.timeout_s)
                connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()

    def _give_back(self, body: _Body, connection: _Connection, reusable: bool) -> None:
        with self._lock:
            if body not in self._bodies:
                return  # closed a second time: the connection may be another's by now
            self._bodies.remove(body)
            if reusable and not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append(connection)
                return
        connection.close()


def _send(connection: http.client.HTTPConnection, environ: dict[str, Any]) -> None:
    method = environ["REQUEST_METHOD"]
    connection.putrequest(method, _target(environ), skip_host=True, skip_accept_encoding=True)
    chunked = environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
    length = environ.get("CONTENT_LENGTH") or "0"
    for name, value in EnvironHeaders(environ):
        # Werkzeug tells the length of everything; a browser neither of what is chunked nor of nothing at all.
        if name != "Content-Length" or not (chunked or (length == "0" and method in _BODILESS)):
            connection.putheader(name, value)
    body = environ["wsgi.input"] if chunked or length != "0" else None
    connection.endheaders(body, encode_chunked=chunked)


def _target(environ: dict[str, Any]) -> str:
    """The path as the test has written it, where it stands for the environ's; and the query."""
    path = (environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]).encode("latin-1")
    written = iri_to_uri(urlsplit(environ.get("REQUEST_URI", "")).path)
    target = written if unquote_to_bytes(written) == path else quote(path, safe=_PATH_SAFE)
    query = environ.get("QUERY_STRING", "")
    return f"{target or '/'}?{query}" if query else target or "/"

"""TLS on an accepted connection, in the manner of a non-blocking socket.

Invariant: what a `send` has counted is in the kernel, and what it has not counted must be given again: the same
promise as of a plain socket, so that the engine's rules for slow clients hold unchanged.

Theory of operation. OpenSSL does the handshake inside the first `recv`s, piece by piece as the client's bytes come;
the loop never waits for it. Three things differ from a plain socket:

- A `recv` may have to *write* (a flight of the handshake, the answer to a key update) and find the socket full:
  `wants_write` then tells the loop to watch for that too.
- Bytes may wait inside OpenSSL, where epoll does not see them: `pending()`. A read takes one record, so after a
  `recv` of RECORD_BYTES or more there are none.
- OpenSSL encrypts a record, may get rid of only a part, and wants to be called again with the very same bytes (else
  BAD_LENGTH or BAD_WRITE_RETRY, and the connection is lost). But the engine may come back with less: what did not
  leave is cut anew between memory and file. So the record that is stuck is kept here (`_stuck`), and what it carried
  beyond the bytes that were given again is taken off the calls that follow (`_ahead`).

One thread at a time uses a connection; OpenSSL does not look after itself. Only `shutdown(SHUT_RDWR)` may come from
another: it does not touch OpenSSL.
"""

import socket
import ssl
from collections.abc import Iterable
from typing import Final

RECORD_BYTES: Final = 16384  # the most that one record carries (RFC 8446 section 5.1)
SEND_BYTES: Final = 1 << 18  # per call: sixteen records; encrypting them takes a tenth of a millisecond

_PLAIN_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 43\r\nConnection: close\r\n\r\n"
    b"This port speaks TLS; use https:// instead\n"
)


def wrap(context: ssl.SSLContext, sock: socket.socket) -> "TlsSocket":
    """Return `sock`, accepted and non-blocking, as a server's end of TLS; nothing is sent or received yet.

    `sock` is taken over. A client that has gone already is found by `recv`. Raises ConnectionAbortedError when
    OpenSSL refuses (no memory); it is closed then.
    """
    sock.setblocking(False)
    context.sslsocket_class = TlsSocket
    try:
        wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    except (OSError, ValueError) as error:
        sock.close()  # nothing, where the new object had taken over and closed it
        raise ConnectionAbortedError(_reason(error)) from None
    assert isinstance(wrapped, TlsSocket)
    return wrapped


def tls_environ(sock: "TlsSocket") -> dict[str, str]:
    """What TLS adds to the environ of a request, in the names of Apache's mod_ssl; call it after the handshake."""
    cipher = sock.cipher()
    return {
        "wsgi.url_scheme": "https",
        "HTTPS": "on",
        "SSL_PROTOCOL": sock.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_SESSION_RESUMED": "Resumed" if sock.session_reused else "Initial",
    }


class TlsSocket(ssl.SSLSocket):
    """A connection with TLS; made by `wrap`. What is not said here is as with `socket.socket`.

    The methods of `ssl.SSLSocket` that are not overridden answer for its state (`version`, `cipher`, ...).
    """

    tls: Final = True
    wants_write = False  # the last `recv`, or the end, has to write before it can go on
    _stuck = b""  # a record that OpenSSL has begun to write
    _ahead = 0  # bytes that left with such a record before `send` was given them again
    _ended = False  # we have said close_notify: what still comes is not read as TLS any more

    def recv(self, buflen: int = RECORD_BYTES, flags: int = 0) -> bytes:
        """Return what one record brought; b"" at the client's end, orderly or not.

        Raises BlockingIOError when it has to wait, for the socket to be writable if `wants_write`; and
        ConnectionAbortedError with a few words when this is no TLS, or not such as we speak. After `shutdown` it
        returns what comes as it comes, for who only waits for the end.
        """
        if self._ended:
            if self.wants_write and self._say_end():
                socket.socket.shutdown(self, socket.SHUT_WR)
            return socket.socket.recv(self, buflen, flags)
        self.wants_write = False
        try:
            return self.read(buflen)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            raise BlockingIOError from None
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                self._answer_in_plain()
            raise ConnectionAbortedError(_reason(error)) from None
        except (
            ValueError
        ):  # there is no TLS on it: closed, or the client had gone before `wrap` (which looks by recv)
            return b""

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:  # type: ignore[override]
        """Encrypt and send; return how many bytes have left.

        Raises BlockingIOError when none could, OSError when the client has gone. The bytes that were not taken must
        be the next ones given, in pieces of any size.
        """
        view = memoryview(data)[:SEND_BYTES]
        done = min(self._ahead, len(view))
        self._ahead -= done
        while done < len(view):
            record = self._stuck or bytes(view[done : done + RECORD_BYTES])
            try:
                self.write(record)
            except ssl.SSLWantWriteError:
                self._stuck = record
                if done:
                    return done
                raise BlockingIOError from None
            except ssl.SSLWantReadError:  # before the handshake: who waits for the socket to be writable would spin
                raise ConnectionAbortedError("a response before the handshake") from None
            except (ssl.SSLError, ValueError) as error:
                raise ConnectionAbortedError(_reason(error)) from None
            self._stuck = b""
            given = min(len(record), len(view) - done)
            self._ahead = len(record) - given
            done += given
        return done

    def sendmsg(self, buffers: Iterable[bytes | bytearray | memoryview]) -> int:  # type: ignore[override]
        """`send` for several buffers, as if they were one: a response's head shares its body's first record."""
        room, parts = SEND_BYTES, []
        for buffer in buffers:
            parts.append(memoryview(buffer)[:room])
            room -= len(parts[-1])
        return self.send(b"".join(parts))

    def has_unread(self) -> bool:
        """Tell whether bytes (not an end) wait, here or in the kernel; they may be TLS's own."""
        try:
            return bool(self.pending() or socket.socket.recv(self, 1, socket.MSG_PEEK))
        except OSError:
            return False

    def shutdown(self, how: int) -> None:
        """SHUT_WR ends orderly: close_notify and then the TCP end. SHUT_RDWR cuts.

        When the socket is full, `wants_write` is true after SHUT_WR, and `recv` brings it to its end.

        The first is for the owner, the second for any thread. `close` alone cuts too: without close_notify a client
        does not take what it has for a whole response.
        """
        if how == socket.SHUT_WR and not self._ended:
            self._ended = True
            # With a record that is stuck there is no orderly end: it would stand in the midst of it.
            if not self._stuck and not self._say_end():
                return
        socket.socket.shutdown(self, how)

    def _say_end(self) -> bool:
        """Send close_notify; False when it has to wait for the socket to be writable."""
        try:
            self.unwrap()  # it also looks for the client's own, which need not have come
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return False
        except (OSError, ValueError):
            pass  # said, or the client has gone and will not miss it
        self.wants_write = False
        return True

    def _answer_in_plain(self) -> None:
        """A browser was sent to http://: OpenSSL sends no alert then, so that we may say it (as nginx and Apache)."""
        try:
            socket.socket.send(self, _PLAIN_ANSWER)
            socket.socket.shutdown(self, socket.SHUT_WR)
            socket.socket.recv(self, 65536)  # closing with unread bytes would reset it, and lose the answer
        except OSError:
            pass  # it has gone, and misses nothing


def _reason(error: BaseException) -> str:
    """A few words for a log or a statistic: OpenSSL's own, "NO_SHARED_CIPHER", are the ones to search for."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or error.strerror or 'failed').lower().replace('_', ' ')}"
    return str(error)

"""What the tests of slow and broken clients have in common."""

import io
import socket
import struct

from http_rig import echo, open_fds

PART = bytes(range(256)) * 1024  # 256 KiB: what is collected at most
BODY = PART + b"the rest\nof it, in\nlines\n" * 9999
CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(length, fields=b"", path=b"/"):
    """The head of a request with a body of this length."""
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (path, fields, length)


def reset(client):
    """Leave without a word."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def patience(rig):
    """How many threads may begin to wait for a client now."""
    return len(rig.engine._crew._patience)


def temporary_files(rig):
    """How many unnamed files are open since the engine was made."""
    new = open_fds().items() - rig.fds_before.items()
    return sum("deleted" in name for _, name in new)


def is_streamed(environ):
    """Whether the application reads from the client rather than from memory or a file."""
    return type(environ["wsgi.input"]) is io.BufferedReader


def noting(seen, app=echo):
    """`app`, with `is_streamed` of each request noted in `seen`."""

    def noted(environ, start_response):
        seen.append(is_streamed(environ))
        return app(environ, start_response)

    return noted

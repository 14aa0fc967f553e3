"""An application whose requests block in known ways, each answering with the token it was asked with."""

import contextlib
import os
import socket
import struct
import sys
import threading
import time

from http_rig import DEADLINE_S, Client, Rig, until

RUNNING = []  # engines, for the children that their applications fork
os.register_at_fork(after_in_child=lambda: [engine.close_in_child() for engine in RUNNING])
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


LEAVES, EXITS, RAISES, RETURNS = range(4)  # what a forked child does


class Gate:
    """Requests stand before it until it is opened."""

    def __init__(self):
        self.standing = []
        self._open = threading.Event()

    def pass_by(self, name):
        self.standing.append(name)
        assert self._open.wait(DEADLINE_S), "nobody opened the gate"

    def open(self):
        self._open.set()


class Application:
    """GET /WHAT/MILLISECONDS/TOKEN answers with the token.

    slow: waits so long, then answers; stream: gives the token in ten pieces in that time; gate: stands before the
    gate of that number, and so does wall, which nobody expects to block; exit: leaves with that code when gate 0
    opens; fork: forks, what the child does then is its number's business; length: reads a body, and answers with its
    length. Anything else answers at once.
    """

    def __init__(self):
        self.gates = {}
        self.threads = {}  # by token: who ran it
        self.children = []

    def gate(self, number):
        return self.gates.setdefault(str(number), Gate())

    def __call__(self, environ, start_response):
        _, what, number, token = environ["PATH_INFO"].split("/")
        self.threads[token] = threading.current_thread().name
        if what == "slow":
            pause(int(number) / 1000)
        elif what in ("gate", "wall"):
            self.gate(number).pass_by(token)
        elif what == "exit":
            self.gate(0).pass_by(token)
            sys.exit(int(number))
        elif what == "fork":
            self._fork(int(number))
        elif what == "length":
            token = str(len(environ["wsgi.input"].read()))
        body = token.encode()
        if what == "stream":
            start_response("200 OK", [("Content-Length", str(len(body) * 10))])
            return self._pieces(int(number) / 10_000, body)
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def _fork(self, way):
        child = os.fork()
        if child:
            self.children.append((way, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        elif way == LEAVES:
            os._exit(5)
        elif way == EXITS:
            sys.exit(6)
        elif way == RAISES:
            raise ValueError("in the child")

    def _pieces(self, seconds, body):
        for _ in range(10):
            pause(seconds)
            yield body


def pause(seconds):
    """Wait without computing, as a request to a database does."""
    threading.Event().wait(seconds)


class OwnershipRig(Rig):
    """A rig with that application, and requests that run where a test wants them."""

    def __init__(self, *, threads=8, **options):
        super().__init__(Application(), options={"threads": threads, **options})

    def __enter__(self):
        super().__enter__()
        RUNNING.append(self.engine)
        return self

    def __exit__(self, *error):
        for gate in self.app.gates.values():
            gate.open()
        super().__exit__(*error)
        RUNNING.remove(self.engine)

    def forget(self):
        """Only fast requests are known: the next slow one begins inline, and its leader is relieved."""
        predictor = self.engine._shared.predictor
        predictor._forget()
        now = time.monotonic()
        predictor.learn("SLOW", "/once", now, slow=True)  # else it would not learn what is fast
        for path in ("/fast/0/x", "/one/x", "/other/x") * 8:
            predictor.learn("GET", path, now, slow=False)

    def expect_slow(self, *whats):
        """Requests of this kind are known to block: they run in a thread beside the loop."""
        predictor = self.engine._shared.predictor
        for what in whats:
            for _ in range(8):
                for number in ("0", "10", "30"):
                    predictor.learn("GET", f"/{what}/{number}/x", time.monotonic(), slow=True)

    def place(self, where):
        """`relieved` or `pool`."""
        self.forget()
        if where == "pool":
            self.expect_slow("slow", "stream", "gate", "exit", "fork")

    def standing(self, number, count=1):
        """Wait until so many requests stand before this gate."""
        gate = self.app.gate(number)
        until(lambda: len(gate.standing) >= count, f"{count} requests before gate {number}")
        return gate

    def cpu_s(self):
        """What the engine's threads have computed."""
        used_s = 0.0
        for thread in threading.enumerate():
            if thread is self.thread or thread.name.startswith("zcluster-http"):
                with contextlib.suppress(OSError):  # it has ended
                    used_s += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return used_s

    def descriptors(self):
        """Of open connections, as the engine knows them."""
        return set(self.engine._shared.connections)


def after(began, milliseconds):
    """Wait until so much time has passed since then."""
    until(lambda: (time.monotonic() - began) * 1000 >= milliseconds, "the moment")


def get(what, number, token):
    """The bytes of a request."""
    return f"GET /{what}/{number}/{token} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def answer_of(what, token):
    """The body it is answered with."""
    return token.encode() * (10 if what == "stream" else 1)


def reset(client: Client):
    """End the connection with a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()


def half_close(client: Client):
    """Send FIN and go on reading."""
    client.sock.shutdown(socket.SHUT_WR)

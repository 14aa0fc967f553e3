"""What all connections of one engine share.

Invariant: everything here belongs to the thread that leads, except `stats`, which others may read, `draining`, which
others may set (and nobody clears), and what a thread needs that runs a request: `app`, `limits`, `log`, `access`,
`date`, `crew`, `predictor` and `come_back`.
"""

import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol
from wsgiref.types import WSGIApplication

from .crew import Crew
from .head import HeadParser
from .limits import Limits
from .predictor import Predictor
from .stats import Stats

if TYPE_CHECKING:
    from .connection import Connection

SERVER = "zcluster"


class Access(Protocol):
    """Who is told of every request that was answered; called by any thread, must neither wait nor raise."""

    def note(self, environ: dict[str, object], line: str, fields: str, sent_bytes: int, duration_s: float, /) -> None:
        """One exchange: its environ, the status line and header fields of the response, both with their CR LF."""


class Crowd(Protocol):
    """What engines on the same listeners tell each other; used by the leader only."""

    def settle(self, connections: int, /) -> None:
        """So many are open here now."""

    def fuller(self) -> bool:
        """Whether somebody who accepts has fewer."""

    def waited(self) -> None:
        """Somebody had fewer, but did not take the connection that was left to him."""

    def open(self, accepting: bool, /) -> None:
        """Whether this one accepts at all."""


class Shared:
    """One engine's application, parser, epoll and table of connections."""

    __slots__ = (
        "access", "again", "app", "connections", "crew", "crowd", "date", "date_and_server",
        "date_until", "draining",
        "epoll", "forked", "keep_alive_s", "leave", "limits", "log", "parser", "predictor", "returned",
        "sleeping", "stats", "wake_fd",
    )  # fmt: skip

    def __init__(
        self,
        app: WSGIApplication,
        limits: Limits,
        log: logging.Logger,
        leave: Callable[[int], None],
        crew: Crew,
        stats: Stats,
        crowd: Crowd | None,
        access: Access | None,
    ) -> None:
        self.app = app
        self.limits = limits
        self.keep_alive_s = limits.keep_alive_s  # again, for each request needs it
        self.log = log
        self.epoll: select.epoll  # made by `Engine.run`
        self.leave = leave  # the application wants the worker to end, with this exit code
        self.crew = crew
        self.stats = stats
        self.crowd = crowd
        self.access = access
        self.predictor = Predictor()
        self.parser = HeadParser(limits, stats)
        self.connections: dict[int, Connection] = {}  # by file descriptor
        self.again: deque[Connection] = deque()  # have had their turn and want another
        self.returned: deque[Connection] = deque()  # other threads are done with them
        self.wake_fd = -1
        self.sleeping = False  # the leader is in epoll, or about to be
        self.draining = False
        self.forked = False  # this is a child that the application forked: it is no worker
        self.date = ""  # "Date: ...\r\n"
        self.date_and_server = ""
        self.date_until = 0.0

    def come_back(self, connection: "Connection") -> None:
        """Give a connection back to the loop; from the thread that owned it, which must not touch it any more."""
        # In this order, against the one in the loop: whoever comes second sees what the other did.
        self.returned.append(connection)
        if self.sleeping:
            os.eventfd_write(self.wake_fd, 1)

    def refresh_date(self, now: float) -> None:
        """Make `date` right; `now` is monotonic. Formatted once a second: it costs a tenth of a request."""
        if now >= self.date_until:
            wall = time.time()
            self.date = f"Date: {formatdate(int(wall), usegmt=True)}\r\n"
            self.date_and_server = f"{self.date}Server: {SERVER}\r\n"
            self.date_until = now + 1.0 - wall % 1.0

"""What all connections of one engine share.

Invariant: everything here belongs to the engine's thread, except `stats`, which others may read, and `draining`,
which others may set (and nobody clears).
"""

import logging
import select
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING
from wsgiref.types import WSGIApplication

from .head import HeadParser
from .limits import Limits
from .stats import Stats

if TYPE_CHECKING:
    from .connection import Connection

SERVER = "zcluster"


class Shared:
    """One engine's application, parser, epoll and table of connections."""

    __slots__ = (
        "_date_until", "again", "app", "connections", "date", "draining", "epoll", "forked", "leave", "limits", "log",
        "parser", "stats",
    )  # fmt: skip

    def __init__(
        self,
        app: WSGIApplication,
        limits: Limits,
        log: logging.Logger,
        leave: Callable[[int], None],
        stats: Stats,
    ) -> None:
        self.app = app
        self.limits = limits
        self.log = log
        self.epoll: select.epoll  # made by `Engine.run`
        self.leave = leave  # the application wants the worker to end, with this exit code
        self.stats = stats
        self.parser = HeadParser(limits, stats)
        self.connections: dict[int, Connection] = {}  # by file descriptor
        self.again: list[Connection] = []  # have had their turn and want another
        self.draining = False
        self.forked = False  # this is a child that the application forked: it is no worker
        self.date = ""  # "Date: ...\r\n"
        self._date_until = 0.0

    def refresh_date(self, now: float) -> None:
        """Make `date` right; `now` is monotonic. Formatted once a second: it costs a tenth of a request."""
        if now >= self._date_until:
            wall = time.time()
            self.date = f"Date: {formatdate(int(wall), usegmt=True)}\r\n"
            self._date_until = now + 1.0 - wall % 1.0

"""The HTTP engine of a worker: sockets, epoll and WSGI, and nothing of the bus, of processes or of bodies.

`Engine` is the door; `Limits` are its bounds, `Stats` what it is doing. The parts, lower ones first: `limits`,
`stats`, `outbox`, `head` (request head -> environ), `body` (request body -> wsgi.input), `connection` (one client),
`exchange` (one request through the application), `engine` (the loop), `overdue` (what does not come back from there),
`probe` (the health check before it), `beats` (what a heartbeat says).
"""

from .access import AccessLog
from .beats import Beats
from .engine import Engine
from .limits import Limits
from .overdue import Overdue
from .probe import Probe
from .proxies import behind_proxies
from .stats import Stats

__all__ = ["AccessLog", "Beats", "Engine", "Limits", "Overdue", "Probe", "Stats", "behind_proxies"]

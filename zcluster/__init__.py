"""zcluster: one WSGI program on every core, one port, and processes that talk to each other.

Invariant: importing this package imports nothing else of it. The launcher can so block its signals before any real
work begins, and a zygote or an app that only wants `Counter` pays for nothing more (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zcluster.cluster import Cluster
    from zcluster.core.outbox import QueueFull
    from zcluster.counter import Counter
    from zcluster.errors import (
        AppError,
        BadFrame,
        BusError,
        ClusterError,
        ConfigError,
        NoReply,
        PeerGone,
        ReloadFailed,
        RequestFailed,
        RestartLimitReached,
        SpawnError,
        TooLarge,
    )
    from zcluster.hooks import Hooks
    from zcluster.messaging import gather, publish, request, subscribe
    from zcluster.whoami import worker

__all__ = [
    "AppError",
    "BadFrame",
    "BusError",
    "Cluster",
    "ClusterError",
    "ConfigError",
    "Counter",
    "Hooks",
    "NoReply",
    "PeerGone",
    "QueueFull",
    "ReloadFailed",
    "RequestFailed",
    "RestartLimitReached",
    "SpawnError",
    "TooLarge",
    "gather",
    "publish",
    "request",
    "subscribe",
    "worker",
]

_HOMES = {  # all others are errors
    **{"Cluster": "cluster", "Counter": "counter", "Hooks": "hooks", "QueueFull": "core.outbox", "worker": "whoami"},
    **dict.fromkeys(("gather", "publish", "request", "subscribe"), "messaging"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = found  # the next access is an ordinary one
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

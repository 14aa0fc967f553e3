"""Test support: what the pytest plugin gives to tests, for any other test framework too.

Invariant: importing this package imports nothing else of ours. pytest imports the plugin, and with it this package,
at every start of every user's tests, most of which have no cluster (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zcluster.testing.running import RunningCluster
    from zcluster.testing.wire import WireClient

__all__ = ["RunningCluster", "WireClient"]

_HOMES = {"RunningCluster": "running", "WireClient": "wire"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # the next access is an ordinary one
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""What the running body puts here for the doors: who this process is, its ledger, its lane, its link.

Invariant: a child forked by the application never acts for its parent: `unbind_in_child` makes it "forked", with no
ledger, no lane and no link, before any other code of the child runs. (The ledger is not even mapped there.)

Set by the main thread of a body before the application's code runs; read by any thread.
"""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from zcluster.subscriptions import Subscriptions

if TYPE_CHECKING:
    from zcluster.core.ledger import Ledger
    from zcluster.core.messages import WorkerInfo
    from zcluster.unix.locks import LockFile

Role = Literal["none", "zygote", "worker", "handle", "forked"]


class Counting(Protocol):
    """What `counter` offers to the worker's body, which must not import a door."""

    def bind_all(self) -> None:
        """Give every declared counter its cell."""

    def take_dirty(self) -> dict[int, int]:
        """Running values of the cells that changed, by index."""

    def put_back(self, cells: Mapping[int, int]) -> None:
        """These could not be sent: they are dirty still."""

    def dispatch(self, totals: Mapping[str, int]) -> None:
        """Have the `on_change` callbacks told; never blocks."""


role: Role = "none"
ledger: "Ledger | None" = None
locks: "LockFile | None" = None
lane: int = -1
worker: "WorkerInfo | None" = None
wake: Callable[[], None] | None = None  # a counter became dirty: flush soon; must not raise or block
poke: Callable[[], None] | None = None  # somebody waits for a checkpoint; must not raise or block
leave: Callable[[str], None] | None = None  # begin to leave, voluntarily, for this reason; must not block
mailbox: Any = None  # of a worker: what `messaging` sends with
subscriptions = Subscriptions()  # what the application has registered for messages
counting: Counting | None = None  # set when the application has imported `counter`
# Where our own lines for stdout and stderr go when 1 and 2 are a worker's pipe (`--capture-output`); -1: to 1 and 2.
streams: tuple[int, int] = (-1, -1)
fds: list[int] = []  # ours (ledger, locks, bus, leash): closed in a child that the application forks
at_unbind: list[Callable[[], None]] = []  # doors that keep something of the above drop it here

_guarded = False


def guard_forks() -> None:
    """From now on a fork of this process unbinds the child. For the worker body; a second call does nothing."""
    global _guarded
    if not _guarded:
        _guarded = True
        os.register_at_fork(after_in_child=unbind_in_child)


def unbind_in_child() -> None:
    """Become a stranger to the cluster. Touches no shared memory: in the child it is not mapped (MADV_DONTFORK)."""
    global role, ledger, locks, lane, worker, wake, poke, leave, mailbox, streams
    if role == "forked":
        return  # a fork of a fork: the numbers of our descriptors may be the application's by now
    role = "forked"
    ledger = locks = worker = wake = poke = leave = mailbox = None
    lane, streams = -1, (-1, -1)
    for forget in at_unbind:
        forget()
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # closed before the fork and not taken off the list
    fds.clear()

"""`zcluster.worker`: who this process is, for the app; and what a worker can do: send, listen, leave.

Invariant: it is always importable and costs nothing; what it says is read from `current` at the time of asking, so it
is right in a worker, in the tests of the app, under another server, and in a child the app forked.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from zcluster import current
from zcluster.core.messages import WorkerInfo
from zcluster.errors import ClusterError

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Delivery, Mailbox

EVENTS: Final = ("message", "disconnect")

_F = TypeVar("_F", bound=Callable[..., Any])


class CurrentWorker:
    """True inside a worker, false elsewhere; then reading any attribute raises `ClusterError`. Thread-safe."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return current.role == "worker"

    def __repr__(self) -> str:
        return f"<zcluster.worker {self.id} in slot {self.slot}>" if self else "<zcluster.worker: not in a worker>"

    @property
    def id(self) -> int:
        """Number of this worker; grows for ever, never reused."""
        return _info("id").id

    @property
    def slot(self) -> int:
        """Its role, 0..N-1, which its replacement takes over."""
        return _info("slot").slot

    @property
    def pid(self) -> int:
        """Its process id."""
        return _info("pid").pid

    @property
    def generation(self) -> int:
        """Generation of the code it runs."""
        return _info("generation").generation

    @property
    def exited_after_disconnect(self) -> bool | None:
        """True as soon as it leaves voluntarily or because it was told to; None before that."""
        _info("exited_after_disconnect")
        return True if _leaving else None

    def is_connected(self) -> bool:
        """Whether it has not begun to leave: true until its functions for "disconnect" are called."""
        _info("is_connected")
        return not _leaving

    def send(self, payload: Any) -> "Delivery":
        """Send a message to every handle on this cluster: `cluster.on("message")` and `worker.on("message")` there.

        Returns a future that resolves when all of them have received it. Messages of one worker arrive in order; what
        was sent before this worker leaves in an orderly way arrives before its `exit`. While there is no handle they
        wait for one. Raises `TypeError` for what msgspec cannot encode, `TooLarge` and `QueueFull`.
        """
        _info("send")
        mailbox: Mailbox | None = current.mailbox
        if mailbox is None:
            raise ClusterError("worker.send() was called after this worker had left its cluster")
        return mailbox.send("handles", payload)

    @overload
    def on(self, event: str) -> Callable[[_F], _F]: ...
    @overload
    def on(self, event: str, fn: _F) -> _F: ...
    def on(self, event: str, fn: _F | None = None) -> Any:
        """Register a function: for "message", called with the payload, or "disconnect", called before it leaves.

        May be called at import and outside a worker, where nothing comes of it. Also a decorator; returns `fn`. What
        a function for messages returns, if it is not None, answers a `request`. Functions run in threads for
        messages; those for messages of one sender one after the other. SystemExit in one for "disconnect" sets the
        worker's exit code.
        """
        if event not in EVENTS:
            raise ClusterError(f"a worker has no event {event!r} here; its events are {', '.join(EVENTS)}")
        if fn is None:
            return lambda function: self.on(event, function)
        current.subscriptions.on(event, fn)
        return fn

    def disconnect(self) -> None:
        """Begin to leave, voluntarily: requests in flight are finished, messages that were sent are received.

        Returns at once. The slot stays open: another worker takes its place.
        """
        _info("disconnect")
        if current.leave is None:
            raise ClusterError(
                "worker.disconnect() was called while the app was being imported; wait until it serves"
            )
        current.leave("it called worker.disconnect()")


_leaving: list[bool] = []


def _note_leaving() -> None:
    _leaving.append(True)


def _info(field: str) -> WorkerInfo:
    info = current.worker
    if current.role != "worker" or info is None:
        raise ClusterError(
            f"worker.{field} was read in a process that is no worker of a cluster (role {current.role!r}); "
            "check 'if worker:' first"
        )
    return info


worker: Final = CurrentWorker()
current.subscriptions.on("disconnect", _note_leaving)  # the first of these functions

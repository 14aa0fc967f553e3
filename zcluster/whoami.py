"""`zcluster.worker`: who this process is, for the app.

Invariant: it is always importable and costs nothing; what it says is read from `current` at the time of asking, so it
is right in a worker, in the tests of the app, under another server, and in a child the app forked.
"""

from typing import Final

from zcluster import current
from zcluster.core.messages import WorkerInfo
from zcluster.errors import ClusterError


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


def _info(field: str) -> WorkerInfo:
    info = current.worker
    if current.role != "worker" or info is None:
        raise ClusterError(
            f"worker.{field} was read in a process that is no worker of a cluster (role {current.role!r}); "
            "check 'if worker:' first"
        )
    return info


worker: Final = CurrentWorker()

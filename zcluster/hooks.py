"""`Hooks`: what a program may have called at the turns of a cluster's life, as gunicorn.conf.py has it.

Invariant: nothing of this runs in the launcher or the master. A hook of a worker runs in that worker, a hook of the
cluster in a process that does nothing else; so a hook that hangs or raises delays and breaks nothing but itself.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zcluster.core.hookcalls import ClusterInfo
    from zcluster.core.messages import WorkerInfo


class Hooks:
    """Base of a class for `--hooks MODULE:CLASS`: define what you need, and leave out the rest, which costs nothing.

    Each worker makes an object of the class for itself, and so does the process that calls the hooks of the cluster;
    what one of them stores in it the others do not see. What a hook raises is logged with its traceback, no more; but
    a worker whose `post_fork` or `post_worker_init` raises could not start.
    """

    # ---- called in the worker, by its main thread ------------------------------------------------------------------
    def post_fork(self, worker: "WorkerInfo") -> None:
        """This worker has been forked; the app is imported next, unless it was preloaded."""

    def post_worker_init(self, worker: "WorkerInfo") -> None:
        """The app is loaded; this worker accepts connections next."""

    def worker_exit(self, worker: "WorkerInfo") -> None:
        """This worker has finished its requests and leaves; it is killed at the drain's deadline."""

    # ---- called in a process of their own, one after the other -----------------------------------------------------
    def on_starting(self, cluster: "ClusterInfo") -> None:
        """The cluster starts. Once in its life, as `when_ready`."""

    def when_ready(self, cluster: "ClusterInfo") -> None:
        """All workers are ready for the first time."""

    def child_exit(self, cluster: "ClusterInfo", worker: "WorkerInfo") -> None:
        """A worker has ended: `exitcode`, `signal` and `reason` say how."""

    def worker_abort(self, cluster: "ClusterInfo", worker: "WorkerInfo") -> None:
        """A worker has been given up (it is hung, or was not ready in time): it is about to be killed."""

    def nworkers_changed(self, cluster: "ClusterInfo", new: int, old: int) -> None:
        """Another number of workers is wanted now."""

    def on_reload(self, cluster: "ClusterInfo") -> None:
        """A reload has ended well: all workers are of the new generation."""

    def on_exit(self, cluster: "ClusterInfo") -> None:
        """The cluster ends, its workers are gone; this has 4 seconds."""


IN_WORKER: Final = ("post_fork", "post_worker_init", "worker_exit")
OF_CLUSTER: Final = (
    *("on_starting", "when_ready", "child_exit", "worker_abort", "nworkers_changed", "on_reload", "on_exit"),
)
# gunicorn's others, and what to do instead.
NOT_OURS: Final = {
    "pre_request": "wrap the app in WSGI middleware, which sees the request and can change it",
    "post_request": "wrap the app in WSGI middleware, or use --access-logfile",
    "pre_fork": "post_fork runs in the worker right after the fork",
    "pre_exec": "a cluster is never exec'd anew: `zcluster reload` replaces all of its code but the launcher's",
    "worker_int": "workers leave for SIGTERM, and worker_exit is called then",
    "ssl_context": "give --certfile and --keyfile",
}

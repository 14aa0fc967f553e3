"""Hooks that write down when they are called: one line each, to the file that HOOKED names."""

import os

from zcluster import Hooks


def note(*words):
    with open(os.environ["HOOKED"], "a") as file:
        file.write(" ".join(map(str, words)) + "\n")  # one write: lines of several processes do not mix


class Noting(Hooks):
    def post_fork(self, worker):
        note("post_fork", worker.id, worker.pid == os.getpid())

    def post_worker_init(self, worker):
        note("post_worker_init", worker.id, worker.pid == os.getpid())

    def worker_exit(self, worker):
        note("worker_exit", worker.id, worker.pid == os.getpid())

    def on_starting(self, cluster):
        note("on_starting", cluster.size)

    def when_ready(self, cluster):
        note("when_ready", len(cluster.workers), cluster.url)

    def child_exit(self, cluster, worker):
        note("child_exit", worker.id, worker.signal, worker.reason)

    def nworkers_changed(self, cluster, new, old):
        note("nworkers_changed", new, old)
        raise RuntimeError("nobody minds")

    def on_reload(self, cluster):
        note("on_reload", cluster.generation)

    def on_exit(self, cluster):
        note("on_exit", len(cluster.workers))


class Refusing(Hooks):
    def post_worker_init(self, worker):
        raise RuntimeError("the licence has run out")


class Stuck(Hooks):
    def when_ready(self, cluster):
        note("stuck", os.getpid())
        while True:
            os.waitpid(os.spawnlp(os.P_NOWAIT, "cat", "cat", os.environ["FIFO"]), 0)

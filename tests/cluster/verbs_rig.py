"""A cluster whose app is a file that tests rewrite, and a handle that sends verbs to its master."""

import http.client
import json
import os
import select
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from anatomy import see
from harness import Running, answers_until, wait_for

from zcluster import Cluster

ANSWER_S = 60.0  # a reload is several starts of an interpreter, on a machine that may have ten tests at once
PAUSE_S = 0.02  # between two questions to the master, which has work to do
APP = """
import json, os, select
from zcluster import Counter, worker
{before}
VERSION = {version}
requests = Counter("requests")

def app(environ, start_response):
    about = {{"version": VERSION, "pid": os.getpid(), "slot": worker.slot, "color": os.environ.get("COLOR", "")}}
    body = json.dumps(about) if environ["PATH_INFO"] == "/about" else str(requests.incr())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
# {padding}
"""
HOLD = """
open("held", "w").close()
while not os.path.exists("go"):
    select.select([], [], [], 0.005)
"""


def until(condition: Callable[[], object], what: str = "") -> object:
    """`wait_for` with the patience of this rig."""
    return wait_for(condition, ANSWER_S, what)


class Verbs:
    """A running cluster, the folder of its app, and a handle on it."""

    def __init__(self, cluster: Running, folder: Path, handle: Cluster, pool: ThreadPoolExecutor) -> None:
        self.cluster, self.folder, self.handle, self._pool = cluster, folder, handle, pool

    def ask(self, verb: str, args: dict[str, object] | None = None) -> dict[str, object]:
        """Ask the master; raises BusError with its text when it refuses."""
        return msgspec.msgpack.decode(self.handle._ask(verb, args, ANSWER_S))

    def asking(self, verb: str, args: dict[str, object] | None = None) -> "Future[dict[str, object]]":
        """The same in another thread."""
        return self._pool.submit(self.ask, verb, args)

    def write(self, version: int, before: str = "") -> None:
        """Replace the app's file. Its length tells versions apart: bytecode is taken for fresh by second and size."""
        write_app(self.folder, version, before)

    def snapshot(self) -> dict[str, object]:
        return self.handle.snapshot(ANSWER_S)

    def workers(self) -> list[dict[str, object]]:
        return self.snapshot()["workers"]

    def pids(self) -> dict[int, int]:
        """Slot -> pid."""
        return {w["slot"]: w["pid"] for w in self.workers()}

    def whole(self, slots: int | list[int], generation: int | None = None) -> dict[str, object]:
        """Wait until these slots, and no others, have one worker each that is ready; returns the snapshot.

        Then there is one zygote, and the kernel sees the same processes as the master.
        """
        wanted = list(range(slots)) if isinstance(slots, int) else slots
        last: dict[str, object] = {}

        def look() -> dict[str, object] | None:
            shot = self.snapshot()
            last.update(shot=shot)
            there = shot["workers"]
            agreed = (
                [w["slot"] for w in there] == wanted
                and all(w["state"] == "ready" for w in there)
                and len({w["generation"] for w in there} | {shot["generation"]}) == 1
                and generation in (None, shot["generation"])
            )
            if not agreed:
                select.select([], [], [], PAUSE_S)
                return None
            seen = last["seen"] = see(self.cluster)  # reads all of /proc: not at every look
            is_true = sorted(w["pid"] for w in there) == seen.worker_pids and seen.zygotes == [shot["zygote_pid"]]
            return shot if is_true and not seen.others else None

        try:
            return until(look, f"slots {wanted} are whole")
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}\n{self.cluster.log}") from None

    def about(self) -> dict[str, object]:
        """What the worker that gets the next connection says of itself."""
        connection = http.client.HTTPConnection(*self.cluster.address, timeout=15)
        try:
            connection.request("GET", "/about")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def environ(self, slot: int) -> dict[str, object]:
        """What the worker of this slot was given: asked until it is the one that answers."""
        said: list[dict[str, object]] = []

        def is_it(body: bytes) -> bool:
            said.append(json.loads(body))
            return said[-1]["slot"] == slot

        answers_until(self.cluster.address, is_it, "/about")
        return said[-1]

    def held(self) -> None:
        """Wait until an import has come to HOLD."""
        until((self.folder / "held").exists, "an import is held")

    def go(self) -> None:
        (self.folder / "go").touch()


def write_app(folder: Path, version: int, before: str = "") -> None:
    """See `Verbs.write`."""
    text = APP.format(version=version, before=before, padding="x" * version)
    (folder / "new").write_text(text)
    os.replace(folder / "new", folder / "served.py")


@contextmanager
def verbs(folder: Path, *options: str, workers: int = 2, **more: object):
    """Start a cluster of version 1 of the app and attach to it; everything is gone afterwards."""
    write_app(folder, 1)
    cluster = Running("served:app", *options, workers=workers, cwd=folder, wait=False, **more)
    try:
        cluster.wait_ready(ANSWER_S)
        handle = Cluster.attach(run_dir=str(cluster.base))
        pool = ThreadPoolExecutor(4)
        try:
            yield Verbs(cluster, folder, handle, pool)
        finally:
            (folder / "go").touch()
            handle.close()
            pool.shutdown()
    finally:
        cluster.close()

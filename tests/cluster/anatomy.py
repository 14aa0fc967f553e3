"""A cluster seen through the kernel's eyes: which processes it has, by name and parent, whatever its bus says."""

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness import Running, send, wait_for

from zcluster.unix.ledgerfile import open_ledger
from zcluster.unix.process import is_alive, processes

# Scheduling of two busy cores; what is measured with it is milliseconds on an idle machine.
PATIENCE_S = 30.0


@dataclass
class Seen:
    """The living children of a launcher, by role. Zombies do not count."""

    masters: list[int] = field(default_factory=list)
    zygotes: list[int] = field(default_factory=list)
    services: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)  # newborn, nameless yet
    workers: dict[int, list[int]] = field(default_factory=dict)  # by slot

    @property
    def master(self):
        (pid,) = self.masters
        return pid

    @property
    def zygote(self):
        (pid,) = self.zygotes
        return pid

    @property
    def worker_pids(self):
        return sorted(pid for pids in self.workers.values() for pid in pids)


def see(cluster):
    """The children of the launcher, now."""
    seen = Seen()
    for found in processes():
        if found.ppid != cluster.process.pid or found.state in "ZX":
            continue
        try:
            title = Path(f"/proc/{found.pid}/comm").read_text().strip()
        except OSError:  # gone meanwhile
            continue
        if title.startswith("zc-worker-"):
            seen.workers.setdefault(int(title.removeprefix("zc-worker-")), []).append(found.pid)
        else:
            named = {"zc-master": seen.masters, "zc-zygote": seen.zygotes, "zc-checkpoint": seen.services}
            named.get(title, seen.others).append(found.pid)
    return seen


def service(cluster, without=()):
    """Wait for the one checkpoint service, which starts beside the workers; returns its pid."""

    def look():
        there = see(cluster).services
        return there if len(there) == 1 and there[0] not in without else None

    return wait_for(look, PATIENCE_S, "the checkpoint service")[0]


def instance(cluster):
    """The run directory of the running instance."""
    (current,) = cluster.base.glob("zcluster-*/*/current")
    return current.parent / current.read_text()


def kill(*pids, number=signal.SIGKILL):
    """Signal processes back to back; one that has gone already is none of our business.

    kill(2) returns before a SIGSTOP has stopped anything (the victim may still take a connection): we wait for that.
    """
    for pid in pids:
        send(pid, number)
    if number == signal.SIGSTOP:
        wait_for(lambda: all(stopped(pid) for pid in pids), what="all of them are stopped")


def stopped(pid):
    """Has every thread of this process stopped (or ended)?"""
    try:
        threads = [Path(entry, "stat").read_text() for entry in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return not is_there(pid)  # else a thread ended under our eyes: look again
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in threads)


def is_there(pid):
    """Alive or a zombie."""
    return Path(f"/proc/{pid}").exists()


def gone(*pids, timeout_s=PATIENCE_S):
    """Wait until these processes are reaped; returns how long that took."""
    begun = time.monotonic()
    wait_for(lambda: not any(is_there(pid) for pid in pids), timeout_s, f"{pids} are reaped")
    return time.monotonic() - begun


@contextmanager
def ledger(cluster):
    """The ledger of the running instance, read-only."""
    file = open_ledger(instance(cluster) / "ledger", writable=False)
    try:
        yield file.ledger
    finally:
        file.close()


def epoch(cluster):
    """The epoch in the ledger: counts the masters that have come far enough to write it."""
    with ledger(cluster) as seen:
        return seen.epoch


def ready(cluster):
    """Slot -> pid of the living workers that are ready by their own record, whatever the master knows."""
    found = {}
    with ledger(cluster) as seen:
        for number in range(seen.used_lanes):
            info = seen.lane(number).info()
            if info is not None and info.state == "ready" and is_alive(info.pid, info.start):
                found[info.slot] = info.pid
    return found


def whole(cluster, workers, without=(), timeout_s=PATIENCE_S):
    """Wait until the cluster is as it should be and none of the pids in `without` takes part; returns its `ps`.

    As it should be: one master, one zygote, every slot with exactly one ready worker, lanes and ids unique, and the
    kernel's list of processes agrees with what the master says.
    """
    last = {}

    def look():
        seen = see(cluster)
        if any(len(group) != 1 for group in (seen.masters, seen.zygotes)) or seen.others:
            last["why"] = f"processes: {seen}"
            return None
        if sorted(ready(cluster)) != list(range(workers)):  # costs nothing; `ps` is a process
            last["why"] = f"ready are {ready(cluster)} of {seen}"
            return None
        try:
            ps = cluster.ps()
        except AssertionError as error:  # the next master may not have come so far as to answer
            last["why"] = str(error)
            return None
        there = ps["workers"]
        agreed = (
            [w["slot"] for w in there] == list(range(workers))
            and {w["state"] for w in there} == {"ready"}
            and sorted(w["pid"] for w in there) == seen.worker_pids
            and (ps["master_pid"], ps["zygote_pid"]) == (seen.master, seen.zygote)
            and ps["state"] in ("running", "degraded")
            and not set(without) & {seen.master, seen.zygote, *seen.worker_pids}
        )
        last["why"] = f"{seen} and {ps}"
        return ps if agreed else None

    try:
        ps = wait_for(look, timeout_s, "the cluster is whole")
    except AssertionError as error:
        raise AssertionError(f"{error}: {last.get('why')}\n{cluster.log}") from None
    for key in ("lane", "id", "pid"):
        values = [w[key] for w in ps["workers"]]
        assert len(set(values)) == workers, f"{key}s are not unique: {values}"
    return ps


def by_slot(ps):
    return {w["slot"]: w for w in ps["workers"]}


def start_again(cluster, app, *options, **more):
    """The next start in the same run directory; the caller closes it."""
    return Running(app, *options, base=cluster.base, wait=False, **more)


def address_of(cluster):
    """What --bind must say to get the same port again."""
    return cluster.url.removeprefix("http://")

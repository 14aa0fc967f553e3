"""The master dies: while it serves, while it starts, while a worker is being forked. Rows 8, 12 and 18."""

import os
import re
import signal
import time
from pathlib import Path

import msgspec
import pytest
from anatomy import PATIENCE_S, by_slot, epoch, gone, instance, is_there, kill, ledger, ready, see, whole
from harness import running, wait_for
from load import Load

from zcluster.config import make_config
from zcluster.core.messages import Boot
from zcluster.unix.locks import MASTER_BYTE, LockFile
from zcluster.unix.offspring import exec_child
from zcluster.unix.process import stat

WORKERS = 3


@pytest.fixture
def cluster():
    with running("faults:app", workers=WORKERS) as running_cluster:
        yield running_cluster


def test_the_master_is_killed_under_load_three_times(cluster):
    """No request fails, the next master adopts the same workers within 2 s, totals and further deaths go on."""
    pids = see(cluster).worker_pids
    adopted_s = []
    uptimes = [w["uptime_s"] for w in whole(cluster, WORKERS)["workers"]]
    with Load(cluster.address, clients=4) as load:
        for number in range(2, 5):
            master = see(cluster).master
            kill(master)
            died_at = time.monotonic()
            cluster.wait_log(rf"epoch {number}: adopting {WORKERS} workers of the master before")
            took_s = time.monotonic() - died_at
            pause_s = float(cluster.wait_log(rf"Master {master} died\..* a new master starts in ([0-9.]+) s")[1])
            print(f"adopted {took_s:.3f} s after the kill, {pause_s} s of it the pause between two masters")
            adopted_s.append(took_s - pause_s)  # the pause grows by design when one dies after the other
            ps = whole(cluster, WORKERS, without=[master])
            assert ps["epoch"] == number
            assert sorted(w["pid"] for w in ps["workers"]) == pids
            assert [w["restarts"] for w in ps["workers"]] == [0] * WORKERS
            assert all(w["uptime_s"] > before for w, before in zip(ps["workers"], uptimes, strict=True))
    assert min(adopted_s) < 5.0, adopted_s  # 2 s are promised on a machine that is not busy with other tests
    load.check(cluster.counters()["requests"])
    total = cluster.counters()["requests"]
    victim = by_slot(whole(cluster, WORKERS))[1]
    kill(victim["pid"], number=signal.SIGSEGV)
    after = by_slot(whole(cluster, WORKERS, without=[victim["pid"]]))
    assert after[1]["restarts"] == 1
    assert cluster.counters()["requests"] == total
    line = cluster.wait_log(
        rf"master pid=(\d+): Worker {victim['pid']} died\. signal SIGSEGV; replacing it in slot 1"
    )
    assert int(line[1]) == see(cluster).master
    assert not re.search("Traceback|please report", cluster.log)


def next_master(cluster):
    """Is there a master again, or a process that may become one?"""
    seen = see(cluster)
    return seen.masters + seen.others


def test_deaths_while_there_is_no_master(cluster):
    """The launcher keeps them; the next master reports each with its own signal and replaces the dead."""
    masters = []
    # The pause after each is twice that before: 0.2, 0.4, 0.8, and then the 1.6 s we have. A machine may stand still
    # for so long: then once more, with a pause of 3.2 s, and of 5 s, which is the longest.
    for deaths in (4, 1, 1, 1):
        before = by_slot(whole(cluster, WORKERS, without=masters))
        workers = see(cluster).workers
        for _ in range(deaths):
            (master,) = wait_for(lambda: set(see(cluster).masters) - set(masters), PATIENCE_S, "the next master")
            kill(master)
            gone(master)
            masters.append(master)
        kill(workers[0][0])
        kill(workers[2][0], number=signal.SIGSEGV)
        gone(workers[0][0], workers[2][0])
        if not next_master(cluster):
            break
    else:
        raise AssertionError(f"the next master was always too early for this test\n{cluster.log}")
    with Load(cluster.address, clients=2) as load:
        ps = whole(cluster, WORKERS, without=[*masters, workers[0][0], workers[2][0]])
    load.check(cluster.counters()["requests"])
    for slot, cause in ((0, "SIGKILL"), (2, "SIGSEGV")):
        (line,) = re.findall(rf"master pid=(\d+): Worker {workers[slot][0]} died\. signal {cause};", cluster.log)
        assert int(line) == ps["master_pid"]
    assert by_slot(ps)[1]["pid"] == workers[1][0]
    assert [w["restarts"] - before[w["slot"]]["restarts"] for w in ps["workers"]] == [1, 0, 1]


@pytest.mark.parametrize("first", ["master", "worker"])
def test_master_and_worker_are_killed_together(cluster, first):
    """Whichever goes first: one replacement, its signal reported, nothing counted is lost."""
    for _ in range(2):
        before = see(cluster)
        pair = [before.master, before.workers[1][0]]
        kill(*(pair if first == "master" else reversed(pair)))
        ps = whole(cluster, WORKERS, without=pair)
        assert sorted(w["pid"] for w in ps["workers"] if w["slot"] != 1) == sorted(
            pid for slot in (0, 2) for pid in before.workers[slot]
        )
        assert len(re.findall(rf"Worker {pair[1]} died\. signal SIGKILL", cluster.log)) == 1


def ctl(cluster):
    """The inode of the master's first socket; 0 when it was never bound."""
    try:
        return os.stat(instance(cluster) / "ctl").st_ino
    except FileNotFoundError:
        return 0


POINTS = ("appeared", "named", "epoch", "bound")


def starting_master(cluster, point, known, epoch_before, ctl_before):
    """The pid of the master that is starting, once it has come as far as `point`."""
    seen = see(cluster)
    masters = [pid for pid in seen.masters if pid not in known]
    if point == "appeared":
        newborn = [*masters, *(pid for pid in seen.others if pid not in known)]
        return newborn[0] if newborn else None
    has_come = {
        "named": lambda: True,
        "epoch": lambda: epoch(cluster) > epoch_before,
        "bound": lambda: ctl(cluster) not in (0, ctl_before),
    }
    return masters[0] if masters and has_come[point]() else None


@pytest.mark.parametrize("point", POINTS)
def test_a_master_is_killed_while_it_takes_over(cluster, point):
    """As it appears, before and after it has bound the bus: the one after it adopts the same workers."""
    pids = see(cluster).worker_pids
    known = [see(cluster).master]
    with Load(cluster.address, clients=2) as load:
        before = epoch(cluster), ctl(cluster)
        kill(*known)
        known.append(wait_for(lambda: starting_master(cluster, point, known, *before), PATIENCE_S, point))
        kill(known[-1])
        ps = whole(cluster, WORKERS, without=known)
    load.check(cluster.counters()["requests"])
    assert sorted(w["pid"] for w in ps["workers"]) == pids
    assert ps["epoch"] <= 3


@pytest.mark.parametrize("point", POINTS)
def test_the_first_master_is_killed_while_it_starts(point):
    """The cluster becomes ready all the same, with the right workers, and says so once."""
    with running("faults:app", workers=2, wait=False) as cluster:
        published = wait_for(
            lambda: list(cluster.base.glob("zcluster-*/*/current")) or cluster.process.poll() is not None
        )
        assert published is not True, f"it ended instead of starting:\n{cluster.log}"
        victim = wait_for(lambda: starting_master(cluster, point, [], 0, 0), PATIENCE_S, point)
        kill(victim)
        cluster.wait_ready()
        ps = whole(cluster, 2, without=[victim])
        assert ps["epoch"] <= 2
        assert cluster.get() == "1"


@pytest.mark.parametrize("spread_ms", [(0.0, 1.0, 2.0), (3.0, 4.0, 6.0), (9.0, 14.0, 20.0)])
def test_master_is_killed_while_a_worker_is_forked(cluster, spread_ms):
    """A worker dies, the master 0 to 20 ms later: the end is one worker per slot, lanes unique, nothing lost."""
    total = int(cluster.get("/many?50"))
    for pause_ms in spread_ms:
        before = see(cluster)
        victims = [before.workers[0][0], before.master]
        kill(victims[0])
        until = time.monotonic() + pause_ms / 1000
        while time.monotonic() < until:  # not a wait for anything: the moment of the second kill is what is varied
            pass
        kill(victims[1])
        ps = whole(cluster, WORKERS, without=victims)
        assert [by_slot(ps)[slot]["pid"] for slot in (1, 2)] == [before.workers[slot][0] for slot in (1, 2)]
    total += 1
    assert int(cluster.get()) == total
    assert not re.search("Traceback|please report", cluster.log)


def bus_paths(pid):
    """Local names of this process's unix sockets: bound ones, and those accepted on a bound one."""
    names = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        names[fields[6]] = fields[7] if len(fields) > 7 else ""
    return [names.get(target[8:-1], "not unix") for target in targets(pid) if target.startswith("socket:[")]


def targets(pid):
    """What this process has open."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(entry))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def test_a_worker_forked_while_the_bus_is_live_holds_none_of_it(cluster):
    """It has its own three connections and no end of the master's: the master's death parts all links."""
    kill(see(cluster).workers[1][0])
    ps = whole(cluster, WORKERS)
    run_dir = str(instance(cluster))
    assert {path for path in bus_paths(ps["master_pid"]) if path.startswith(run_dir)} == {
        f"{run_dir}/{name}" for name in ("ctl", "evt", "pub")
    }
    for worker in ps["workers"]:
        paths = bus_paths(worker["pid"])
        assert [path for path in paths if path not in ("", "not unix")] == []
        assert {Path(path).name for path in targets(worker["pid"]) if path.startswith(run_dir)} <= {
            "leash", "locks", "ledger", "log", f"stacks-{worker['id']}",
        }  # fmt: skip
    parted = r"pid={}: bus link lost: the master has ended"
    kill(ps["master_pid"])
    for worker in ps["workers"]:
        cluster.wait_log(parted.format(worker["pid"]))


def test_there_is_no_second_master(cluster, capfd):
    """One started by hand in a live run directory finds the lock taken and leaves; the first does not notice."""
    run_dir, ps = instance(cluster), cluster.ps()
    config = msgspec.Raw(msgspec.msgpack.encode(make_config(app="faults:app")))
    launcher = cluster.process.pid
    boot = Boot(config, str(run_dir), (cluster.url,), launcher, stat(launcher).start)
    second = exec_child("master", "second", boot, (), time.monotonic())
    try:
        _, status = os.waitpid(second.pid, 0)
    finally:
        second.channel.close()
    assert os.waitstatus_to_exitcode(status) == 70
    assert f"process {ps['master_pid']} is the master of this cluster already" in capfd.readouterr().err
    locks = LockFile(run_dir / "locks")
    try:
        assert locks.owner(MASTER_BYTE) == ps["master_pid"]
    finally:
        locks.close()
    after = whole(cluster, WORKERS)
    assert (after["epoch"], after["master_pid"]) == (1, ps["master_pid"])
    with ledger(cluster) as seen:
        assert (seen.epoch, seen.master_pid) == (1, ps["master_pid"])
    assert cluster.get() == "1"
    assert is_there(ps["master_pid"])
    assert len(ready(cluster)) == WORKERS

"""--state: the counters outlive the cluster. All killed at once, leftovers, a full disk. Rows 14, 19 and 20."""

import http.client
import os
import random
import shutil
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from anatomy import PATIENCE_S, gone, instance, is_there, kill, ledger, see, service, whole
from harness import Running, running, wait_for
from load import Load

from zcluster.core.ledger import W_BOOT_ID, W_MAGIC
from zcluster.unix.ledgerfile import open_ledger

FAST_DISK = "--checkpoint=0.2"


@pytest.fixture
def base():
    """A run directory that several starts use one after the other."""
    path = Path(tempfile.mkdtemp(prefix="zct-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(base):
    """`zcluster run` in `base`; what a test has not closed is closed, and checked, at its end."""
    started = []

    def run(*options, **more):
        started.append(Running("faults:app", *options, base=base, **{"workers": 2, **more}))
        return started[-1]

    yield run
    for cluster in started:
        cluster.close()


def total_of(cluster):
    return cluster.counters()["requests"]


def kill_everything(cluster, rng):
    """SIGKILL for every process, in any order, without a pause."""
    seen = see(cluster)
    pids = [cluster.process.pid, *seen.masters, *seen.zygotes, *seen.services, *seen.others, *seen.worker_pids]
    rng.shuffle(pids)
    kill(*pids)
    cluster.process.wait(20)
    # One that was born in this very moment is on no list: it finds itself alone, and leaves.
    wait_for(lambda: not cluster.processes(), PATIENCE_S, "all are dead")


def left_over(cluster_base):
    """The ledger file that a dead instance has left."""
    (path,) = cluster_base.glob("zcluster-*/*/*/ledger")
    return path


def refused(cluster, code):
    """The log of a start that must fail with this exit code and leave nothing."""
    try:
        assert cluster.wait() == code
        return cluster.log
    finally:
        cluster.close()


def test_everything_is_killed_at_once(start, base, tmp_path):
    """Three times, under load: the next start goes on from the exact total; acknowledged <= total <= attempted."""
    state, rng = f"--state={tmp_path / 'state'}", random.Random(14)
    acknowledged = attempted = 0
    cluster = start(state, workers=3)
    for _ in range(3):
        load = Load(cluster.address, clients=3)
        with load:
            enough = 100 + rng.randrange(100)
            wait_for(lambda: load.acknowledged > enough, what="it counts")  # noqa: B023
            kill_everything(cluster, rng)
        acknowledged, attempted = acknowledged + load.acknowledged, attempted + load.attempted
        assert not load.fell
        file = open_ledger(left_over(base), writable=False)
        exact = file.ledger.totals()["requests"]
        file.close()
        cluster.close()
        cluster = start(state, workers=3)
        assert acknowledged <= total_of(cluster) == exact <= attempted
        cluster.wait_log("counters go on from the ledger")
        assert list(base.glob("zcluster-*/*/*/ledger")) == [instance(cluster) / "ledger"], "one instance is left"
    total = total_of(cluster)
    assert int(cluster.get()) == total + 1


def test_without_state_everything_begins_at_zero(start, base):
    """After everybody was killed: no old total, no old file, no stranger's link followed."""
    cluster = start()
    cluster.get("/many?100")
    run_dir = instance(cluster)
    kill_everything(cluster, random.Random(1))
    cluster.close()
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("untouched")
    (run_dir.parent / "link").symlink_to(elsewhere)
    (run_dir.parent / "0000dead").mkdir(mode=0o700)
    (run_dir.parent / "0000dead" / "ctl").write_text("no socket")
    (run_dir.parent / "current").write_text("0000dead")
    again = start()
    assert again.get() == "1"
    assert (elsewhere / "precious").read_text() == "untouched"
    assert not run_dir.exists()
    assert not (run_dir.parent / "0000dead").exists()
    (run_dir.parent / "link").unlink()
    assert again.stop() == 0
    again.close()
    shutil.rmtree(elsewhere)
    assert list(base.iterdir()) == []


def patch(word, value):
    """Overwrite one word of a ledger file."""

    def damage(path):
        with path.open("r+b") as file:
            file.seek(8 * word)
            file.write(value)

    return damage


def truncated(path):
    os.truncate(path, 0)


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (patch(W_BOOT_ID, b"\1" * 16), "the left-over ledger is of another boot"),
        (patch(W_MAGIC, b"zcledgr\x63"), "this ledger has layout 99, this zcluster reads layout 1"),
        (truncated, "is empty"),
        (Path.unlink, "the last ledger is gone"),
    ],
    ids=["another boot", "another layout", "truncated", "gone"],
)
def test_a_left_over_ledger_that_cannot_be_used(start, base, tmp_path, damage, note):
    """The start goes on from the checkpoint: what incr(durable=True) had acknowledged, at most what was attempted."""
    state = f"--state={tmp_path / 'state'}"
    cluster = start(state, "--checkpoint=60")
    cluster.get("/many?41")
    assert cluster.get("/durable") == "42"
    kill_everything(cluster, random.Random(2))
    cluster.close()
    damage(left_over(base))
    again = start(state)
    again.wait_log(f"counters go on from checkpoint .*{note}")
    assert again.get() == "43"
    again.close()
    assert list(base.iterdir()) == []


def test_a_run_directory_that_is_not_safely_ours_is_refused(start, base):
    """A symlink in its place, or one that others may enter: exit 4, naming it, and what to do."""
    elsewhere = base / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    root = base / f"zcluster-{os.getuid()}"
    root.symlink_to(elsewhere)
    log = refused(start(wait=False), 4)
    assert f"{root} is not a private directory" in log
    assert "remove it, or give another place with --run-dir" in log
    root.unlink()
    root.mkdir(mode=0o755)
    root.chmod(0o755)
    assert f"{root} is not a private directory" in refused(start(wait=False), 4)
    root.chmod(0o700)
    (root / "faults").symlink_to(elsewhere)
    assert f"{root / 'faults'} is not a private directory" in refused(start(wait=False), 4)
    assert list(elsewhere.iterdir()) == []


def test_a_clean_stop_and_the_next_start(start, base, tmp_path):
    """The last checkpoint holds everything, and the run directory is gone: twice."""
    state = f"--state={tmp_path / 'state'}"
    for expected in (10, 20, 30):
        cluster = start(state, "--checkpoint=60")
        assert int(cluster.get("/many?10")) == expected
        assert cluster.stop() == 0
        cluster.close()
        assert list(base.iterdir()) == []


def test_the_checkpoint_service_is_killed(tmp_path):
    """Another one is started, durable increments go on being acknowledged, the clean stop saves everything."""
    state = f"--state={tmp_path / 'state'}"
    with running("faults:app", state, FAST_DISK, workers=2) as cluster:
        with Load(cluster.address, clients=2, path="/durable") as load:
            for _ in range(3):
                victim = service(cluster)
                kill(victim)
                gone(victim)
                answered = load.acknowledged
                service(cluster, without=[victim])
                wait_for(lambda: load.acknowledged > answered + 2, PATIENCE_S, "durable again")  # noqa: B023
        load.check(total_of(cluster))
        cluster.wait_log(rf"the checkpoint service {victim} died; starting another")
        total = total_of(cluster)
        assert cluster.stop() == 0
    with running("faults:app", state, workers=1) as cluster:
        assert total_of(cluster) == total


def test_service_and_master_are_killed_together(tmp_path):
    """The next master asks for a service too; there is exactly one in the end."""
    with running("faults:app", f"--state={tmp_path / 'state'}", FAST_DISK, workers=2) as cluster:
        victims = [service(cluster), see(cluster).master]
        kill(*victims)
        whole(cluster, 2, without=victims)
        service(cluster, without=victims)
        assert cluster.get("/durable") == "1"


def mount(folder):
    """A command prefix that gives the cluster a tiny disk of its own at `folder`, in a mount namespace."""
    unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    script = 'mount -t tmpfs -o size=64k none "$0" && exec "$@"'
    return [*unshare, "sh", "-c", script, str(folder)]


def test_the_disk_is_full_for_a_while(tmp_path):
    """Counting goes on, the log says so once, durable increments wait; with room again everything is saved."""
    folder = tmp_path / "disk"
    folder.mkdir()
    state = f"--state={folder / 'state'}"
    with running("faults:app", state, FAST_DISK, workers=2, prefix=mount(folder)) as cluster:
        inside = Path(f"/proc/{cluster.process.pid}/root{folder}")
        assert cluster.get("/durable") == "1"
        filler = inside / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 20))
        assert cluster.get("/many?99") == "100"
        cluster.wait_log(r"cannot write the checkpoint to .*: No space left on device; make room on that disk")
        with Load(cluster.address, clients=2) as load, ledger(cluster) as seen:
            tries = seen.checkpoint_started
            wait_for(lambda: seen.checkpoint_started > tries + 3, what="it tries again")
            assert seen.checkpoint_done < tries
        load.check(total_of(cluster), base=100)
        assert cluster.log.count("cannot write the checkpoint") == 1
        filler.unlink()
        cluster.wait_log("checkpoints are written again")
        assert int(cluster.get("/durable")) == total_of(cluster) > 100


@pytest.mark.parametrize("kind", ["file", "no room to make it"])
def test_a_state_directory_that_cannot_be_used(start, base, tmp_path, kind):
    """Exit 4, naming it and the reason; nothing is left."""
    path = tmp_path / "state" if kind == "file" else Path("/proc/nobody-can-make-this/state")
    if kind == "file":
        path.write_text("I am a file")
    log = refused(start(f"--state={path}", wait=False), 4)
    assert f"cannot use --state {path}: " in log
    assert "Traceback" not in log
    assert list(base.iterdir()) == []


def test_two_clusters_cannot_share_a_state_directory(start, tmp_path):
    """The second exits with 4 and names the launcher of the first, which counts on."""
    state = f"--state={tmp_path / 'state'}"
    with running("faults:app", state, workers=2) as cluster:
        assert cluster.get("/many?5") == "5"
        log = refused(start(state, wait=False), 4)
        assert f"is in use by another cluster (launcher {cluster.process.pid}); give each its own" in log
        assert cluster.get("/durable") == "6"


@contextmanager
def children_of_a_worker(cluster, *kinds):
    """Have one worker start processes that outlive it; gives its pid and theirs, by kind. It stays connected."""
    with closing(http.client.HTTPConnection(*cluster.address, timeout=15)) as connection:  # kept alive, so the same
        children = {}
        for kind in kinds:
            connection.request("GET", f"/child?{kind}")
            worker, children[kind] = map(int, connection.getresponse().read().split())
        yield worker, children


def test_what_a_dead_worker_leaves_is_ended():
    """Its children get TERM at once, and KILL 5 s later if they are deaf; those of another worker live on."""
    with running("faults:app", "--keep-alive=60", workers=2) as cluster, ExitStack() as made:
        kinds = ("hears", "hears,session", "deaf", "deaf,session")
        doomed, children = made.enter_context(children_of_a_worker(cluster, *kinds))

        def another():  # each stays connected: the worker that has most connections leaves the next to the other
            worker, started = made.enter_context(children_of_a_worker(cluster, "hears"))
            return worker != doomed and (worker, started)

        other, others = wait_for(another, what="children of the other worker")
        begun = time.monotonic()
        kill(doomed)
        gone(children["hears"], children["hears,session"])
        deaf = [is_there(children["deaf"]), is_there(children["deaf,session"])]
        # Later than that this machine is too busy to see them between TERM and KILL.
        assert all(deaf) or time.monotonic() > begun + 4.0
        gone(children["deaf"], children["deaf,session"])
        assert time.monotonic() - begun > 4.9
        assert is_there(others["hears"])
        assert other in [w["pid"] for w in cluster.workers()]

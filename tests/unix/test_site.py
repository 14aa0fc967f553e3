"""The site: all of it or nothing, and nothing that was counted is lost by a start that fails."""

import os
import resource
import signal
import socket

import pytest
from family import Gate, open_fds, wait_for_kill
from ledger_support import in_child, reap, start

from zcluster.config import make_config
from zcluster.errors import SpawnError
from zcluster.unix import leash, rundir
from zcluster.unix.ledgerfile import boot_id
from zcluster.unix.locks import LAUNCHER_BYTE, LockFile
from zcluster.unix.site import FDS_ENOUGH, prepare
from zcluster.unix.state import CheckpointFile


@pytest.fixture
def config(base):
    def make(**more):
        return make_config(**{"app": "shop:app", "bind": "127.0.0.1:0", "run_dir": str(base), "lanes": 4} | more)

    return make


def launcher(body, *args):
    """Run `body` as a launcher does: a process of its own, which leaves no descriptor open."""

    def run():
        before = open_fds()
        result = body(*args)
        assert open_fds() == before
        return result

    return in_child(run)


def names_in(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def count(site, total):
    """Make the ledger hold `hits` = total, as if a worker had counted."""
    ledger = site.ledger.ledger
    with site.locks.names():
        index = ledger.register("hits")
        ledger.use_lane(0)
    ledger.lane(0).cells[index] = total - ledger.totals().get("hits", 0)
    assert ledger.totals() == {"hits": total}


def test_everything_a_cluster_needs_is_there(config, base):
    """Sockets, ledger, locks, leash and the published name; workers resolved; all gone after close."""

    def body():
        site = prepare(config(bind=("127.0.0.1:0", f"unix:{base}/s"), workers=0))
        assert site.config.workers >= 1
        assert site.urls == (f"http://127.0.0.1:{site.listeners[0].sock.getsockname()[1]}", f"unix:{base}/s")
        assert {entry.name for entry in site.path.iterdir()} == {"ledger", "leash", "locks", "log"}
        assert site.path.parent.name == "shop"
        assert site.ledger.ledger.boot_id == boot_id()
        assert site.ledger.ledger.totals() == {}
        found = in_child(lambda: [(c.name, c.path, c.launcher_pid) for c in rundir.clusters(base)])
        assert found == [("shop", site.path, os.getpid())]
        site.close()
        assert names_in(base) == []

    launcher(body)


def test_the_launchers_byte_is_locked(config):
    """Another process sees who holds it, and cannot have it."""

    def body():
        site = prepare(config())

        def other():
            os.close(site.locks.fd)
            locks = LockFile(site.path / "locks")
            return locks.owner(LAUNCHER_BYTE), locks.try_lock(LAUNCHER_BYTE)

        assert in_child(other) == (os.getpid(), False)
        site.close()

    launcher(body)


def test_a_wearer_lives_as_long_as_the_site(config):
    """The site holds the leash; closing the site ends who still wears it."""

    def body():
        site = prepare(config())
        gate = Gate()

        def worn():
            os.close(site.leash_fd)  # as a fork that keeps only what it needs
            leash.wear(site.path / "leash")
            gate.open()
            wait_for_kill()

        pid = start(worn)
        gate.wait()
        gate.close()
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        site.close()
        assert reap(pid) == -signal.SIGKILL

    launcher(body)


# ---- starts that fail ----------------------------------------------------------------------------------------------
def fails(config, match):
    """prepare() raises, and leaves no descriptor, no file and no lock."""

    def body():
        with pytest.raises(SpawnError, match=match):
            prepare(config)

    launcher(body)


def test_a_port_in_use_leaves_nothing(config, base):
    """The second address is taken: the first, the directories, the name and the state directory are free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bad = config(bind=(f"unix:{base}/s", f"127.0.0.1:{port}"), state=f"{base}/state")
        fails(bad, f"cannot listen on 127.0.0.1:{port}: address already in use")
    assert names_in(base) == ["state", "state/id", "state/lock"]

    def free():
        prepare(bad).close()

    launcher(free)
    assert names_in(base) == ["state", "state/id", "state/ledger", "state/lock"]


def test_a_name_that_is_taken_leaves_the_other_untouched(config, base):
    """The first cluster keeps its files and its lock."""

    def body():
        site = prepare(config(name="one"))
        before = names_in(base)
        pid = os.getpid()

        def second():
            os.close(site.rundir.lock.fd)
            with pytest.raises(SpawnError, match=rf"named 'one' is already running \(launcher {pid}\)"):
                prepare(config(name="one"))

        in_child(second)
        assert names_in(base) == before
        assert site.ledger.ledger.totals() == {}
        site.close()

    launcher(body)


def test_no_room_for_the_ledger_leaves_nothing(config, base):
    """The size that is needed is told (here a limit of file sizes stands for a full tmpfs)."""

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))
        with pytest.raises(SpawnError, match="no room for the ledger"):
            prepare(config(lanes=512))

    launcher(body)
    assert names_in(base) == []


def test_no_descriptors_left_is_the_machines_fault(config, base):
    """Whatever step needs the one that is not there: SpawnError, and nothing left."""

    def body(room):
        free = [os.open(os.devnull, os.O_RDONLY) for _ in range(room + 1)]  # numbers, which need not be dense
        limit = max(free) + 1
        for fd in free:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        try:
            site = prepare(config())
        except SpawnError:
            return False
        site.close()
        return True

    results = []
    while True not in results:
        results.append(launcher(body, len(results)))
        assert names_in(base) == []
        assert len(results) < 30
    assert len(results) >= 4  # one each for the lock of the name, a listener, the locks and the leash


def count_and_crash(config, total):
    """A cluster that counted and was killed: its ledger is left, no checkpoint was ever written."""

    def body():
        count(prepare(config), total)

    in_child(body)


def total_after_start(config):
    """The total with which the next start begins; it then stops cleanly without a checkpoint."""

    def body():
        site = prepare(config)
        totals = site.ledger.ledger.totals()
        site.close(keep_ledger=True)
        return totals

    return launcher(body)


def test_a_start_that_fails_at_its_last_step_loses_no_count(config, base):
    """The state directory goes on naming the ledger of the killed cluster until the new one is complete: the start
    after the failed one finds every count."""
    with_state = config(state=f"{base}/state")
    count_and_crash(with_state, 41)
    folder = rundir.root_of(base) / "shop"
    (folder / "current").unlink()
    (folder / "current").mkdir()  # publishing fails
    (old,) = (entry for entry in folder.iterdir() if (entry / "ledger").exists())
    fails(with_state, "cannot set up the run directory in .*current")
    assert [entry for entry in folder.iterdir() if (entry / "ledger").exists()] == [old]
    (folder / "current").rmdir()
    assert total_after_start(with_state) == {"hits": 41}


# ---- what a start goes on from -------------------------------------------------------------------------------------
def test_a_start_goes_on_from_the_ledger_of_a_killed_cluster(config, base):
    """Every count is there, the old ledger is removed once the new one stands, and so on from start to start."""
    with_state = config(state=f"{base}/state")
    count_and_crash(with_state, 7)
    count_and_crash(with_state, 12)
    assert total_after_start(with_state) == {"hits": 12}
    assert total_after_start(with_state) == {"hits": 12}
    folder = rundir.root_of(base) / "shop"
    assert len([entry for entry in folder.iterdir() if entry.is_dir()]) == 1


def test_a_start_goes_on_from_the_checkpoint_after_a_clean_stop(config, base):
    """A checkpoint that covers the ledger lets the ledger go."""
    with_state = config(state=f"{base}/state")

    def body(total):
        site = prepare(with_state)
        before = site.ledger.ledger.totals()
        count(site, total)

        def write():
            os.close(site.state._locks.fd)  # the service is a process of its own
            with CheckpointFile(f"{base}/state") as file:
                assert file.try_turn()
                file.write(site.ledger.ledger.ledger_id, 1, site.ledger.ledger.totals())

        in_child(write)
        site.close()
        return before

    assert launcher(body, 5) == {}
    assert not rundir.root_of(base).exists()
    assert launcher(body, 9) == {"hits": 5}
    assert launcher(body, 10) == {"hits": 9}


def test_close_keeps_a_ledger_that_no_checkpoint_covers(config, base):
    """The counters stay for the next start."""
    with_state = config(state=f"{base}/state")

    def body():
        site = prepare(with_state)
        count(site, 3)
        site.close()
        return names_in(site.path)

    assert launcher(body) == ["ledger"]
    assert total_after_start(with_state) == {"hits": 3}


def test_without_a_state_directory_a_stop_leaves_nothing(config, base):
    """Whatever the caller has seen: there is nothing a next start could resume from."""

    def body():
        site = prepare(config())
        count(site, 3)
        site.close(keep_ledger=True)

    launcher(body)
    assert names_in(base) == []
    count_and_crash(config(), 4)
    assert total_after_start(config()) == {}
    assert names_in(base) == []


def test_a_ledger_of_another_state_directory_survives(config, base):
    """The same name started with another --state: the first one's counts wait for its return."""
    first, second = config(state=f"{base}/first"), config(state=f"{base}/second")
    count_and_crash(first, 6)
    count_and_crash(second, 2)
    count_and_crash(config(), 1)
    assert total_after_start(first) == {"hits": 6}
    assert total_after_start(second) == {"hits": 2}


def test_a_state_directory_in_use_is_refused(config, base):
    """By a cluster of another name; that one is named, and nothing is left of the second."""

    def body():
        site = prepare(config(name="one", state=f"{base}/state"))
        pid = os.getpid()

        def second():
            for fd in {site.locks.fd, site.rundir.lock.fd, site.state._locks.fd}:
                os.close(fd)
            with pytest.raises(SpawnError, match=rf"in use by another cluster \(launcher {pid}\)"):
                prepare(config(name="two", state=f"{base}/state"))

        in_child(second)
        assert not (rundir.root_of(base) / "two").exists()
        site.close(keep_ledger=True)

    launcher(body)


def test_the_limit_of_open_files_is_raised(config):
    """To what the machine allows, within reason; one that is high enough is left alone."""

    def body():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        prepare(config()).close()
        return resource.getrlimit(resource.RLIMIT_NOFILE), (min(hard, FDS_ENOUGH), hard)

    now, expected = launcher(body)
    assert now == expected

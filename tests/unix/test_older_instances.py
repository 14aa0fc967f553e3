"""What an older instance of a name left: its processes end before the next start, its files go, its counts stay."""

import fcntl
import os
import signal
import struct
import time

import pytest
from family import Gate, wait_for_kill
from ledger_support import BOOT, kill, reap, start

from zcluster.errors import SpawnError
from zcluster.unix import rundir
from zcluster.unix.ledgerfile import create, open_ledger
from zcluster.unix.locks import LockFile
from zcluster.unix.rundir import await_older, claim, clusters, discard

STATE, OTHER = b"s" * 16, b"o" * 16


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def stuck_worker(instance, gate):
    """A worker of a dead launcher that does not leave: it holds its lane's lock and ignores SIGTERM."""

    def body():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert LockFile(instance / "locks").try_lock(3)
        gate.open()
        wait_for_kill()

    return start(body)


@pytest.fixture
def after_a_crash(base):
    """A claimed name whose last launcher was killed."""
    gate = Gate()

    def launcher():
        claim(base, "shop", "").publish()
        gate.open()
        wait_for_kill()

    pid = start(launcher)
    gate.wait()
    gate.close()
    (old,) = clusters(base)
    kill(pid)
    run = claim(base, "shop", "")
    assert run.older == (old.path,)
    yield run
    run.remove()
    run.lock.close()


def test_processes_of_an_older_instance_are_waited_for_and_then_killed(after_a_crash):
    """The one that is stuck dies after the grace and not before; how many had to be killed is told."""
    gate = Gate()
    pid = stuck_worker(after_a_crash.older[0], gate)
    gate.wait()
    gate.close()
    begun = time.monotonic()
    assert await_older(after_a_crash, grace_s=0.3) == 1
    assert time.monotonic() - begun >= 0.3
    assert reap(pid) == -signal.SIGKILL
    assert await_older(after_a_crash, grace_s=0.3) == 0


def test_processes_that_leave_by_themselves_are_not_killed(after_a_crash):
    """The start goes on as soon as the last one has gone."""
    gate, go = Gate(), Gate()

    def body():
        assert LockFile(after_a_crash.older[0] / "locks").try_lock(3)
        gate.open()
        go.wait()
        os._exit(5)

    pid = start(body)
    gate.wait()
    go.open()
    begun = time.monotonic()
    assert await_older(after_a_crash, grace_s=100.0) == 0
    assert time.monotonic() - begun < 50
    assert reap(pid) == 5
    gate.close()
    go.close()


def test_a_process_that_has_lost_its_locks_and_still_dies_is_waited_for(after_a_crash):
    """The kernel lets go of a dying process's locks before its sockets: until it is dead the port may be taken."""
    gate, go = Gate(), Gate()

    def body():
        locks = LockFile(after_a_crash.older[0] / "locks")
        assert locks.try_lock(3)
        gate.open()
        go.wait()
        locks.unlock(3)
        gate.open()
        wait_for_kill()

    pid, seen = start(body), {}
    gate.wait()
    assert rundir._not_gone(after_a_crash.older, seen) == {pid}
    go.open()
    gate.wait()
    assert rundir._living(after_a_crash.older) == set()
    assert rundir._not_gone(after_a_crash.older, seen) == {pid}
    kill(pid)
    assert rundir._not_gone(after_a_crash.older, seen) == set()
    gate.close()
    go.close()


def test_a_lock_whose_owner_cannot_be_named_ends_the_wait_with_an_error(after_a_crash, monkeypatch):
    """A lock of an open file description has no owner's pid, as one of another PID namespace: nobody is killed."""
    gate = Gate()
    path = after_a_crash.older[0] / "locks"

    def body():
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0))  # F_OFD_SETLK
        gate.open()
        wait_for_kill()

    pid = start(body)
    gate.wait()
    gate.close()
    monkeypatch.setattr(rundir, "KILL_GRACE_S", 0.2)
    with pytest.raises(SpawnError, match="processes of an older instance of 'shop' cannot be killed"):
        await_older(after_a_crash, grace_s=0.1)
    kill(pid)


def old_ledger(folder, name, state_id, lanes=2):
    path = folder / name
    path.mkdir(mode=0o700)
    for file in ("locks", "ctl", "current.new"):
        (path / file).touch()
    create(
        path / "ledger", ledger_id=b"L" * 16, boot_id=BOOT, state_id=state_id, base={"hits": 7}, lanes=lanes
    ).close()
    return path


def test_discard_keeps_what_counts_for_another_state_directory(base):
    """A ledger without a state, or of ours, goes with its directory; another's stays, alone; so does no rubbish."""
    nobodys, ours = old_ledger(base, "1", bytes(16)), old_ledger(base, "2", STATE)
    others, rubbish, empty = old_ledger(base, "3", OTHER), old_ledger(base, "4", OTHER), base / "5"
    (rubbish / "ledger").write_bytes(b"not a ledger")
    (ours / "folder").mkdir()
    (others / "folder").mkdir()
    empty.mkdir()
    discard((nobodys, ours, others, rubbish, empty, base / "gone"), STATE)
    assert [path.name for path in base.iterdir()] == ["3"]
    assert sorted(path.name for path in others.iterdir()) == ["folder", "ledger"]
    file = open_ledger(others / "ledger", writable=False)
    assert file.ledger.totals() == {"hits": 7}
    file.close()

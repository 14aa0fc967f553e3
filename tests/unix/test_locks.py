"""Byte locks between real processes: exclusion, owners, and that death and fork release them."""

import fcntl
import os
import signal
import threading

import pytest
from ledger_support import forever, in_child, kill, reap, start, start_ready, until

from zcluster.errors import ClusterError, SpawnError
from zcluster.unix import locks as module
from zcluster.unix.locks import LANES_END, NAMES_BYTE, ROLE_BASE, LockFile, zygote_byte


@pytest.fixture
def path(tmp_path):
    return tmp_path / "locks"


def hold(path, *bytes_):
    """A child that opens the file, locks the bytes, and keeps them until it is killed; returns once it has them."""

    def body(ready):
        file = LockFile(path)
        assert all(file.try_lock(byte) for byte in bytes_)
        ready()
        forever()

    return start_ready(body)


def test_a_locked_byte_is_exclusive_and_names_its_owner(path):
    """Another process's byte cannot be locked, its neighbour can, and the owner's pid is told."""
    pid = hold(path, 3)
    file = LockFile(path)
    try:
        assert not file.try_lock(3)
        assert file.try_lock(4)
        assert file.owner(3) == pid
        assert file.owner(4) is None  # our own
        assert file.owner(5) is None
    finally:
        kill(pid)
        file.close()


def test_a_lock_dies_with_its_process(path):
    """After SIGKILL the byte is free at once."""
    pid = hold(path, 0)
    file = LockFile(path)
    assert not file.try_lock(0)
    kill(pid)
    assert file.try_lock(0)
    file.close()


def test_a_lock_is_not_inherited_by_fork(path):
    """A forked child does not hold its parent's bytes, although it has the descriptor; when the parent dies they are
    free while the child lives."""
    reading, writing = os.pipe()

    def parent():
        file = LockFile(path)
        assert file.try_lock(7)

        def orphan():
            assert not file.try_lock(7)
            os.write(writing, os.getpid().to_bytes(4, "little"))
            forever()

        start(orphan)
        forever()

    pid = start(parent)
    orphan_pid = int.from_bytes(os.read(reading, 4), "little")
    file = LockFile(path)
    assert file.owner(7) == pid
    kill(pid)
    os.kill(orphan_pid, 0)  # the orphan lives and has the file open
    assert file.try_lock(7)
    os.kill(orphan_pid, signal.SIGKILL)
    file.close()
    os.close(reading)
    os.close(writing)


def test_owners_walks_over_holes_and_several_processes(path):
    """Every byte held by others is reported with its pid, whatever the order in which the locks were taken."""
    first = hold(path, 10, 2, 3, 4)
    second = hold(path, 0, 11, 6, ROLE_BASE, zygote_byte(2))
    file = LockFile(path)
    try:
        assert file.try_lock(5)  # our own never shows
        expected = {2: first, 3: first, 4: first, 10: first, 0: second, 6: second, 11: second}
        assert file.owners(0, LANES_END) == expected
        assert file.owners(3, 8) == {3: first, 4: first, 6: second, 10: first}
        assert file.owners() == expected | {ROLE_BASE: second, zygote_byte(2): second}
        assert file.owners(7, 3) == {}
    finally:
        kill(first)
        kill(second)
        file.close()


def test_a_lock_to_the_end_of_the_file_is_bounded(path):
    """A stranger's lock of the whole file (length 0) counts for every byte asked about."""

    def body(ready):
        fcntl.lockf(os.open(path, os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
        ready()
        forever()

    pid = start_ready(body)
    file = LockFile(path)
    assert file.owners(5, 3) == {5: pid, 6: pid, 7: pid}
    kill(pid)
    file.close()


def test_a_second_open_in_one_process_is_refused(path, tmp_path):
    """The trap of POSIX locks is closed: opening again raises and drops nothing, also through another name."""
    file = LockFile(path)
    assert file.try_lock(1)
    os.link(path, tmp_path / "alias")
    for name in (path, tmp_path / "alias"):
        with pytest.raises(ClusterError, match="open in this process already"):
            LockFile(name)
    in_child(_assert_locked, file)
    file.close()
    file.close()
    again = LockFile(path)
    assert again.try_lock(1)
    again.close()


def _assert_locked(file):
    assert not file.try_lock(1)


def test_a_forked_child_may_close_what_it_inherited_and_open_anew(path):
    """A child that closed all descriptors, not knowing whose, is not refused its own."""
    file = LockFile(path)
    assert file.try_lock(1)

    def body():
        os.close(file.fd)
        own = LockFile(path)
        return own.try_lock(1), own.try_lock(2), own.owner(1)

    assert in_child(body) == (False, True, os.getpid())
    file.close()


def test_a_forked_child_may_lock_through_what_it_inherited(path):
    """The descriptor is shared, the locks are not."""
    file = LockFile(path)

    def body():
        return file.try_lock(9)

    assert in_child(body)
    assert file.try_lock(9)
    file.close()


def test_unlock(path):
    """A byte given back can be taken by another process; giving back what is not ours does nothing."""
    file = LockFile(path)
    file.unlock(1)
    assert file.try_lock(1)
    file.unlock(1)
    assert in_child(lambda: file.try_lock(1))
    file.close()


def test_the_file_is_private_and_no_symlink(path, tmp_path):
    """Mode 0600; a symlink or a missing directory is a SpawnError."""
    file = LockFile(path)
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()
    (tmp_path / "link").symlink_to(path)
    for bad in (tmp_path / "link", tmp_path / "no" / "locks"):
        with pytest.raises(SpawnError, match="cannot open the lock file"):
            LockFile(bad)


def test_names_excludes_other_processes_and_is_bounded(path):
    """While another process has the names lock, waiting ends with an error that names it."""
    pid = hold(path, NAMES_BYTE)
    file = LockFile(path)
    with pytest.raises(ClusterError, match=f"process {pid} has held the names lock"), file.names(timeout_s=0.05):
        pass
    kill(pid)
    with file.names():
        assert not in_child(lambda: file.try_lock(NAMES_BYTE))
    assert in_child(lambda: file.try_lock(NAMES_BYTE))
    file.close()


def test_names_excludes_other_threads(path):
    """POSIX locks do not know threads; names() does."""
    file = LockFile(path)
    inside = most = 0

    def work():
        nonlocal inside, most
        for _ in range(100):
            with file.names():
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with file.names():
        impatient = threading.Thread(target=_expect_refusal, args=(file, refusals := []))
        impatient.start()
        impatient.join()
    assert refusals == ["another thread of this process has held the names lock for 0.01 s"]
    file.close()


def _expect_refusal(file, refusals):
    try:
        with file.names(timeout_s=0.01):
            pass
    except ClusterError as error:
        refusals.append(str(error))


def test_names_is_not_entered_twice_by_one_thread(path):
    """A finalizer that needs the lock its own thread is holding gets an error at once, and the lock stays held."""
    file = LockFile(path)
    with file.names():
        with pytest.raises(ClusterError, match="declare both at import"), file.names():
            pass
        assert not in_child(lambda: file.try_lock(NAMES_BYTE))
    with file.names():
        pass
    file.close()


def test_names_waits_for_a_holder_that_dies(path):
    """A registration interrupted by SIGKILL does not keep the next one waiting."""
    pid = hold(path, NAMES_BYTE)
    killer = threading.Timer(0.05, os.kill, (pid, signal.SIGKILL))
    file = LockFile(path)
    killer.start()
    with file.names():
        pass
    killer.join()
    assert reap(pid) == -signal.SIGKILL
    file.close()


def test_nothing_stays_registered():
    """Closed files leave no entry in the registry of open ones."""
    until(lambda: all(_is_open(fd) for fd in module._open_files.values()), "no stale entry")


def _is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

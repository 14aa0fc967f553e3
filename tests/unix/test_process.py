"""Births, deaths and identities of real processes."""

import ast
import ctypes
import os
import resource
import signal
import struct
import threading
import time

import pytest
from family import Gate, children, collect, drop_privileges, fork, in_family, lives_on, open_fds, wait_for_kill
from ledger_support import in_child, kill, reap, start, until

from zcluster.errors import SpawnError
from zcluster.unix import process


# ---- identity ------------------------------------------------------------------------------------------------------
def test_stat_tells_what_the_kernel_knows():
    """Pid, parent, group, state and start time, also of a process whose name looks like the rest of the line."""
    gate = Gate()

    def body():
        process.set_title("a) Z 1 1 (b")
        gate.open()
        wait_for_kill()

    pid = start(body)
    gate.wait()
    found = until(lambda: (seen := process.stat(pid)) and seen.state == "S" and seen)
    expected = process.Stat(pid, "S", os.getpid(), os.getpgrp(), process.start_time(pid), 1, found.cpu_ticks)
    assert found == expected
    assert found.cpu_ticks < 100  # it has done next to nothing, which may have been in the middle of a tick
    ticks = os.sysconf("SC_CLK_TCK")
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - found.start / ticks
    assert -2 / ticks <= age_s < 20
    kill(pid)
    gate.close()
    assert process.stat(pid) is None
    assert process.start_time(pid) == 0


def test_a_zombie_is_known_but_not_alive():
    """The start time of a zombie can be read; it does not count as running."""
    pid = start(lambda: None)
    until(lambda: process.stat(pid).state == "Z")
    begun = process.start_time(pid)
    assert begun > 0
    assert not process.is_alive(pid, begun)
    assert reap(pid) == 0


def test_a_process_lives_as_long_as_the_last_of_its_threads():
    """Its first thread has ended, and the kernel calls it a zombie: what the others have open is still open."""
    gate = Gate()

    def body():
        threading.Thread(target=lambda: (gate.wait(), os._exit(7))).start()
        ctypes.CDLL(None).pthread_exit(None)

    pid = start(body)
    found = until(lambda: (seen := process.stat(pid)) and seen.state == "Z" and seen)
    assert found.threads == 2
    assert not found.is_dead
    assert process.is_alive(pid, found.start)
    gate.open()
    gate.close()
    until(lambda: not process.is_alive(pid, found.start))
    assert process.stat(pid).is_dead
    assert reap(pid) == 7


def test_processes_lists_us_once():
    """Every process we can see, with its parent."""
    pid = start(wait_for_kill)
    seen = [found for found in process.processes() if found.pid in (pid, os.getpid())]
    assert {found.pid: found.ppid for found in seen} == {pid: os.getpid(), os.getpid(): os.getppid()}
    assert len(seen) == 2
    kill(pid)


def test_a_signal_reaches_only_the_process_that_is_meant():
    """A process that has the pid but not the start time is somebody else: nothing happens to it."""
    pid = start(wait_for_kill)
    begun = process.start_time(pid)
    assert process.is_alive(pid, begun)
    assert not process.is_alive(pid, begun + 1)
    assert not process.send_signal(pid, begun + 1, signal.SIGKILL)
    assert lives_on(lambda: process.is_alive(pid, begun))
    assert process.send_signal(pid, begun, signal.SIGKILL)
    assert reap(pid) == -signal.SIGKILL
    assert not process.send_signal(pid, begun, signal.SIGKILL)


def test_a_signal_that_cannot_be_sent_is_no_error():
    """Pids of another namespace (0), nonsense (-1) and another user's process are answered with False."""
    assert not process.send_signal(0, 0, signal.SIGKILL)
    assert not process.send_signal(-1, 0, signal.SIGKILL)

    def body():
        drop_privileges()
        may = os.getuid() in (0, os.stat("/proc/1").st_uid)
        return may, process.send_signal(1, process.start_time(1), 0)  # SIGCONT is free within a session

    may, done = in_child(body)
    assert done == may


# ---- deaths --------------------------------------------------------------------------------------------------------
def test_reap_tells_code_signal_group_and_start():
    """One Death per child with what the zombie still shows; a core dump counts as a signal."""

    def body():
        gate = Gate()

        def lead_a_group():
            os.setpgid(0, 0)
            gate.wait()
            return 7

        def die_of(number):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if number == signal.SIGABRT:
                signal.signal(number, signal.SIG_DFL)  # no traceback from faulthandler
            os.kill(os.getpid(), number)

        assert list(process.reap()) == []
        leader = fork(lead_a_group)
        until(lambda: process.stat(leader).pgrp == leader)
        begun = process.start_time(leader)
        assert list(process.reap()) == []
        gate.open()
        killed, aborted = fork(die_of, signal.SIGKILL), fork(die_of, signal.SIGABRT)
        found = collect(leader, killed, aborted)
        assert found[leader] == process.Death(leader, begun, leader, 7, None)
        assert (found[killed].code, found[killed].signal) == (None, signal.SIGKILL)
        assert found[killed].pgrp == os.getpgrp()
        assert found[killed].start > 0
        assert (found[aborted].code, found[aborted].signal) == (None, signal.SIGABRT)

    in_family(body)


def test_while_a_death_is_told_the_pid_is_taken():
    """The zombie stands until the caller has acted on it, and is gone afterwards."""

    def body():
        pid = fork(lambda: 0)
        until(lambda: process.stat(pid).state == "Z")
        for death in process.reap():
            assert death.pid == pid
            assert process.stat(pid).start == death.start
        assert process.stat(pid) is None

    in_family(body)


def test_strangers_are_reaped_too():
    """A daemon that a child of ours left behind becomes ours, and its exit code is collected."""

    def body():
        told, gate = Gate(), Gate()
        reader, writer = os.pipe()

        def leave_a_daemon():
            def daemon():
                os.setsid()
                os.write(writer, struct.pack("i", os.getpid()))
                gate.wait()
                return 9

            fork(daemon)
            told.wait()

        child = fork(leave_a_daemon)
        (stranger,) = struct.unpack("i", os.read(reader, 4))
        assert process.stat(stranger).ppid == child
        told.open()
        assert collect(child)[child].code == 0
        assert process.stat(stranger).ppid == os.getpid()
        gate.open()
        death = collect(stranger)[stranger]
        assert (death.code, death.pgrp) == (9, stranger)

    in_family(body)


# ---- births by fork ------------------------------------------------------------------------------------------------
def zygote(report, gate, prepare=lambda: None):
    """Fork an orphan that waits at the gate and ends with 7; report its identity, or the error, and end with 0."""
    prepare()
    before = open_fds()
    try:
        birth = process.fork_orphan()
    except SpawnError as error:
        os.write(report, repr(str(error)).encode())
    else:
        if birth is None:
            signal.alarm(30)
            gate.wait()
            os._exit(7 if process.thread_count() == 1 else 8)
        os.write(report, repr(birth).encode())
    if os.getpid() != os.getpgrp():
        assert open_fds() == before
    return 0


def born(prepare=lambda: None, zygotes=None):
    """Run a zygote; returns its pid, what it reported, and the gate at which the orphan stands."""
    gate = Gate()
    reader, writer = os.pipe()
    pid = fork(zygote, writer, gate, prepare)
    os.close(writer)
    told = os.read(reader, 4096)
    os.close(reader)
    assert told, "the zygote died"
    return pid, ast.literal_eval(told.decode()), gate


def test_an_orphan_is_the_subreapers_child_from_birth():
    """Double fork: one thread, a group of its own, our child, and we get its exit code."""

    def body():
        zygote_pid, (pid, begun), gate = born()
        found = process.stat(pid)
        assert (found.ppid, found.pgrp, found.start) == (os.getpid(), pid, begun)
        gate.open()
        deaths = collect(zygote_pid, pid)
        assert deaths[zygote_pid].code == 0
        assert deaths[pid] == process.Death(pid, begun, pid, 7, None)
        assert deaths.keys() == {zygote_pid, pid}  # the intermediate was its zygote's to wait for

    in_family(body)


def strike(where, number):
    """Let a signal hit one party of the double fork at a certain moment (hooks of os.fork, in the zygote)."""
    top = os.getpid()

    def in_child_hook():
        party = "middle" if os.getppid() == top else "orphan"
        if party == where:
            os.kill(os.getpid(), number)

    def in_parent_hook():
        if where == "middle, after its fork" and os.getpid() != top:
            os.kill(os.getpid(), number)

    # What a birth that nobody stopped needs on a busy machine; longer where it must succeed.
    process.BIRTH_TIMEOUT_MS = 10_000 if where == "middle, after its fork" else 1500
    os.register_at_fork(after_in_child=in_child_hook, after_in_parent=in_parent_hook)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("where", ["middle", "middle, after its fork", "orphan"])
def test_a_birth_that_is_struck_is_a_living_process_or_an_error(where, number):
    """Whoever is killed or stopped in between: fork_orphan returns in time, and what it reports lives."""

    def body():
        begun = time.monotonic()
        zygote_pid, told, gate = born(lambda: strike(where, number))
        took_s = time.monotonic() - begun
        assert took_s < 30
        if where == "middle, after its fork":
            pid, start_ticks = told
            assert process.is_alive(pid, start_ticks)
            gate.open()
            assert collect(zygote_pid, pid)[pid].code == 7
            return
        assert told == "cannot fork a worker: it ended, or was stopped, before it was born"
        deaths = collect(zygote_pid)
        assert deaths[zygote_pid].code == 0
        for left in children():
            assert where == "orphan"
            os.kill(left.pid, signal.SIGCONT)  # continued too late: it must end and never come to the gate
            deaths |= collect(left.pid)
            ended = (os.EX_OSERR, None) if number == signal.SIGSTOP else (None, number)
            assert (deaths[left.pid].code, deaths[left.pid].signal) == ended

    in_family(body)


def test_a_fork_that_the_kernel_refuses_is_a_spawn_error():
    """RLIMIT_NPROC: the first or the second fork fails, nothing is left open or running, the machine is blamed."""

    def limit():
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    def limit_first():
        drop_privileges()
        limit()

    def limit_second():
        top = os.getpid()
        drop_privileges()
        os.register_at_fork(after_in_child=lambda: limit() if os.getppid() == top else None)

    def body(prepare, expected):
        zygote_pid, told, _gate = born(prepare)
        assert told == expected
        deaths = collect(zygote_pid)
        assert deaths.keys() == {zygote_pid}
        assert deaths[zygote_pid].code == 0

    in_family(body, limit_first, "cannot fork a worker: Resource temporarily unavailable")
    in_family(body, limit_second, "cannot fork a worker: it ended, or was stopped, before it was born")


def test_fork_orphan_a_hundred_times():
    """No descriptor, no intermediate and no orphan is ever lost."""

    def body():
        reader, writer = os.pipe()

        def nursery():
            before = open_fds()
            for _ in range(100):
                birth = process.fork_orphan()
                if birth is None:
                    os._exit(0)
                os.write(writer, struct.pack("i", birth[0]))
            return 0 if open_fds() == before else 1

        pid = fork(nursery)
        os.close(writer)
        deaths = collect(pid)
        with os.fdopen(reader, "rb") as pipe:
            pids = [number for (number,) in struct.iter_unpack("i", pipe.read())]
        assert len(set(pids)) == 100
        deaths |= collect(*(set(pids) - deaths.keys()))
        assert all(death.code == 0 for death in deaths.values())
        assert deaths.keys() == {pid, *pids}

    in_family(body)


# ---- of this process -----------------------------------------------------------------------------------------------
def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_close_fds_but_keeps_exactly_what_is_named():
    """High numbers too, whatever the limit is by now; naming a closed one is no error."""

    def body():
        low, _ = os.pipe()
        os.dup2(low, 900)
        kept = os.dup2(low, 901)
        closed = os.dup2(low, 902)
        os.close(closed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        process.close_fds_but((0, 1, 2, kept, closed))
        assert [fd for fd in range(2000) if is_open(fd)] == [0, 1, 2, kept]

    assert reap(start(body)) == 0


def test_thread_count_is_the_kernels():
    """A thread that Python started counts while it lives."""

    def body():
        alone = process.thread_count()
        gate = Gate()
        thread = threading.Thread(target=gate.wait)
        thread.start()
        both = process.thread_count()
        gate.open()
        thread.join()
        until(lambda: process.thread_count() == 1)
        return alone, both

    assert in_child(body) == (1, 2)


def test_the_title_is_cut_to_what_the_kernel_takes():
    """ps -o comm shows the first 15 bytes."""

    def body():
        process.set_title("zc-worker 1234567890")
        with open("/proc/self/comm") as comm:
            return comm.read()

    assert in_child(body) == "zc-worker 12345\n"

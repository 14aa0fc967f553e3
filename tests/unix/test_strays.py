"""What a dead worker leaves behind is ended; what is not provably its own is not touched."""

import os
import signal
import struct
import subprocess
import sys
import time

from family import children, collect, fork, in_family, lives_on, wait_for_kill
from ledger_support import until

from zcluster.unix import process
from zcluster.unix.strays import GRACE_S, MARK, Strays

GRACE_TEST_S = 1.0  # in which a busy machine, too, ends the willing
# A program of the app: tells its pid, then waits for its end. "stubborn" ignores SIGTERM; "daemon" has a child in a
# session of its own; "heir" starts one when it is told to end, and tells that child's pid.
PROGRAM = """
import os, signal, subprocess, sys

def tell(pid):
    with open(sys.argv[1], "ab", buffering=0) as pipe:
        pipe.write(pid.to_bytes(4, "little"))

def start(*words):
    return subprocess.Popen([sys.executable, *sys.argv[:2], *words], start_new_session=True).pid

def leave_an_heir(number, frame):
    tell(start("stubborn"))
    os._exit(0)

if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "daemon" in sys.argv:
    start("stubborn")
if "heir" in sys.argv:
    signal.signal(signal.SIGTERM, leave_an_heir)
tell(os.getpid())
signal.alarm(30)
while True:
    signal.pause()
"""


class Pids:
    """A FIFO into which the programs write their pids."""

    def __init__(self, folder):
        self.path = folder / "pids"
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDWR)
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)

    def next(self):
        (pid,) = struct.unpack("<i", os.read(self.fd, 4))
        return pid

    def argv(self, *words):
        return [sys.executable, str(self.program), str(self.path), *words]


def worker(pids, *programs):
    """A worker as the zygote makes it: leads a group, marks its environment, starts programs, waits to be killed."""

    def body():
        os.setpgid(0, 0)
        os.environ[MARK] = str(os.getpid())
        for words, new_session in programs:
            subprocess.Popen(pids.argv(*words), start_new_session=new_session)
        wait_for_kill()

    pid = fork(body)
    return pid, [pids.next() for _ in programs]


def bury(pid, strays):
    """Kill a worker and act as the launcher does on its death; what was reaped, by pid."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: process.stat(pid).state == "Z")
    return turn(strays)


def turn(strays):
    """One turn of the launcher's loop; what was reaped, by pid: a stray may end while its worker is being reaped."""
    found = {}
    for death in process.reap():
        found[death.pid] = death
        strays.reaped(death.pid, death.start)
        strays.left_by(death, time.monotonic())
    strays.sweep(time.monotonic())
    return found


def until_gone(strays, found, *pids, deadline_s=30.0):
    """Turn until all these have been reaped, counting those already in `found`."""
    until(lambda: found.update(turn(strays)) or found.keys() >= set(pids), f"the end of {pids}", deadline_s)
    return found


def test_its_group_and_its_sessions_get_term_then_kill(tmp_path):
    """Four children: in its group or in a session of their own, willing or stubborn. The willing end by SIGTERM at
    once, the stubborn by SIGKILL after the grace."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(GRACE_TEST_S)
        pid, started = worker(pids, ([], False), ([], True), (["stubborn"], False), (["stubborn"], True))
        willing = {found for found in started if b"stubborn" not in _command(found)}
        stubborn = set(started) - willing
        assert len(willing) == len(stubborn) == 2
        begun = time.monotonic()
        deaths = until_gone(strays, bury(pid, strays), *willing)
        assert {deaths[found].signal for found in willing} == {signal.SIGTERM}
        assert not stubborn & deaths.keys()
        assert len(strays) == 2
        until_gone(strays, deaths, *stubborn)
        assert {deaths[found].signal for found in stubborn} == {signal.SIGKILL}
        assert time.monotonic() - begun >= GRACE_TEST_S
        assert len(strays) == 0

    in_family(body)


def _command(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_the_living_and_the_unrelated_are_not_touched(tmp_path):
    """Another worker's children, a daemon that a living worker left behind, a child of ours that bears no mark, and
    a process that bears the mark but is not ours."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(GRACE_TEST_S)
        dying, (left,) = worker(pids, ([], True))
        living, (own,) = worker(pids, ([], True))

        def leave_a_daemon():
            os.environ[MARK] = str(living)
            subprocess.Popen(pids.argv("stubborn"), start_new_session=True)

        between = fork(leave_a_daemon)
        daemon = pids.next()
        collect(between)
        unmarked = fork(wait_for_kill)

        def keep_one_marked():
            subprocess.Popen(pids.argv(), env={**os.environ, MARK: str(dying)}, start_new_session=True)
            wait_for_kill()

        keeper = fork(keep_one_marked)
        anothers = pids.next()
        deaths = until_gone(strays, bury(dying, strays), left)
        assert deaths.keys() == {dying, left}
        spared = [living, own, daemon, unmarked, keeper, anothers]
        assert process.stat(daemon).ppid == os.getpid()
        assert lives_on(lambda: turn(strays) == {} and all(process.stat(pid).state != "Z" for pid in spared), 0.5)
        assert len(strays) == 0
        for pid in spared:
            os.kill(pid, signal.SIGKILL)
        collect(*spared)

    in_family(body)


def test_what_strays_leave_behind_is_ended_too(tmp_path):
    """A daemon's child in yet another session, and one that a stray starts when it is told to end: both become ours
    only when their parents have gone, and are found then."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(GRACE_TEST_S)
        pid, started = worker(pids, (["daemon"], True), (["heir"], False))
        started.append(pids.next())  # the daemon's child
        deaths = bury(pid, strays)
        late = pids.next()
        until_gone(strays, deaths, *started, late)
        assert deaths[late].signal in (signal.SIGTERM, signal.SIGKILL)  # it may not have come to ignore the first
        assert len(strays) == 0
        assert children() == []

    in_family(body)


def test_a_stopped_stray_is_killed(tmp_path):
    """SIGTERM does not reach a stopped process; SIGKILL does."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(GRACE_TEST_S)
        pid, (stray,) = worker(pids, ([], False))
        os.kill(stray, signal.SIGSTOP)
        until(lambda: process.stat(stray).state == "T")
        assert until_gone(strays, bury(pid, strays), stray)[stray].signal == signal.SIGKILL

    in_family(body)


def test_a_death_that_is_no_workers_ends_nobody():
    """A stranger that leads no group takes none of its group's members with it."""

    def body():
        strays = Strays(GRACE_TEST_S)
        first, second = fork(wait_for_kill), fork(wait_for_kill)
        bury(first, strays)
        assert len(strays) == 0
        assert lives_on(lambda: process.stat(second).state != "Z")
        os.kill(second, signal.SIGKILL)
        collect(second)

    in_family(body)


def test_a_pid_that_has_a_new_owner_marks_nobody_older_than_it(tmp_path):
    """When the dead worker's pid belongs to a new worker, the new one's group and daemons are not the old one's."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(GRACE_TEST_S)
        successor, _ = worker(pids)

        def leave_a_daemon():
            subprocess.Popen(pids.argv(), env={**os.environ, MARK: str(successor)}, start_new_session=True)

        collect(fork(leave_a_daemon))
        daemon = pids.next()
        # The old worker cannot be given a chosen pid, so the death is told as if it had had the successor's.
        stray = fork(lambda: os.setpgid(0, successor) or wait_for_kill())
        until(lambda: process.stat(stray).pgrp == successor)
        strays._end(process.stat(stray), successor, time.monotonic())
        deaths = until_gone(strays, {}, stray)
        assert deaths[stray].signal == signal.SIGTERM
        assert lives_on(lambda: turn(strays) == {})
        assert len(strays) == 0
        for pid in (successor, daemon):
            os.kill(pid, signal.SIGKILL)
        collect(successor, daemon)

    in_family(body)


def test_the_forced_stop_waits_for_nobody(tmp_path):
    """kill_now ends what is left without the grace."""

    def body():
        pids = Pids(tmp_path)
        strays = Strays(60)
        pid, (stray,) = worker(pids, (["stubborn"], True))
        bury(pid, strays)
        assert lives_on(lambda: turn(strays) == {})
        strays.kill_now()
        assert len(strays) == 0
        assert until_gone(strays, {}, stray)[stray].signal == signal.SIGKILL

    in_family(body)


def test_the_grace_is_what_is_documented():
    """TERM, 5 s, KILL."""
    assert GRACE_S == 5.0
    assert Strays()._grace_s == GRACE_S

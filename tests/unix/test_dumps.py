"""Stacks on demand: of processes that run, hang in C, are stopped, have just begun, or have ended."""

import os
import signal
import subprocess
import sys
import time

import pytest
from ledger_support import until

from zcluster.unix import dumps, process
from zcluster.unix.dumps import Dumps, Target

CHILD = """
import ctypes, sys, threading, time
from pathlib import Path
from zcluster.unix.notes import dump_into
def computes_in_c():
    import re
    print("ready", flush=True)
    re.match(r"(a+)+$", "a" * 60 + "b")
def waits():
    print("ready", flush=True)
    threading.Event().wait()
if sys.argv[2] != "bare":
    dump_into(Path(sys.argv[1]))
(computes_in_c if sys.argv[2] == "regex" else waits)()
"""


@pytest.fixture
def child(tmp_path):
    """Start a process that writes its stacks into a note, or (bare) would be ended by the signal."""
    there = []

    def start(kind):
        one = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / "note"), kind], stdout=subprocess.PIPE, text=True
        )
        there.append(one)
        assert one.stdout.readline() == "ready\n"
        return one, Target(kind, one.pid, process.start_time(one.pid), tmp_path / "note")

    yield start
    for one in there:
        one.kill()
        one.wait()
        one.stdout.close()


def dumped(*targets):
    """Ask, and look until all are complete."""
    asked = Dumps()
    asked.begin(targets, time.monotonic())
    found = []

    def complete():
        found.extend(asked.collect(time.monotonic()))
        return not asked

    until(complete)
    return found


@pytest.mark.parametrize(("kind", "function"), [("waits", "waits"), ("regex", "computes_in_c")])
def test_stacks_of_one_that_runs(child, kind, function):
    """Whole, only what was asked for now, and the process goes on."""
    one, target = child(kind)
    for _ in range(2):
        (dump,) = dumped(target)
        assert dump.ok
        assert dump.text.count(f"in {function}") == 1
        assert dump.text.endswith("in <module>")
    assert one.poll() is None


def test_a_stopped_process_stays_stopped(child):
    """It is said, and it is not even signalled: when it goes on it has nothing to write."""
    one, target = child("waits")
    one.send_signal(signal.SIGSTOP)
    until(lambda: process.stat(one.pid).state == "T")
    (dump,) = dumped(target)
    assert (dump.ok, dump.text.partition(":")[0]) == (False, "stopped (state T)")
    assert process.stat(one.pid).state == "T"
    one.send_signal(signal.SIGCONT)
    assert dumped(target)[0].ok
    assert target.path.read_text().count("in waits") == 1


def test_one_without_a_handler_is_spared(child):
    """The signal would end it."""
    one, target = child("bare")
    (dump,) = dumped(target)
    assert (dump.ok, dump.text.partition(" and ")[0]) == (False, "it has just begun")
    assert one.poll() is None


def test_one_that_has_ended(child):
    """And one whose pid is another's by now."""
    one, target = child("waits")
    (other,) = dumped(Target("other", one.pid, target.start - 1, target.path))
    assert (other.ok, other.text) == (False, "it has ended")
    one.kill()
    one.wait()
    (dump,) = dumped(target)
    assert (dump.ok, dump.text) == (False, "it has ended")


def test_one_that_is_stopped_while_it_is_asked(child, monkeypatch):
    """There is an end to waiting."""
    monkeypatch.setattr(dumps, "LIMIT_S", 0.2)
    _, target = child("waits")
    send = process.send_signal

    def stop_first(pid, start, number):
        os.kill(pid, signal.SIGSTOP)
        until(lambda: process.stat(pid).state == "T")
        return send(pid, start, number)

    monkeypatch.setattr(process, "send_signal", stop_first)
    (dump,) = dumped(target)
    assert (dump.ok, dump.text) == (False, "it did not show its stacks within 0.2 s: it does not run (state T)")


def test_a_note_that_is_too_long_begins_anew(child, monkeypatch):
    """Who asks for stacks all day long does not fill the run directory."""
    _, target = child("waits")
    monkeypatch.setattr(dumps, "NOTE_MAX_BYTES", 1000)
    for _ in range(5):
        assert dumped(target)[0].text.count("in waits") == 1
    assert target.path.stat().st_size < 2000


def test_a_note_that_is_a_link_is_left_alone(child, monkeypatch, tmp_path):
    """Root asks for the stacks of another user's cluster, who could have put a link to a file of root's there."""
    _, target = child("waits")
    monkeypatch.setattr(dumps, "NOTE_MAX_BYTES", 10)
    monkeypatch.setattr(dumps, "LIMIT_S", 0.05)
    precious = tmp_path / "precious"
    precious.write_text("worth more than 10 bytes")
    target.path.unlink()
    target.path.symlink_to(precious)
    assert not dumped(target)[0].ok
    assert precious.read_text() == "worth more than 10 bytes"

"""Children of the launcher: their first message is Boot, and they get nothing but what is named."""

import os
import resource
import signal
import socket

import msgspec
import pytest
from family import collect, drop_privileges, in_family, open_fds
from ledger_support import in_child, until

from zcluster.core import messages as m
from zcluster.errors import SpawnError
from zcluster.unix import process
from zcluster.unix.channel import Channel
from zcluster.unix.offspring import exec_child, fork_child

BOOT = m.Boot(msgspec.Raw(b"\xc0"), "/run/dir", ("http://x",), 1, 2, kind="test")


def the_reply(channel):
    """The one message a child sends."""
    received = []
    until(lambda: received.extend(channel.receive()) or received or channel.closed, "the child's reply")
    ((message, _fds),) = received
    return message


def report(control_fd):
    """What a forked child finds, as the text of a Failed; it ends with 7."""
    channel = Channel.of_fd(control_fd)
    boot = channel.first_message()
    told = {
        "boot": boot == BOOT,
        "group": os.getpgrp(),
        "fds": [fd for fd in range(2000) if _is_open(fd)],
        "control": control_fd,
        "blocked": sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }
    channel.send(m.Failed(0, repr(told)))
    return 7


def _is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_forked_child_keeps_only_what_is_named():
    """Standard streams, its control socket and the named descriptors; a group of its own; signals blocked in it but
    not in the launcher."""

    def body():
        before = open_fds()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with socket.create_server(("127.0.0.1", 0)) as listener, open(os.devnull):
            child = fork_child(report, BOOT, [listener.fileno()], 5.0)
            told = eval(the_reply(child.channel).text)
            assert told["fds"] == sorted({0, 1, 2, listener.fileno(), told["control"]})
        assert told["boot"]
        assert told["group"] == child.pid
        assert told["blocked"] == sorted(int(number) for number in process.BLOCKED)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == masked
        death = collect(child.pid)[child.pid]
        assert (death.start, death.code) == (child.start, 7)
        assert child.since == 5.0
        child.channel.close()
        assert open_fds() == before

    in_family(body)


def test_an_executed_child_that_ends_at_once_closes_its_channel():
    """There is no body of that name: the interpreter ends with an error, the launcher sees an end of file."""

    def body():
        before = open_fds()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        child = exec_child("no_such_body", "shop", BOOT, [], 0.0)
        death = collect(child.pid)[child.pid]
        assert (death.start, death.pgrp, death.code) == (child.start, child.pid, 1)
        assert child.channel.receive() == []
        assert child.channel.closed
        child.channel.close()
        assert open_fds() == before + 1  # /dev/null of this test

    in_family(body)


@pytest.mark.parametrize("limit", [resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE])
def test_a_machine_that_refuses_is_a_spawn_error_and_leaks_nothing(limit):
    """No process or no descriptor left: told as such, all is as before, also the signal mask."""

    def body():
        before = open_fds()
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        drop_privileges()
        soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (0, hard))
        for attempt in (
            lambda: fork_child(report, BOOT, [], 0.0),
            lambda: exec_child("master", "shop", BOOT, [], 0.0),
        ):
            with pytest.raises(SpawnError, match=r"cannot .*(Resource temporarily unavailable|Too many open files)"):
                attempt()
        resource.setrlimit(limit, (soft, hard))
        assert open_fds() == before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == masked

    in_child(body)

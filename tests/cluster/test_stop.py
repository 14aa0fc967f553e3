"""The end of a cluster: at any moment, in any way it may be asked for, nothing is lost and nothing is left."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import threading
from pathlib import Path

import pytest
from anatomy import ready, see
from harness import running, wait_for
from load import Load

# A stop is a few round trips, below 0.2 s on an idle machine; a worker that is still starting is given 2 s.
SOON_S = 6.0
TERM_BIT = 1 << (signal.SIGTERM - 1)
ALARMS = ("Traceback", "ERROR", "CRITICAL")


def blocks_term(cluster):
    """Has the launcher blocked SIGTERM (proc(5), status)? Not any more, either, when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{cluster.process.pid}/status").read_text().splitlines():
            if line.startswith("SigBlk:"):
                return bool(int(line.split()[1], 16) & TERM_BIT)
    return False


def has(cluster, name):
    """Is there a file of this name in the run directory?"""
    return any(entry.endswith(f"/{name}") for entry in cluster.files())


def ask(cluster, path):
    """A connection with a request on its way; `answer` takes the rest."""
    sock = cluster.connect(20.0)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


def answer(sock):
    """The whole answer to the request on this connection; returns its body."""
    data = b""
    with sock:
        while not (found := re.search(rb"\r\nContent-Length: (\d+)\r\n(?:.*\r\n)?\r\n", data, re.DOTALL)) or len(
            data
        ) < found.end() + int(found[1]):
            part = sock.recv(4096)
            assert part, f"closed after {data!r}"
            data += part
    assert data.startswith(b"HTTP/1.1 200 OK\r\n"), data
    return data[found.end() :]


def in_flight(cluster, number):
    """Wait until so many requests are being answered."""
    wait_for(lambda: sum(worker["inflight"] for worker in cluster.workers()) == number)


def is_calm(log):
    """Nothing in it alarms."""
    assert not [line for line in log.splitlines() if any(word in line for word in ALARMS)], log
    return True


# ---- TERM at any moment --------------------------------------------------------------------------------------------
MOMENTS = {
    "the first instruction": lambda cluster: True,
    "signals kept": blocks_term,
    "a run directory": lambda cluster: cluster.files(),
    "locks": lambda cluster: has(cluster, "locks"),
    "a ledger": lambda cluster: has(cluster, "ledger"),
    "its name published": lambda cluster: has(cluster, "current"),
    "signals taken": lambda cluster: has(cluster, "current") and not blocks_term(cluster),
    "a master": lambda cluster: see(cluster).masters,
    "the bus": lambda cluster: has(cluster, "evt"),
    "a zygote": lambda cluster: see(cluster).zygotes,
    "a worker": lambda cluster: see(cluster).workers,
    "both workers": lambda cluster: len(see(cluster).worker_pids) == 2,
    "the ready line": lambda cluster: cluster.wait_ready(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_term_at_any_moment(moment):
    """As soon as there is this: exit 0, no process and no file left, and nothing in the log that alarms."""
    with running("counting:app", wait=False) as cluster:
        wait_for(lambda: MOMENTS[moment](cluster))
        # Until our first line stands, some 15 ms after the exec, SIGTERM ends the interpreter as any other program.
        is_python_only = not blocks_term(cluster) and not cluster.files()
        cluster.signal(signal.SIGTERM)
        code = cluster.wait(SOON_S)
        expected = -signal.SIGTERM if is_python_only and code < 0 else 0
        assert is_calm(cluster.ended(code=expected))


def test_term_without_a_master():
    """Between the death of a master and the next: workers are drained all the same, by the new one."""
    with running("counting:app") as cluster:
        slow = [ask(cluster, "/slow?0.7") for _ in range(2)]
        in_flight(cluster, 2)
        os.kill(see(cluster).master, signal.SIGKILL)
        cluster.wait_log("a new master starts in")
        log = cluster.end(timeout_s=SOON_S)
        assert sorted(answer(sock) for sock in slow) == [b"1", b"2"]
        assert log.count("left as it was told") == 2, log
        assert log.count("stopping: SIGTERM") == 1


def test_the_master_dies_in_a_stop():
    """The wish to stop outlives the master that was told of it."""
    with running("counting:app") as cluster:
        slow = [ask(cluster, "/slow?1") for _ in range(2)]
        in_flight(cluster, 2)
        cluster.signal(signal.SIGTERM)
        wait_for(lambda: cluster.ps()["state"] == "stopping")
        os.kill(see(cluster).master, signal.SIGKILL)
        log = cluster.ended(SOON_S)
        assert sorted(answer(sock) for sock in slow) == [b"1", b"2"]
        assert log.count(" died. left as it was told") == 2, log


def test_masters_that_keep_dying_in_a_stop():
    """Each is replaced until one comes through."""
    with running("counting:app") as cluster:
        slow = ask(cluster, "/slow?1.5")
        in_flight(cluster, 1)
        cluster.signal(signal.SIGTERM)
        killed = set()
        for _ in range(4):
            (pid,) = wait_for(lambda: set(see(cluster).masters) - killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        cluster.ended(2 * SOON_S)
        assert answer(slow) == b"1"


@pytest.mark.parametrize("option", ["--preload", "--no-preload"])
def test_term_while_the_app_is_imported(option):
    """An app that would import for half a minute keeps nobody waiting."""
    with running("slow_import:app", option, wait=False) as cluster:
        cluster.wait_log("the import has begun")
        log = cluster.end(timeout_s=SOON_S)
        assert "Traceback" not in log


@pytest.mark.parametrize("moment", ["died", "forked"])
def test_term_in_a_replacement(moment):
    """A worker is dead and the next one is on its way: neither is left, and the cluster does not call it degraded."""
    with running("counting:app") as cluster:
        before = see(cluster).worker_pids
        os.kill(before[0], signal.SIGKILL)
        cluster.wait_log(rf"Worker {before[0]} died\. signal SIGKILL")
        if moment == "forked":
            wait_for(lambda: set(see(cluster).worker_pids) - set(before))
        cluster.end(timeout_s=SOON_S)


def test_term_to_every_process():
    """As systemd and container runtimes send it: one clean stop, and the request in flight is answered."""
    with running("counting:app") as cluster:
        slow = ask(cluster, "/slow?0.7")
        in_flight(cluster, 1)
        for pid in cluster.processes():
            os.kill(pid, signal.SIGTERM)
        log = cluster.ended(SOON_S)
        assert answer(slow) == b"1"
        assert is_calm(log)
        assert len(re.findall(r"Worker \d+ died\. left ", log)) == 2, log


# ---- what is under way ---------------------------------------------------------------------------------------------
def test_nothing_accepted_is_lost():
    """Requests in flight are finished, and connections that wait in the backlog are answered, too."""
    with running("counting:app") as cluster:
        socks = [ask(cluster, "/slow?0.7") for _ in range(2)]
        in_flight(cluster, 2)
        socks += [ask(cluster, "/") for _ in range(30)]
        late = cluster.connect(20.0)  # its request comes when the stop has begun
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping: SIGTERM")
        late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sorted(int(answer(sock)) for sock in [*socks, late]) == list(range(1, 34))
        assert is_calm(cluster.ended(SOON_S))


def test_idle_connections_may_ask_once_more():
    """A draining worker closes nothing a client could be writing to: it answers, then closes."""
    with running("counting:app", "--keep-alive=30") as cluster:
        idle = ask(cluster, "/")
        assert b"\r\n\r\n1" in idle.recv(4096)
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping: SIGTERM")
        wait_for(lambda: not accepts(cluster))
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(idle) == b"2"
        cluster.ended(SOON_S)


def accepts(cluster):
    """Is a new connection accepted?"""
    try:
        cluster.connect(5.0).close()
    except ConnectionRefusedError:
        return False
    return True


def test_refused_or_answered():
    """Clients that come while it ends are answered or refused; none is accepted and then left without an answer."""
    with running("counting:app") as cluster:
        slow = ask(cluster, "/slow?1")  # keeps one worker, hence the cluster, for a while
        in_flight(cluster, 1)
        answered, lost, over = [], [], threading.Event()

        def come():
            while not over.is_set():
                try:
                    sock = ask(cluster, "/")
                except ConnectionRefusedError:
                    return
                try:
                    answered.append(int(answer(sock)))
                except (OSError, AssertionError) as error:
                    lost.append(repr(error))

        clients = [threading.Thread(target=come) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            wait_for(lambda: len(answered) > 100)
            cluster.signal(signal.SIGTERM)
            for client in clients:  # refused while the slow request is still being answered
                client.join(20)
            assert cluster.process.poll() is None
        finally:
            over.set()
        assert int(answer(slow)) == len(answered) + 1
        assert lost == []
        cluster.ended(SOON_S)


def test_a_load_that_ends_with_the_cluster():
    """The counter rule at the end: what was acknowledged stands in the last total that was seen."""
    with running("counting:app") as cluster:
        with Load(cluster.address) as load:
            wait_for(lambda: load.acknowledged > 200)
            cluster.signal(signal.SIGTERM)
            cluster.wait(SOON_S)
        assert load.fell == []
        assert load.acknowledged <= load.largest <= load.attempted
        cluster.ended()


# ---- in a hurry ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_are_quick(number):
    """A request that takes longer than --quick-timeout is cut; a short one is still answered; exit 0."""
    with running("counting:app") as cluster:
        long, short = ask(cluster, "/slow?20"), ask(cluster, "/slow?0.3")
        in_flight(cluster, 2)
        cluster.signal(number)
        log = cluster.ended(SOON_S)
        assert f"stopping quickly: {number.name}" in log
        assert answer(short) in (b"1", b"2")
        assert "signal SIGKILL (drain timeout)" in log
        with long, contextlib.suppress(ConnectionResetError):
            assert long.recv(100) == b""


def test_a_second_term_hurries():
    """The first waits for the request in flight, the second does not."""
    with running("counting:app") as cluster:
        long = ask(cluster, "/slow?20")
        in_flight(cluster, 1)
        cluster.signal(signal.SIGTERM)
        wait_for(lambda: cluster.ps()["state"] == "stopping" and len(cluster.ps()["workers"]) == 1)
        cluster.signal(signal.SIGTERM)
        log = cluster.ended(SOON_S)
        assert len(re.findall("stopping: SIGTERM|stopping quickly: SIGTERM", log)) == 2, log
        long.close()


# ---- terminals -----------------------------------------------------------------------------------------------------
# Makes its standard input the controlling terminal of a session of its own, itself the foreground group, and execs.
IN_TERMINAL = (
    "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """A pseudo-terminal with a cluster in its foreground; `screen` is all that was shown on it."""

    def __init__(self):
        self.keyboard, theirs = pty.openpty()
        self.screen = ""
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.cluster = running("counting:app", wait=False, popen=streams, prefix=[sys.executable, "-c", IN_TERMINAL])
        self.theirs = theirs

    def __enter__(self):
        cluster = self.cluster.__enter__()
        os.close(self.theirs)
        return cluster

    def __exit__(self, *what):
        self.close()
        return self.cluster.__exit__(*what)

    def close(self):
        """Close the window."""
        if self.keyboard >= 0:
            os.close(self.keyboard)
            self.keyboard = -1

    def read(self, until="", timeout_s=20.0):
        """Read until this was shown; by default until nobody has the terminal open any more."""
        while not until or until not in self.screen:
            assert select.select([self.keyboard], [], [], timeout_s)[0], self.screen
            try:
                self.screen += os.read(self.keyboard, 65536).decode()
            except OSError:  # EIO: its last user is gone
                assert not until, self.screen
                return


def test_ctrl_c():
    """In a terminal, one Ctrl-C is one clean stop: each line once, no traceback, exit 0."""
    terminal = Terminal()
    with terminal as cluster:
        terminal.read("ready on ")
        terminal.read("\n")
        pids = ready(cluster).values()
        os.write(terminal.keyboard, b"\x03")
        terminal.read()
        cluster.ended(SOON_S)
    assert is_calm(terminal.screen)
    assert len(pids) == 2
    for line in ("zcluster: ready on ", "stopping quickly: SIGINT", *(f"Worker {pid} died. left" for pid in pids)):
        assert terminal.screen.count(line) == 1, terminal.screen
    assert len(terminal.screen.splitlines()) == 4, terminal.screen


def test_ctrl_c_while_it_starts():
    """Nor is there a traceback when it comes at once."""
    terminal = Terminal()
    with terminal as cluster:
        wait_for(lambda: blocks_term(cluster))
        os.write(terminal.keyboard, b"\x03")
        terminal.read()
        cluster.ended(SOON_S)
    assert is_calm(terminal.screen)


def test_the_terminal_is_closed():
    """SIGHUP from a terminal that goes away is a TERM: a request in flight is answered, nothing is left."""
    terminal = Terminal()
    with terminal as cluster:
        terminal.read("ready on ")
        terminal.read("\n")
        cluster.url = re.search(r"ready on (\S+)", terminal.screen)[1]
        slow = ask(cluster, "/slow?0.5")
        in_flight(cluster, 1)
        terminal.close()
        cluster.ended(SOON_S)
        assert answer(slow) == b"1"


def test_hup_without_a_terminal():
    """It ends nothing there: for a service it means something else."""
    with running("counting:app", popen={"start_new_session": True}) as cluster:
        cluster.signal(signal.SIGHUP)
        cluster.wait_log("SIGHUP does nothing")
        assert cluster.get() == "1"
        cluster.end()

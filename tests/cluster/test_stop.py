"""The end of a cluster: at any moment, in any way it may be asked for, nothing is lost and nothing is left."""

import contextlib
import os
import re
import signal
import socket
import threading
import time

import pytest
from anatomy import kill, ready, see
from harness import running, wait_for
from load import Load
from stopping import KEPT, ONCE, SOON_S, Held, all_answered, answer, ask, blocks_term, is_calm, next_answer


def has(cluster, name):
    """Is there a file of this name in the run directory?"""
    return any(entry.endswith(f"/{name}") for entry in cluster.files())


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


def test_term_without_a_master(tmp_path):
    """Between the death of a master and the next: workers are drained all the same, by the new one."""
    with Held(tmp_path) as (cluster, held):
        socks = held.hold(2)
        os.kill(see(cluster).master, signal.SIGKILL)
        cluster.wait_log("a new master starts in")
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping: SIGTERM")
        held.go()
        log = cluster.ended(SOON_S)
        assert all_answered(socks)
        assert len(re.findall(r"Worker \d+ died\. left as it was told", log)) == 2, log


def test_the_master_dies_in_a_stop(tmp_path):
    """The wish to stop outlives the master that was told of it."""
    with Held(tmp_path) as (cluster, held):
        socks = held.hold(2)
        cluster.signal(signal.SIGTERM)
        wait_for(lambda: cluster.ps()["state"] == "stopping")
        os.kill(see(cluster).master, signal.SIGKILL)
        cluster.wait_log("a new master starts in")
        held.go()
        log = cluster.ended(SOON_S)
        assert all_answered(socks)
        assert len(re.findall(r"Worker \d+ died\. left as it was told", log)) == 2, log


def test_masters_that_keep_dying_in_a_stop(tmp_path):
    """Each is replaced until one comes through."""
    with Held(tmp_path) as (cluster, held):
        socks = held.hold(1)
        cluster.signal(signal.SIGTERM)
        killed = set()
        for _ in range(4):
            (pid,) = wait_for(lambda: set(see(cluster).masters) - killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        held.go()
        cluster.ended(2 * SOON_S)
        assert all_answered(socks)


@pytest.mark.parametrize("option", ["--preload", "--no-preload"])
def test_term_while_the_app_is_imported(option):
    """An app that would import for half a minute keeps nobody waiting."""
    with running("slow_import:app", option, "--drain-delay=3600", wait=False) as cluster:  # nobody was served yet
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


@pytest.mark.parametrize("whom", ["each process", "the process group"])
def test_term_to_every_process(tmp_path, whom):
    """As systemd and shells send it: each worker drains once, and the request in flight is answered."""
    with Held(tmp_path, popen={"start_new_session": True}) as (cluster, held):
        socks = held.hold(1)
        if whom == "each process":
            kill(*cluster.processes(), number=signal.SIGTERM)  # an idle worker may be gone before its turn comes
        else:
            os.killpg(cluster.process.pid, signal.SIGTERM)  # its workers and its master have groups of their own
        held.go()
        log = cluster.ended(SOON_S)
        assert all_answered(socks)
        assert is_calm(log)
        assert len(re.findall(r"Worker \d+ died\. left ", log)) == 2, log


# ---- what is under way ---------------------------------------------------------------------------------------------
def test_nothing_accepted_is_lost(tmp_path):
    """Requests in flight are finished, and connections that wait in the backlog are answered, too."""
    with Held(tmp_path, "--threads=1") as (cluster, held):  # who holds a request accepts nobody else
        socks = held.hold(2)
        socks += [ask(cluster, "/") for _ in range(200)]
        late = cluster.connect(20.0)  # its request comes when the stop has begun
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping: SIGTERM")
        late.sendall(ONCE)
        held.go()
        socks.append(late)
        assert all_answered(socks)
        assert is_calm(cluster.ended(SOON_S))


def accepts(cluster):
    """Is a new connection accepted?"""
    try:
        cluster.connect(5.0).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: the port was closed in this very moment
        return False
    return True


def test_idle_connections_may_ask_once_more():
    """A draining worker closes nothing a client could be writing to, and keeps the port from nobody meanwhile."""
    with running("counting:app", "--keep-alive=20") as cluster:
        with cluster.connect() as idle:
            idle.sendall(KEPT)
            assert next_answer(idle) == b"1"
            cluster.signal(signal.SIGTERM)
            wait_for(lambda: not accepts(cluster))
            with socket.create_server(cluster.address):  # the next one may have the port at once
                idle.sendall(KEPT)
                assert answer(idle) == b"2"
        cluster.ended(SOON_S)


def test_refused_or_answered(tmp_path):
    """Clients that come while it ends are answered, or refused at once; none waits for nothing."""
    with Held(tmp_path) as (cluster, held):
        socks = held.hold(1)
        totals, lost = [], []

        def come():
            while True:
                try:
                    sock = cluster.connect(20.0)
                except ConnectionRefusedError:
                    return
                except ConnectionResetError as error:
                    lost.append(error)
                    continue
                try:
                    sock.sendall(ONCE)
                    totals.append(int(answer(sock)))
                except (ConnectionResetError, BrokenPipeError) as error:
                    lost.append(error)
                finally:
                    sock.close()

        clients = [threading.Thread(target=come) for _ in range(3)]
        for client in clients:
            client.start()
        wait_for(lambda: len(totals) > 50)
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping: SIGTERM")
        held.go()
        for client in clients:
            client.join(20)
            assert not client.is_alive()
        totals += [int(answer(sock)) for sock in socks]
        # One that the kernel takes in the very moment (some 10 us) in which the last worker closes the port is reset.
        assert len(lost) <= len(clients)
        assert max(totals) == len(totals)
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


# ---- announced -----------------------------------------------------------------------------------------------------
def test_a_stop_that_is_announced(tmp_path):
    """Until --drain-delay is over all is served as before, and whoever dies is replaced; but nothing is changed."""
    with Held(tmp_path, "--drain-delay=3600", "--quick-timeout=10") as (cluster, held):
        cluster.signal(signal.SIGTERM)
        cluster.wait_log(r"stopping in 3600 s \(--drain-delay\), serving until then: SIGTERM")
        with cluster.connect() as kept:
            kept.sendall(KEPT)
            assert next_answer(kept) == b"1"  # and without `Connection: close`: nothing is different yet
            kept.sendall(KEPT)
            assert next_answer(kept) == b"2"
        before = see(cluster)
        os.kill(before.master, signal.SIGKILL)
        os.kill(before.worker_pids[0], signal.SIGKILL)
        wait_for(lambda: set(ready(cluster)) == {0, 1} and before.worker_pids[0] not in ready(cluster).values())
        assert cluster.ps()["state"] == "stopping"
        assert "the cluster is stopping" in cluster.command_line("scale", "+1", code=1).stderr
        cluster.command_line("stop")  # an orchestrator that wants the same again
        socks = held.hold(1)
        cluster.signal(signal.SIGTERM)
        cluster.wait_log("stopping quickly: SIGTERM")
        held.go()
        log = cluster.ended(SOON_S)
        assert max(int(answer(sock)) for sock in socks) == 2 + len(socks)
        assert re.findall(r"launcher .*: (stopping.*)", log)[1:] == ["stopping quickly: SIGTERM"]


def test_term_to_every_process_before_the_delay(tmp_path):
    """Workers that drain by a TERM of their own are replaced; when the delay is over the cluster ends, once."""
    with Held(tmp_path, "--drain-delay=0.5") as (cluster, held):
        socks = held.hold(1)
        begun = time.monotonic()
        kill(*cluster.processes(), number=signal.SIGTERM)
        socks.append(ask(cluster, "/"))
        held.go()
        log = cluster.ended(SOON_S)
        assert time.monotonic() - begun >= 0.5
        assert all_answered(socks)
        assert is_calm(log)
        assert log.count("stopping") - log.count("the cluster is stopping") == 2, log


# ---- in a hurry ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_are_quick(tmp_path, number):
    """A request in flight gets --quick-timeout, then it is cut; exit 0."""
    with Held(tmp_path) as (cluster, held):
        socks = held.hold(1)
        begun = time.monotonic()
        cluster.signal(number)
        log = cluster.ended(SOON_S)
        assert time.monotonic() - begun >= 1.0  # the default of --quick-timeout
        assert f"stopping quickly: {number.name}" in log
        cut = {int(pid) for pid in re.findall(r"Worker (\d+) died\. signal SIGKILL \(drain timeout\)", log)}
        assert cut >= held.pids, log  # the idle one, too, when the machine is too busy for it to leave in a second
        for sock in socks:
            with sock, contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""


def test_the_drain_has_an_end(tmp_path):
    """A request that does not end is cut when --graceful-timeout is over, and that is a stop as any other."""
    with Held(tmp_path, "--graceful-timeout=0.5", workers=1) as (cluster, held):
        (sock,) = held.hold(1)
        cluster.signal(signal.SIGTERM)
        log = cluster.ended(SOON_S)
        assert re.search(r"Worker \d+ died\. signal SIGKILL \(drain timeout\)", log), log
        with sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""


def test_a_quick_stop_still_answers(tmp_path):
    """What is done within --quick-timeout is answered."""
    with Held(tmp_path, "--quick-timeout=10") as (cluster, held):
        socks = held.hold(1)
        cluster.signal(signal.SIGINT)
        cluster.wait_log("stopping quickly: SIGINT")
        held.go()
        assert is_calm(cluster.ended(SOON_S))
        assert all_answered(socks)


def test_a_second_term_hurries(tmp_path):
    """The first waits for the request in flight, the second does not."""
    with Held(tmp_path, "--quick-timeout=0.1") as (cluster, held):
        socks = held.hold(1)
        cluster.signal(signal.SIGTERM)
        # Mostly one; two when the first was slow to say that it holds a request, and another one was asked.
        wait_for(
            lambda: {w["pid"]: w["state"] for w in cluster.ps()["workers"]} == dict.fromkeys(held.pids, "draining")
        )
        cluster.signal(signal.SIGTERM)
        log = cluster.ended(SOON_S)
        assert re.findall(r"stopping.*: \S+", log) == ["stopping: SIGTERM", "stopping quickly: SIGTERM"]
        for sock in socks:
            sock.close()


def test_term_until_it_is_gone():
    """Signals that come in its last moments, when Python has given the default actions back, change no exit code."""
    with running("counting:app") as cluster:
        while cluster.process.poll() is None:
            cluster.signal(signal.SIGTERM)
        cluster.ended()


def test_a_worker_is_sent_term_in_its_last_moment():
    """Nor does its own exit become a death by signal."""
    with running("late_signal:app", "--no-preload") as cluster:
        log = cluster.end(timeout_s=SOON_S)
        assert len(re.findall(r"Worker \d+ died\. left as it was told; ", log)) == 2, log

"""Processes that stop, hang or starve: who is judged, who is not, and what is known of it. Rows 5, 6 and 10."""

import re
import signal
import threading
import time
from contextlib import suppress

import pytest
from anatomy import gone, kill, see
from harness import APPS, running
from load import Load
from observer import Observer
from stopping import next_answer

HANG_S = 2.0  # SUSPECT at a third of it; a busy machine must not keep anybody from running for so long
MASTER_S = 6.0
OPTIONS = (f"--hang-timeout={HANG_S}", "--heartbeat=0.05", "--ledger-tick=0.02", f"--master-timeout={MASTER_S}")
WORKERS = 2


@pytest.fixture(scope="module")
def cluster():
    with running("hanging:app", *OPTIONS, workers=WORKERS) as running_cluster:
        yield running_cluster


@pytest.fixture
def seen(cluster):
    with Observer(cluster) as observer:
        observer.wait_ready(WORKERS)
        yield observer


def request(cluster, path):
    """Send a request on a connection of its own and do not wait for the answer."""
    sock = cluster.connect()
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return sock


def answer(sock):
    """The body of a small response; empty when the connection was cut."""
    with suppress(ConnectionError, AssertionError):
        return next_answer(sock)
    return b""


def asked(cluster, path):
    """The body of the answer to one request."""
    with request(cluster, path) as sock:
        return answer(sock)


def busy_with(seen, path):
    """Have a worker begin this request; returns the socket and the worker."""
    sock = request(seen.cluster, path)
    info = seen.wait(lambda: next((w for w in seen.workers().values() if w.inflight), None), f"{path} is in flight")
    return sock, info


def judged(seen):
    """The events of somebody's end; others of the workers' births may still come in."""
    return [event for event in seen.events if event.kind in ("disconnect", "exit", "error")]


def stay(seconds):
    """Let time pass in which something must not happen."""
    threading.Event().wait(seconds)


def stacks_of(log, id_):
    """What was logged of a worker's stacks, up to the next line of the log."""
    return log.partition(f"stacks of worker id={id_} ")[2].partition("\n[")[0]


def test_a_stopped_worker_is_replaced(cluster, seen):
    """SUSPECT, HUNG, its stacks in the log with the function it was in, killed, replaced; the counts hold."""
    sock, victim = busy_with(seen, "/sleep?60")
    before = cluster.counters()["requests"]
    with Load(cluster.address, clients=2) as load:
        begun = time.monotonic()
        kill(victim.pid, number=signal.SIGSTOP)
        seen.wait_state(victim.pid, "suspect")
        suspect_s = time.monotonic() - begun
        # By its event: the state lasts but for the dump of the stacks, a fifth of a second.
        hung = seen.wait(lambda: seen.happened("error", victim.pid), "it is found hung")
        hung_s = time.monotonic() - begun
        dead = seen.wait_exit(victim.pid)
        heir = seen.wait_ready(WORKERS, without=[victim.pid])[victim.slot]
    sock.close()
    assert (dead.signal, dead.reason) == (signal.SIGKILL, "hung")
    assert suspect_s < HANG_S, suspect_s
    assert hung_s > HANG_S / 2, hung_s
    assert heir.id > victim.id
    assert heir.restarts == victim.restarts + 1
    assert re.fullmatch(r"is hung: nothing heard, and no tick, for \S+ s; frozen \(stopped\)", hung.text)
    cluster.wait_log(rf"Worker {victim.pid} \(id \d+, slot \d\): frozen: it is stopped \(state T\)")
    cluster.wait_log(rf"Worker {victim.pid} died\. signal SIGKILL \(hung\); replacing it in slot {victim.slot} now")
    assert "in sleep_soundly" in stacks_of(cluster.log, victim.id), cluster.log
    load.check(cluster.counters()["requests"], base=before, kills=1)


def test_an_idle_stopped_worker_shows_where_it_waited(cluster, seen):
    """With nothing in flight the stacks show both threads: the one of the bus and the loop of the engine."""
    victim = seen.wait_ready(WORKERS)[0]
    kill(victim.pid, number=signal.SIGSTOP)
    assert seen.wait_exit(victim.pid).reason == "hung"
    stacks = stacks_of(cluster.log, victim.id)
    assert "in _round" in stacks
    assert "in main" in stacks
    seen.wait_ready(WORKERS, without=[victim.pid])


def test_continued_in_time_nothing_happens(cluster, seen):
    """SUSPECT, then heard again: same pid, same id, no restart, no event, and the request it was in is answered."""
    sock, info = busy_with(seen, "/sleep?0.1")
    for _ in range(2):
        kill(info.pid, number=signal.SIGSTOP)
        seen.wait_state(info.pid, "suspect")
        kill(info.pid, number=signal.SIGCONT)
        after = seen.wait_state(info.pid, "ready")
        assert (after.id, after.restarts) == (info.id, info.restarts)
    assert int(answer(sock)) > 0
    sock.close()
    assert not judged(seen), seen.events
    cluster.wait_log(rf"Worker {info.pid} \(id {info.id}, slot {info.slot}\) is heard again after")


def test_the_interpreter_held_in_c(cluster, seen):
    """A catastrophic regular expression: HUNG, the log names its line, and the other worker serves throughout."""
    with request(cluster, "/regex") as sock:
        dead = seen.wait(lambda: next((e for e in seen.events if e.kind == "exit"), None), "one is killed").worker
        assert (dead.signal, dead.reason, dead.note) == (signal.SIGKILL, "hung", "GIL held")
        cluster.wait_log(rf"Worker {dead.pid} \(id \d+, slot \d\): the interpreter \(GIL\) is held")
        stacks = stacks_of(cluster.log, dead.id)
        assert "in hold_the_interpreter" in stacks, cluster.log
        number = int(re.search(r"line (\d+) in hold_the_interpreter", stacks)[1])
        assert "THE CULPRIT" in (APPS / "hanging.py").read_text().splitlines()[number - 1]
        assert answer(sock) == b""
    seen.wait_ready(WORKERS, without=[dead.pid])


def test_waiting_is_not_hanging(cluster, seen):
    """A request that blocks for longer than the limit is the app's business: answered, nobody suspected."""
    sock, info = busy_with(seen, f"/sleep?{HANG_S + 1}")
    assert int(answer(sock)) > 0
    sock.close()
    assert seen.workers()[info.pid].id == info.id
    assert not judged(seen), seen.events


def test_many_waits_in_one_round_are_not_hanging(cluster, seen):
    """Requests that arrive together and take, together, longer than the limit: the loop goes on."""
    blocked = [busy_with(seen, "/sleep?0.3") for _ in range(WORKERS)]  # what comes now is one round for each
    socks = [request(cluster, "/sleep?0.12") for _ in range(40)]
    for sock in [sock for sock, _ in blocked] + socks:
        assert int(answer(sock)) > 0
        sock.close()
    assert not judged(seen), seen.events


def test_a_loop_stuck_outside_the_app(cluster, seen):
    """The worker is heard, but its loop stands still with nobody in the app: HUNG, and where it stands."""
    victim = int(asked(cluster, "/wedge"))

    def knock():  # the loop takes the lock to accept; which worker does is for them to decide
        cluster.connect().close()
        return seen.happened("exit", victim)

    dead = seen.wait(knock, "the worker with the stuck loop is killed").worker
    assert (dead.signal, dead.reason) == (signal.SIGKILL, "hung")
    assert "its event loop is stuck" in seen.happened("error", victim).text
    assert dead.note == "loop blocked"
    cluster.wait_log(rf"Worker {victim} \(id \d+, slot \d\): its event loop is blocked, with no request")
    assert re.search(r"line \d+ in (_accept|_leave_for)\b", stacks_of(cluster.log, dead.id)), cluster.log
    seen.wait_ready(WORKERS, without=[victim])


def test_a_master_stopped_for_less_than_its_limit(cluster, seen):
    """Longer than the workers' limit: nobody is judged for its absence, and every request is served."""
    before = seen.wait_ready(WORKERS)
    master = see(cluster).master
    total = cluster.counters()["requests"]
    with Load(cluster.address) as load:
        kill(master, number=signal.SIGSTOP)
        stay(HANG_S + 0.5)
        kill(master, number=signal.SIGCONT)
        cluster.wait_log(r"the master did not run for \d\.\d s; nobody is judged for it")
        stay(HANG_S / 3 + 0.2)  # a wrong verdict would be spoken by then
        after = seen.wait_ready(WORKERS)
    assert [w.id for w in after.values()] == [w.id for w in before.values()]
    assert not judged(seen), seen.events
    assert see(cluster).master == master
    load.check(cluster.counters()["requests"], base=total)


def test_a_master_stopped_for_longer(cluster, seen):
    """It is killed and replaced: a new epoch, the same workers, every request served, the total unbroken."""
    before = seen.wait_ready(WORKERS)
    old = seen.snapshot()
    total = cluster.counters()["requests"]
    with Load(cluster.address) as load:
        begun = time.monotonic()
        kill(old.master_pid, number=signal.SIGSTOP)
        gone(old.master_pid, timeout_s=40.0)  # the launcher's own lag is added to the limit
        killed_s = time.monotonic() - begun
        after = seen.wait_ready(WORKERS)
    new = seen.snapshot()
    assert killed_s > MASTER_S - 1, killed_s
    assert new.epoch == old.epoch + 1
    assert new.master_pid != old.master_pid
    assert [w.pid for w in after.values()] == [w.pid for w in before.values()]
    load.check(cluster.counters()["requests"], base=total)
    cluster.wait_log(rf"Master {old.master_pid} has not run for \d+ s; killing it")
    cluster.wait_log(rf"Master {old.master_pid} died\. SIGKILL")
    kill(after[0].pid)  # and the new one does its work
    assert seen.wait_exit(after[0].pid).signal == signal.SIGKILL
    seen.wait_ready(WORKERS, without=[after[0].pid])


def test_a_stopped_launcher(cluster, seen):
    """Nobody is judged meanwhile; a death in that time is told, with its signal, when the launcher goes on."""
    before = seen.wait_ready(WORKERS)
    master = see(cluster).master
    total = cluster.counters()["requests"]
    kill(cluster.process.pid, number=signal.SIGSTOP)
    try:
        with Load(cluster.address) as load:
            stay(HANG_S + 0.3)
            # On a busy machine one may be suspect for a moment; who is given up never comes back.
            assert [w.pid for w in seen.wait_ready(WORKERS).values()] == [w.pid for w in before.values()]
            assert not judged(seen), seen.events
        load.check(cluster.counters()["requests"], base=total)
        kill(before[1].pid)
        stay(0.3)
        assert not seen.happened("exit", before[1].pid)
        assert asked(cluster, "/pid") == b"%d" % before[0].pid
    finally:
        kill(cluster.process.pid, number=signal.SIGCONT)
    dead = seen.wait_exit(before[1].pid)
    assert (dead.signal, dead.reason) == (signal.SIGKILL, "killed by signal SIGKILL")
    after = seen.wait_ready(WORKERS, without=[before[1].pid])
    assert after[0].pid == before[0].pid
    assert see(cluster).master == master


def test_a_zygote_stopped_for_a_while(cluster, seen):
    """A replacement waits for it, and comes when it goes on; no second one is asked for."""
    before = seen.wait_ready(WORKERS)
    zygote = see(cluster).zygote
    kill(zygote, number=signal.SIGSTOP)
    kill(before[0].pid)
    seen.wait_exit(before[0].pid)
    assert asked(cluster, "/pid") == b"%d" % before[1].pid
    kill(zygote, number=signal.SIGCONT)
    after = seen.wait_ready(WORKERS, without=[before[0].pid])
    assert after[0].id == before[0].id + max(w.id for w in before.values()) - before[0].id + 1
    assert see(cluster).zygote == zygote


def test_a_zygote_stopped_for_good():
    """It is given up after the boot time-out, killed, and another one forks; the other worker serves meanwhile."""
    with running("hanging:app", *OPTIONS, "--boot-timeout=4") as cluster, Observer(cluster) as seen:
        before = seen.wait_ready(2)
        zygote = see(cluster).zygote
        with Load(cluster.address, clients=1, pause_s=0.01) as load:
            kill(zygote, number=signal.SIGSTOP)
            kill(before[0].pid)
            after = seen.wait_ready(2, without=[before[0].pid])
        load.check(cluster.counters()["requests"], kills=1)
        assert after[1].pid == before[1].pid  # nobody was judged
        gone(zygote)
        assert see(cluster).zygote != zygote
        cluster.wait_log("the zygote did not answer")

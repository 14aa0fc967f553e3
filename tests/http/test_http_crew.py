"""The threads of an engine: who leads, who is relieved, who rests, and that nobody is lost or left."""

import gc
import random
import threading
import time
import weakref
from pathlib import Path

import pytest
from crew_rig import Loop
from http_rig import DEADLINE_S, until


def nothing(request):
    """A fast request."""


class Gate:
    """A request that blocks until it is let go."""

    def __init__(self):
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self, request):
        self.entered.set()
        assert self.open.wait(DEADLINE_S), "nobody opened the gate"


def wait(seconds):
    """A request that waits for something else for so long."""
    return lambda request: threading.Event().wait(seconds)


def switches(name):
    """How often this thread of ours has gone to sleep."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == name]
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


# ---- relieved ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 8])
def test_a_stuck_leader_is_relieved(threads):
    """While a request blocks the leader another thread leads, and the old leader is of use again afterwards."""
    with Loop(threads) as loop:
        gate = Gate()
        stuck = loop.put(gate)
        assert gate.entered.wait(DEADLINE_S)
        other = loop.run(nothing)
        assert not stuck.done
        assert (stuck.thread, other.thread) == ("crew-1", "crew-2")
        assert loop.crew.running() == [stuck]
        gate.open.set()
        until(lambda: loop.relieved == ["crew-1"], "the old leader's return")
        assert loop.crew.running() == []
        assert loop.leaders == ["crew-1", "crew-2"]
        assert loop.run(nothing, pooled=True).thread == "crew-1"


def test_a_fast_leader_keeps_the_loop():
    """However many fast requests come, one thread runs them all, unless the machine itself stops it for some ms."""

    def leaders():
        with Loop(8) as loop:
            last = [loop.put(nothing) for _ in range(50_000)][-1]
            until(lambda: last.done, "the last request")
            return len(loop.leaders)

    until(lambda: leaders() <= 10, "a run that nobody disturbs")  # usually the first


def test_it_is_relieved_within_two_ticks():
    """Stuck leaders are relieved after 5 to 10 ms, unless the machine is late: their clients wait no longer."""
    waited = []
    with Loop(2) as loop:
        for _ in range(40):
            gate = Gate()
            stuck = loop.put(gate)
            assert gate.entered.wait(DEADLINE_S)
            began = time.monotonic()
            loop.run(nothing)
            waited.append(time.monotonic() - began)
            gate.open.set()
            until(lambda stuck=stuck: stuck.done and len(loop.relieved) == len(waited), "its end")
    assert sorted(waited)[5] < 0.030, "twice the ticks and a busy machine's share"


def test_a_relieved_leader_meets_the_next_one():
    """Requests about as long as the monitor's patience end at every moment of being relieved: none is run twice."""
    rng = random.Random(5)
    with Loop(4) as loop:
        requests = []
        for _ in range(150):
            requests.append(loop.put(wait(rng.choice([0.0, 0.004, 0.005, 0.006, 0.0098, 0.01, 0.0102]))))
            if rng.random() < 0.3:
                requests.append(loop.put(wait(0.005), pooled=True))
        until(lambda: all(request.done for request in requests), "all requests")
        assert {request.runs for request in requests} == {1}
        assert loop.relieved, "some were relieved"
    assert not loop.crew.running()


# ---- the monitor ---------------------------------------------------------------------------------------------------
def test_the_monitor_rests():
    """Without requests nothing wakes up: the monitor sleeps until it is called."""
    with Loop(2) as loop:
        loop.run(nothing)
        until(lambda: loop.crew.resting, "the monitor's rest")

        def rested():
            before = switches("crew-monitor")
            threading.Event().wait(0.1)  # twenty ticks
            return switches("crew-monitor") == before

        until(rested, "a tenth of a second without a tick")
        assert loop.crew.resting


def test_the_monitor_rests_while_only_other_threads_work():
    """A request that blocks for long, beside the loop, costs no tick."""
    with Loop(2) as loop:
        gate = Gate()
        loop.put(gate)
        assert gate.entered.wait(DEADLINE_S)
        until(lambda: len(loop.leaders) == 2, "the next leader")
        until(lambda: loop.crew.resting, "the monitor's rest")
        gate.open.set()


def test_the_monitor_is_woken_at_every_moment_of_falling_asleep():
    """150 requests that block until another one is run, begun while the monitor counts down, rests, or is between."""
    rng = random.Random(9)
    with Loop(2) as loop:
        for number in range(150):
            if number % 3 == 0:
                until(lambda: loop.crew.resting, "the monitor's rest")
            elif number % 3 == 1:
                threading.Event().wait(0.018 + rng.random() * 0.006)  # REST_TICKS later
            gate = Gate()
            stuck = loop.put(gate)
            opens = loop.put(lambda request, gate=gate: gate.open.set())
            until(lambda stuck=stuck, opens=opens: stuck.done and opens.done, f"round {number}")


def test_the_monitor_may_be_called_twice():
    """Two leaders, of whom one was held up on its way, may call at the same moment."""
    with Loop(2) as loop:
        for _ in range(50):
            until(lambda: loop.crew.resting, "the monitor's rest")
            callers = [threading.Thread(target=loop.crew.wake_monitor) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            loop.crew.wake_monitor()
            loop.crew.wake_monitor()


# ---- jobs ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("threads", [2, 8])
def test_jobs_wait_for_a_free_thread(threads):
    """More than there are threads: all are run, once each, in their order, while the loop goes on."""
    with Loop(threads) as loop:
        gate, order = Gate(), []
        blocked = [loop.put(gate, pooled=True) for _ in range(threads - 1)]
        until(lambda: sum(bool(request.started) for request in blocked) == threads - 1, "all threads busy")
        waiting = [loop.put(lambda _, number=number: order.append(number), pooled=True) for number in range(200)]
        assert loop.run(nothing).thread == "crew-1"
        assert not order
        assert sorted(map(id, loop.crew.running())) == sorted(map(id, blocked))
        gate.open.set()
        until(lambda: all(request.done for request in (*blocked, *waiting)), "all jobs")
        assert {request.runs for request in waiting} == {1}
        assert sorted(order) == list(range(200))
        if threads == 2:
            assert order == sorted(order)
        assert "crew-1" not in {request.thread for request in waiting}


def test_threads_start_one_by_one():
    """As many threads as are needed at once, and no more."""
    with Loop(8) as loop:
        for _ in range(50):
            loop.run(nothing, pooled=True)
            until(lambda: loop.crew._resters, "its thread rests again")
        assert loop.threads() == ["crew-1", "crew-2", "crew-monitor"]


def test_no_job_is_lost():
    """3,000 jobs and inline requests, at random, from waits of nothing to some ms; all threads at their limits."""
    rng = random.Random(2)
    with Loop(5) as loop:
        requests = []
        for _ in range(3000):
            work = wait(rng.random() * 0.004) if rng.random() < 0.2 else nothing
            requests.append(loop.put(work, pooled=rng.random() < 0.5))
        until(lambda: all(request.done for request in requests), "all requests")
        assert {request.runs for request in requests} == {1}
        assert not loop.refused
        assert len(loop.threads()) <= 6


# ---- a vacant loop -------------------------------------------------------------------------------------------------
def test_a_vacant_loop_is_taken_by_the_first_that_is_free():
    """All threads are busy, the leader is stuck: who comes back first leads, before any other job."""
    with Loop(2) as loop:
        pooled, inline = Gate(), Gate()
        job = loop.put(pooled, pooled=True)
        assert pooled.entered.wait(DEADLINE_S)
        queued = loop.put(nothing, pooled=True)
        stuck = loop.put(inline)
        assert inline.entered.wait(DEADLINE_S)
        until(lambda: loop.crew._vacant, "the loop vacant")
        later = loop.put(nothing)
        assert sorted(map(id, loop.crew.running())) == sorted([id(job), id(stuck)])
        assert not later.done
        pooled.open.set()
        until(lambda: later.done, "the request that waited for a leader")
        assert later.thread == job.thread == "crew-2"
        assert not stuck.done
        assert not queued.done, "the loop goes before jobs"
        inline.open.set()
        until(lambda: queued.done, "the job that waited")
        assert queued.thread == "crew-1"


def test_a_vacant_loop_is_taken_back_by_its_old_leader():
    """Nobody else became free: the relieved leader comes back, finds the loop vacant, and leads again."""
    with Loop(2) as loop:
        pooled, inline = Gate(), Gate()
        loop.put(pooled, pooled=True)
        assert pooled.entered.wait(DEADLINE_S)
        loop.put(inline)
        assert inline.entered.wait(DEADLINE_S)
        until(lambda: loop.crew._vacant, "the loop vacant")
        inline.open.set()
        assert loop.run(nothing).thread == "crew-1"
        assert loop.leaders == ["crew-1", "crew-1"]
        pooled.open.set()


# ---- one thread ----------------------------------------------------------------------------------------------------
def test_one_thread_does_everything_in_turn():
    """threads=1: nobody is relieved, there is no monitor, nobody may wait for a client."""
    with Loop(1) as loop:
        requests = [loop.put(wait(0.03)), loop.put(nothing)]
        until(lambda: requests[1].done, "both")
        assert [request.thread for request in requests] == ["crew-1", "crew-1"]
        assert loop.threads() == ["crew-1"]
        assert loop.leaders == ["crew-1"]
        assert not loop.crew.take_patience()
        assert loop.run(lambda request: setattr(request, "said", loop.crew.step_down(request.tenure))).said is False


# ---- stepping down -------------------------------------------------------------------------------------------------
def test_a_leader_steps_down():
    """A leader that is about to wait gives the loop up at once; asked again it still has not got it."""
    answers = []
    gate = Gate()

    def waits(request):
        answers.append(loop.crew.step_down(request.tenure))
        answers.append(loop.crew.step_down(request.tenure))
        gate(request)

    with Loop(2) as loop:
        request = loop.put(waits)
        other = loop.run(nothing)
        assert answers == [True, True]
        assert other.thread == "crew-2"
        assert loop.crew.running() == [request]
        gate.open.set()
        until(lambda: loop.relieved == ["crew-1"], "its return")


def test_nobody_steps_down_when_nobody_is_free():
    """All other threads are busy: the leader keeps the loop, and must not wait."""
    with Loop(2) as loop:
        gate = Gate()
        loop.put(gate, pooled=True)
        assert gate.entered.wait(DEADLINE_S)
        answers = []
        loop.run(lambda request: answers.append(loop.crew.step_down(request.tenure)))
        assert answers == [False]
        assert loop.run(nothing).thread == "crew-1"
        gate.open.set()


def test_other_threads_have_nothing_to_step_down_from():
    """A job that waits holds nobody up."""
    with Loop(2) as loop:
        answers = []
        loop.run(lambda request: answers.append(loop.crew.step_down(request.tenure)), pooled=True)
        assert answers == [True]
        assert loop.leaders == ["crew-1"]


def test_stepping_down_at_the_moment_of_being_relieved():
    """A leader that is about to wait and the monitor take the loop away at the same moment: one of them does."""
    rng = random.Random(12)

    def waits(request):
        pause.wait(rng.choice([0.0045, 0.005, 0.0055, 0.0095, 0.01, 0.0105]))
        answers.append(loop.crew.step_down(request.tenure))
        pause.wait(0.001)

    answers, pause = [], threading.Event()
    with Loop(4) as loop:
        requests = [loop.put(waits if number % 2 else nothing) for number in range(200)]
        until(lambda: all(request.done for request in requests), "all requests")
        assert {request.runs for request in requests} == {1}
        assert True in answers  # mostly; on a busy machine the monitor is often the first


def test_patience_is_half_of_the_threads():
    """Four of eight may wait for clients at a time; who gives it back lets another one."""
    with Loop(8) as loop:
        assert [loop.crew.take_patience() for _ in range(5)] == [True] * 4 + [False]
        loop.crew.give_patience()
        assert [loop.crew.take_patience() for _ in range(2)] == [True, False]


# ---- a machine without threads -------------------------------------------------------------------------------------
def test_without_threads_the_leader_does_everything(no_more_threads):
    """Nobody can be started: jobs are run inline, nobody steps down, the stuck leader comes back to its loop."""
    with Loop(4) as loop:
        no_more_threads.begin()
        job = loop.run(nothing, pooled=True)
        assert job.thread == "crew-1"
        assert loop.refused == 1
        answers = []

        def ask(request):
            answers.append(loop.crew.step_down(request.tenure))

        # True is said only to who was relieved before it asked: a leader that the machine has stopped for some ms.
        until(lambda: loop.run(ask) and not answers[-1], "a leader that cannot step down")
        before = len(loop.relieved)
        slow = loop.run(lambda request: until(lambda: not request.tenure, "its relief"))
        assert loop.run(nothing).thread == slow.thread == "crew-1"
        assert len(loop.relieved) > before
        assert set(loop.relieved) == {"crew-1"}


def test_threads_are_started_when_there_is_room_again(no_more_threads):
    """A shortage is over one day: then the crew becomes as large as it was to be."""
    with Loop(4) as loop:
        no_more_threads.begin()
        for _ in range(10):
            loop.run(nothing, pooled=True)
        no_more_threads.end()
        gates = [Gate() for _ in range(3)]
        for gate in gates:
            loop.put(gate, pooled=True)
        until(lambda: all(gate.entered.is_set() for gate in gates), "three threads")
        assert len(loop.threads()) == 5
        for gate in gates:
            gate.open.set()


def test_fewer_threads_do_the_work_of_all(no_more_threads):
    """One follower could be started: jobs wait for it, and none is lost."""
    with Loop(4) as loop:
        loop.run(nothing, pooled=True)
        no_more_threads.begin()
        requests = [loop.put(wait(0.001), pooled=True) for _ in range(100)]
        until(lambda: all(request.done for request in requests), "all jobs")
        assert {request.thread for request in requests} == {"crew-2"}
        assert not loop.refused


# ---- the end -------------------------------------------------------------------------------------------------------
def test_the_end_waits_for_what_runs():
    """The loop is over while jobs and a relieved leader are still at work: `run` returns when they are done."""
    with Loop(4) as loop:
        gate = Gate()
        jobs = [loop.put(gate, pooled=True) for _ in range(2)]
        until(lambda: sum(bool(job.started) for job in jobs) == 2, "both jobs")
        stuck = loop.put(gate)
        until(lambda: stuck.started and len(loop.leaders) == 2, "the new leader")
        loop.todo.put(None)
        until(lambda: loop.crew._over, "the end of the loop")
        assert loop._thread.is_alive()
        gate.open.set()
        loop.end()
        assert all(job.done for job in (*jobs, stuck))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("inline", [True, False])
def test_a_failure_of_the_loop_is_raised_by_run(inline):
    """A bug in the loop ends the crew, whichever thread led, and the thread that called `run` gets it."""
    with Loop(3) as loop:
        gate = Gate()
        if inline:
            loop.put(gate)
            assert gate.entered.wait(DEADLINE_S)
            until(lambda: len(loop.leaders) == 2, "the new leader")
        loop.todo.put(ZeroDivisionError())
        until(lambda: loop.crew._over, "the end")
        gate.open.set()
        loop.end()
        assert type(loop.error) is ZeroDivisionError
        loop.error = None


def test_a_hundred_lives():
    """Crews that end at once, in the middle of relieving, or with threads just started: no thread is left."""
    rng = random.Random(4)
    for _ in range(60):
        with Loop(rng.choice([1, 2, 3, 8])) as loop:
            for _ in range(rng.randrange(4)):
                loop.put(wait(rng.choice([0.0, 0.005, 0.01])), pooled=loop.crew.many and rng.random() < 0.5)


# ---- what runs -----------------------------------------------------------------------------------------------------
def test_what_runs_has_begun():
    """Whoever asks at any moment sees only requests that have entered the application and not left it."""
    stop = threading.Event()
    seen = []

    def look():
        while not stop.is_set():
            seen.extend(request.started for request in loop.crew.running())

    with Loop(3) as loop:
        looker = threading.Thread(target=look)
        looker.start()
        requests = [loop.put(nothing, pooled=number % 3 > 0) for number in range(20_000)]
        until(lambda: all(request.done for request in requests), "all requests")
        stop.set()
        looker.join()
    assert min(seen, default=1.0) > 0.0


def test_a_finished_request_is_not_kept():
    """A thread at rest holds no request: what it keeps alive (an upload, a file) is free."""
    with Loop(3) as loop:
        requests = [loop.run(nothing, pooled=True), loop.run(wait(0.03)), loop.run(nothing)]
        until(lambda: loop.crew._resters, "a thread at rest")
        assert not loop.crew.off_loop
        watched = [weakref.ref(request) for request in requests]
        requests.clear()
        until(lambda: gc.collect() is not None and sum(ref() is not None for ref in watched) <= 1, "their end")

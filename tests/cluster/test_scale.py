"""The size of a running cluster: more workers, fewer, none, workers with an environment of their own."""

import signal

import pytest
from anatomy import kill
from load import Load
from verbs_rig import ANSWER_S, until, verbs

from zcluster.errors import BusError


def test_scaling_under_load(tmp_path):
    """Up, down, up again: the slots are 0..N-1 each time, and no request fails or is counted twice."""
    with verbs(tmp_path) as it, Load(it.cluster.address, clients=2) as load:
        before = it.pids()
        assert it.ask("scale", {"to": 5}) == {"slots": [0, 1, 2, 3, 4]}
        assert before.items() <= {w["slot"]: w["pid"] for w in it.whole(5)["workers"]}.items()
        assert it.ask("scale", {"by": -4}) == {"slots": [0]}
        (left,) = it.whole(1)["workers"]
        assert left["pid"] == before[0]
        assert it.ask("scale", {"by": 1}) == {"slots": [0, 1]}
        assert it.whole(2)["state"] == "running"
        load.stop()
        load.check(it.snapshot()["counters"]["requests"])
        with pytest.raises(BusError, match=r"300 workers need 600 lanes .* started with 512; start it with more"):
            it.ask("scale", {"to": 300})
        with pytest.raises(BusError, match=r"2 workers wanted now; -1 are less than none"):
            it.ask("scale", {"by": -3})
        assert len(it.workers()) == 2
        log = it.cluster.end()
    assert "Traceback" not in log


def test_a_worker_with_an_environment_of_its_own(tmp_path):
    """It has it, its replacements have it (after a kill, a master's death, a reload), the others have not."""
    with verbs(tmp_path, workers=1) as it:
        assert it.ask("fork", {"env": {"COLOR": "blue", "ZCLUSTER_WORKER_SLOT": "9"}}) == {"slot": 1, "id": 2}
        pids = {w["slot"]: w["pid"] for w in it.whole(2)["workers"]}
        assert (it.environ(1)["color"], it.environ(0)["color"]) == ("blue", "")
        kill(pids[1], pids[0])
        until(lambda: not set(pids.values()) & set(it.pids().values()) and len(it.pids()) == 2)
        after = it.whole(2)
        assert (it.environ(1)["color"], it.environ(0)["color"]) == ("blue", "")
        kill(after["master_pid"])
        until(lambda: it.snapshot()["epoch"] == 2)
        kill(it.pids()[1])
        until(lambda: it.pids().get(1, after["workers"][1]["pid"]) != after["workers"][1]["pid"])
        it.whole(2)
        assert it.environ(1)["color"] == "blue"
        assert it.ask("reload", {"token": "a"}) == {"generation": 2}
        it.whole(2, 2)
        assert (it.environ(1)["color"], it.environ(0)["color"]) == ("blue", "")
        with pytest.raises(BusError, match="'A=B' cannot be the name of an environment variable"):
            it.ask("fork", {"env": {"A=B": "c"}})
        with pytest.raises(BusError, match="may have 65536 bytes"):
            it.ask("fork", {"env": {"A": "x" * 70_000}})


def test_disconnecting_one_and_all(tmp_path):
    """A slot that is closed stays closed; without workers a request waits, and the next fork answers it."""
    with verbs(tmp_path, workers=3) as it:
        first = it.workers()[1]
        assert it.ask("disconnect", {"worker": first["id"]}) == {}
        it.whole([0, 2])
        with pytest.raises(BusError, match=f"there is no worker {first['id']}"):
            it.ask("disconnect", {"worker": first["id"]})
        assert it.ask("disconnect") == {}
        shot = it.whole(0)
        assert (shot["state"], shot["workers"]) == ("running", [])
        answer = it._pool.submit(it.about)
        assert it.ask("fork") == {"slot": 0, "id": 4}  # one that was there before has a lower id
        assert answer.result(ANSWER_S)["slot"] == 0
        (worker,) = it.whole(1)["workers"]
        assert (worker["restarts"], worker["id"] > 3) == (1, True)
        it.cluster.end()


def test_the_next_master_keeps_the_size(tmp_path):
    """Killed right after its answer: what was opened is served, what was closed stays so."""
    with verbs(tmp_path) as it:
        for number, (verb, args, slots) in enumerate(
            [("scale", {"to": 4}, 4), ("scale", {"to": 1}, 1), ("fork", {}, 2), ("disconnect", {}, 0)], 2
        ):
            master = it.snapshot()["master_pid"]
            it.ask(verb, args)
            kill(master)
            shot = it.whole(slots)
            if shot["master_pid"] == master:  # it was seen whole before the kernel had ended it
                until(lambda master=master: it.snapshot()["master_pid"] != master)
                shot = it.whole(slots)
            assert shot["epoch"] == number
        it.cluster.end(signal.SIGTERM)

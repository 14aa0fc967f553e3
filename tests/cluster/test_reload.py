"""New code in a running cluster: taken over without a lost request, or not taken at all."""

import os
from pathlib import Path

import pytest
from anatomy import gone, instance, kill, see
from handle_rig import options, run_dir  # noqa: F401  (fixtures)
from load import Load
from verbs_rig import ANSWER_S, HOLD, until, verbs

from zcluster import Cluster
from zcluster.errors import BusError

# The second worker has more counters than there is room for. (A worker is forked twice, and so is the hook run.)
BREAKS_SECOND = """
def after_fork():
    with open("forks", "a") as file:
        file.write("x")
    if os.path.getsize("forks") >= 4:
        for number in range(300):
            Counter(f"c{number}")
os.register_at_fork(after_in_child=after_fork)
"""


SPARE = 5


def fds(pid):
    """Descriptors this process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_new_code_without_a_lost_request(tmp_path):
    """All slots get workers of the new code, one after the other; no request fails, nothing is counted twice."""
    with verbs(tmp_path, workers=3) as it, Load(it.cluster.address, clients=2) as load:
        before = it.whole(3, 1)
        it.write(2)
        assert it.ask("reload", {"token": "a"}) == {"generation": 2}
        after = it.whole(3, 2)
        load.stop()
        load.check(it.snapshot()["counters"]["requests"])
        assert not {w["pid"] for w in before["workers"]} & {w["pid"] for w in after["workers"]}
        assert it.about()["version"] == 2
        gone(before["zygote_pid"])
        kill(after["workers"][0]["pid"])
        until(lambda: it.pids().get(0, after["workers"][0]["pid"]) != after["workers"][0]["pid"])
        it.whole(3, 2)
        assert it.environ(0)["version"] == 2
        log = it.cluster.end()
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("option", "before", "why"),
    [
        (
            "--preload",
            "raise RuntimeError('on fire')",
            r"the app 'served:app' raised while it was imported:\nTraceback(.|\n)*RuntimeError: on fire",
        ),
        ("--preload", "os._exit(7)", r"the process that imports the application ended: exit code 7"),
        ("--no-preload", "raise RuntimeError('on fire')", r"(.|\n)*RuntimeError: on fire"),
        ("--preload", BREAKS_SECOND, "no room for counter"),
    ],
)
def test_broken_code_changes_nothing(tmp_path, option, before, why):
    """The error says why; the workers are the same as before, or of the same code; good code is taken then."""
    with verbs(tmp_path, option) as it:
        shot = it.whole(2, 1)
        it.write(2, before)
        with pytest.raises(BusError, match=rf"generation 2 is not taken, generation 1 goes on serving: {why}"):
            it.ask("reload", {"token": "a"})
        after = it.whole(2, 1)
        assert after["workers"][1]["pid"] == shot["workers"][1]["pid"]
        if before != BREAKS_SECOND:  # it was rolled, and rolled back
            assert [w["pid"] for w in after["workers"]] == [w["pid"] for w in shot["workers"]]
        it.write(3)
        assert it.ask("reload", {"token": "b"}) == {"generation": 3}
        it.whole(2, 3)
        assert it.about()["version"] == 3


def test_reloads_at_once(tmp_path):
    """One runs, the second waits for its end, the third shares the second; and a stop is an end, too."""
    with verbs(tmp_path) as it:
        it.write(2, HOLD)
        first = it.asking("reload", {"token": "a"})
        it.held()
        it.write(3)
        others = [it.asking("reload", {"token": token}) for token in ("b", "c")]
        it.cluster.wait_log(r"the next reload begins when this one has ended; asked for by 2")
        assert not first.done()
        it.go()
        assert first.result(ANSWER_S) == {"generation": 2}
        assert [other.result(ANSWER_S) for other in others] == [{"generation": 3}] * 2
        it.whole(2, 3)
        assert it.about()["version"] == 3
        (tmp_path / "go").unlink()
        (tmp_path / "held").unlink()
        it.write(4, HOLD)
        last = it.asking("reload", {"token": "d"})
        it.held()
        log = it.cluster.end()
        with pytest.raises(BusError, match=r"the cluster is stopping|the cluster ended"):
            last.result(ANSWER_S)
    assert "Traceback" not in log


@pytest.mark.parametrize("moment", ["import", "roll"])
def test_the_master_is_killed_in_the_middle(tmp_path, moment):
    """The next master begins again; whoever asked gets the answer of that, and no request fails."""
    with verbs(tmp_path, workers=3) as it, Load(it.cluster.address, clients=1) as load:
        master = it.snapshot()["master_pid"]
        it.write(2, HOLD)
        asked = it.asking("reload", {"token": "a"})
        it.held()
        candidates = set(see(it.cluster).zygotes)
        if moment == "import":
            kill(master)
            gone(master)
            it.go()
        else:
            it.go()
            until(lambda: len({w["generation"] for w in it.workers()}) > 1 or asked.done())
            kill(master)
        generation = asked.result(ANSWER_S)["generation"]
        assert generation >= 2
        it.whole(3, generation)
        assert it.about()["version"] == 2
        gone(*candidates - set(see(it.cluster).zygotes))
        load.stop()
        load.check(it.snapshot()["counters"]["requests"])
        log = it.cluster.end()
    assert "Traceback" not in log


def test_nothing_is_left_of_old_generations(tmp_path):
    """After ten reloads there is one zygote, and nobody has a descriptor, nor the run directory a file, more."""
    with verbs(tmp_path, workers=1) as it:
        it.write(2)
        it.ask("reload", {"token": "first"})
        shot = it.whole(1, 2)
        kept = (shot["master_pid"], it.cluster.process.pid)
        before = {pid: fds(pid) + SPARE for pid in kept}
        worker_before = fds(shot["workers"][0]["pid"])
        for number in range(3, 12):
            assert it.ask("reload", {"token": f"{number}"}) == {"generation": number}
        shot = it.whole(1, 11)
        # One that is not closed each time would be nine; libzmq connects, and disconnects, when it pleases.
        until(lambda: all(fds(pid) < most for pid, most in before.items()), what=f"{before} are not exceeded")
        assert fds(shot["workers"][0]["pid"]) < worker_before + SPARE
        files = until(lambda: [f for f in names(it) if f.startswith("stacks")] == expected(shot) and names(it))
        assert not [name for name in files if name.startswith("boot")]
        assert shot["master_pid"] == kept[0]


def names(it):
    """Files in the run directory of the instance."""
    return sorted(path.name for path in Path(instance(it.cluster)).iterdir())


def expected(shot):
    return sorted([f"stacks-{shot['workers'][0]['id']}", f"stacks-zygote-{shot['generation']}"])


def test_an_app_in_memory_cannot_be_reloaded(options):  # noqa: F811
    """There is no code to load again; the answer says so at once, and what to do."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return [b"local"]

    with Cluster(app, **options) as cluster:
        with pytest.raises(BusError, match=r"lives in the memory of the program .* name it as MODULE:ATTRIBUTE"):
            cluster._ask("reload", {"token": "a"}, 20.0)
        assert {worker.generation for worker in cluster.workers.values()} == {1}

"""What the app promises, also on a bad day. The fixture comes with zcluster; the import is for its type only."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from zcluster.testing import RunningCluster

pytestmark = pytest.mark.zcluster("app:app", workers=2)


def test_it_counts_exactly(zcluster: RunningCluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.text for answer in pool.map(zcluster.client.get, ["/"] * 100)]
    assert all(answer.startswith("Visit ") for answer in answers)
    assert zcluster.counters["visits"] == 100


def test_kill_9_loses_nothing(zcluster: RunningCluster) -> None:
    for _ in range(10):
        zcluster.client.get("/")
    victim = zcluster.kill(0)
    for _ in range(10):
        assert zcluster.client.get("/").status_code == 200
    heir = zcluster.wait_replaced(victim)
    assert (heir.slot, victim.reason) == (0, "killed by signal SIGKILL")
    assert zcluster.counters["visits"] == 20


@pytest.mark.zcluster(hang_timeout_s=2.0)
def test_a_worker_that_hangs_is_replaced(zcluster: RunningCluster) -> None:
    hung = zcluster.stop_worker(1)
    heir = zcluster.wait_replaced(hung)
    assert "hung" in hung.reason
    assert heir.slot == 1
    assert zcluster.client.get("/").status_code == 200

"""Workers that are well and are replaced all the same, because they have answered so many requests."""

import re

from test_examples import EXAMPLES


def test_workers_are_replaced_after_so_many_requests(zcluster_factory, monkeypatch):
    """Start-first, with the reason told; no request fails, the count goes on, and the slots have new workers."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "counter"))
    cluster = zcluster_factory("app:app", max_requests=20, max_requests_jitter=5)
    ended = []
    cluster.on("exit", ended.append)
    first = set(cluster.workers)
    answered = 0

    def ask():
        nonlocal answered
        client = cluster.new_client()  # a connection of its own: any worker may take it
        response = client.get("/")
        client.close()
        answered += 1
        assert response.status_code == 200
        assert int(re.search(r"responded to (\d+) requests", response.text)[1]) == answered
        return not first & set(cluster.workers)

    cluster.wait_for(ask, timeout_s=60)
    cluster.wait_for(lambda: first <= {worker.id for worker in ended})
    assert {worker.reason for worker in ended if worker.id in first} == {"max requests"}
    assert all(worker.exited_after_disconnect for worker in ended)
    assert sorted(worker.slot for worker in cluster.workers.values() if worker.state == "ready")[:2] == [0, 1]

"""The examples of messages, run as their READMEs say, with the project's own fixtures."""

import re

import pytest
from test_examples import EXAMPLES

READERS = 20  # fresh connections, which any worker may take


@pytest.fixture
def example(zcluster_factory, monkeypatch):
    """Start an example with three workers."""

    def start(name, **options):
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return zcluster_factory("app:app", workers=3, **options)

    return start


def fresh(cluster, path):
    """GET by a connection of its own, so that any worker may answer."""
    client = cluster.new_client()
    try:
        return client.get(path).text
    finally:
        client.close()


def test_chat(example):
    """Everybody reads the same lines in the same order, also a worker that was stopped while they were said."""
    cluster = example("chat", threads=16)
    cluster.stop_worker(1)
    said = [f"line {number}" for number in range(5)]
    for text in said:
        answer = cluster.client.post("/kitchen", data={"who": "ada", "text": text})
        assert (answer.status_code, answer.text) == (202, "said\n")
    cluster.continue_worker(1)
    for _ in range(READERS):
        cluster.wait_for(lambda: fresh(cluster, "/kitchen?after=0&wait=0").count("\n") == 5)
    read = {fresh(cluster, "/kitchen?after=0&wait=0") for _ in range(READERS)}
    assert len(read) == 1
    (lines,) = read
    assert re.findall(r"(?m)^\d+\.\d{6} ada: (.*)$", lines) == said
    last = lines.splitlines()[-2].split()[0]
    assert fresh(cluster, f"/kitchen?after={last}") == lines.splitlines()[-1] + "\n"


def test_cache_invalidate(example, monkeypatch, tmp_path):
    """A value that was cached by every worker is read anew by every worker after one of them has changed it."""
    monkeypatch.setenv("STORE", str(tmp_path))
    cluster = example("cache_invalidate")
    clients = {}  # by worker: one connection each, and who has none is given the next

    def each_has_one():
        client = cluster.new_client()
        pid = int(re.search(r"by (\d+)", client.get("/colour").text)[1])
        if clients.setdefault(pid, client) is not client:
            client.close()
        return set(clients) == {worker.pid for worker in cluster.workers.values()}

    cluster.wait_for(each_has_one)

    def all_answer(value):
        return all(client.get("/colour").text == f"{value} (cached by {pid})\n" for pid, client in clients.items())

    one, other, _ = clients.values()
    assert one.put("/colour", data="red").text == "stored\n"
    cluster.wait_for(lambda: all_answer("red"))
    assert other.put("/colour", data="blue").text == "stored\n"
    cluster.wait_for(lambda: all_answer("blue"))


def test_ask_everyone(example):
    """All three answer; a stopped one is named, and costs the time-out but not the others' answers."""
    cluster = example("ask_everyone")
    ids = {worker.slot: worker.id for worker in cluster.workers.values()}
    pids = {worker.id: worker.pid for worker in cluster.workers.values()}

    def replied():
        replies = re.findall(r"(?m)^worker (\d+): \{'pid': (\d+), ", cluster.client.get("/").text)
        return {int(id_): int(pid) for id_, pid in replies}

    cluster.wait_for(lambda: replied() == pids)  # the example waits 0.5 s for them, which a busy machine may take
    cluster.stop_worker(2)

    def stopped_is_named():
        lines = fresh(cluster, "/").splitlines()
        assert f"worker {ids[2]}: did not reply in time" in lines
        return sum("'pid'" in line for line in lines) == 2

    cluster.wait_for(stopped_is_named)
    cluster.continue_worker(2)
    cluster.wait_for(lambda: fresh(cluster, "/").count("'pid'") == 3)

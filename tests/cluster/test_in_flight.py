"""What a cluster is busy with: slow requests in `ps`."""

import re
import subprocess

from harness import APPS, ZCLUSTER, wait_for
from stopping import ONCE, answer


def slow(cluster):
    """What `ps --json` names, of all workers."""
    return [request for worker in cluster.snapshot()["workers"] for request in worker["slow"]]


def test_ps_names_slow_requests(zcluster_factory, tmp_path, monkeypatch):
    """Method, path and age, below the worker that runs it; without the query, and no longer than it runs."""
    monkeypatch.syspath_prepend(APPS)
    monkeypatch.setenv("HOLD_DIR", str(tmp_path))
    cluster = zcluster_factory("holding:app", threads=4, hang_timeout_s=60.0)
    client = cluster.raw(20.0)
    client.sendall(ONCE.replace(b" / ", b" /hold?until=go "))
    (seen,) = wait_for(lambda: slow(cluster), what="the request is slow")
    shown = subprocess.run(
        [*ZCLUSTER, "ps", "--run-dir", cluster.run_dir], check=True, capture_output=True, text=True, timeout=20
    )
    table = shown.stdout.splitlines()
    (tmp_path / "go").touch()
    assert answer(client) == b"1"
    assert (seen["method"], seen["path"]) == ("GET", "/hold")
    assert 1.0 <= seen["age_s"] < 60.0
    (line,) = [number for number, text in enumerate(table) if re.fullmatch(r" +[1-9]\d*\.\ds  GET /hold", text)]
    (busy,) = [text for text in table if re.search(r" ready +1 +\d+ +1 ", text)]
    assert table[line - 1] == busy
    wait_for(lambda: not slow(cluster), what="it is over")

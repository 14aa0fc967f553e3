"""What a cluster is busy with: slow requests in `ps`."""

import re

from harness import wait_for
from stopping import Held, answer, ask


def slow(cluster):
    """What `ps --json` names, of all workers."""
    return [request for worker in cluster.workers() for request in worker["slow"]]


def test_ps_names_slow_requests(tmp_path):
    """Method, path and age, below the worker that runs it; without the query, and no longer than it runs."""
    with Held(tmp_path, "--threads=4", "--hang-timeout=60") as (cluster, held):
        client = ask(cluster, "/hold?until=go")
        (seen,) = wait_for(lambda: slow(cluster), what="the request is slow")
        table = cluster.command_line("ps").stdout.splitlines()
        held.go()
        assert answer(client) == b"1"
        assert (seen["method"], seen["path"]) == ("GET", "/hold")
        assert 1.0 <= seen["age_s"] < 60.0
        (line,) = [number for number, text in enumerate(table) if re.fullmatch(r" +[1-9]\d*\.\ds  GET /hold", text)]
        (busy,) = [text for text in table if re.search(r" ready +1 +\d+ +1 ", text)]
        assert table[line - 1] == busy
        wait_for(lambda: not slow(cluster), what="it is over")

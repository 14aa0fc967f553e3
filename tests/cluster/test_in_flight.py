"""What a cluster is busy with: slow requests in `ps`."""

import re
import threading

from harness import running, wait_for


def slow(cluster):
    """What `ps --json` names, of all workers."""
    return [request for worker in cluster.workers() for request in worker["slow"]]


def test_ps_names_slow_requests():
    """Method, path and age, below the worker that runs it; without the query, and no longer than it runs."""
    with running("hanging:app", "--threads=4") as cluster:
        client = threading.Thread(target=cluster.get, args=["/sleep?4"])
        client.start()
        (seen,) = wait_for(lambda: slow(cluster), what="the request is slow")
        table = cluster.command_line("ps").stdout.splitlines()
        client.join(20)
        assert (seen["method"], seen["path"]) == ("GET", "/sleep")
        assert 1.0 <= seen["age_s"] < 10.0
        (line,) = [number for number, text in enumerate(table) if re.fullmatch(r" +[1-9]\.\ds  GET /sleep", text)]
        (busy,) = [text for text in table if re.search(r" ready +1 +\d+ +1 ", text)]
        assert table[line - 1] == busy
        wait_for(lambda: not slow(cluster), what="it is over")

"""A slot whose workers crash again and again: the rest serves, and everybody who looks is told."""

import http.client
import signal

from harness import wait_for
from verbs_rig import verbs

# Worker 0 is well; another one serves, until its first request for `/`.
CRASHES = """
def crash():
    if worker.slot == 1:
        os._exit(7)

class Requests:
    incr = staticmethod(lambda: crash() or 0)
Counter = lambda name: Requests
"""


def test_a_crash_loop(tmp_path):
    """State `degraded` in `ps`, a line in the log, answers all the while, and exit code 5 when it is stopped."""
    with verbs(tmp_path) as it:
        it.write(2, CRASHES)
        it.ask("reload", {"token": "a"})
        it.whole(2, 2)

        def is_degraded():
            connection = http.client.HTTPConnection(*it.cluster.address, timeout=15)
            try:
                connection.request("GET", "/")
                assert connection.getresponse().read() == b"0"
            except (ConnectionResetError, http.client.RemoteDisconnected):
                pass  # it was worker 1
            finally:
                connection.close()
            return it.snapshot()["state"] == "degraded"

        wait_for(is_degraded, 60.0)
        it.cluster.wait_log(
            r"degraded, and serving with the rest: workers of slot 1 crash soon after their start, again and again"
        )
        assert it.about()["version"] == 2
        assert it.cluster.command_line("ps").stdout.startswith("served  degraded  ")
        log = it.cluster.ended(number=signal.SIGTERM, code=5)
    assert "zcluster: error: stopped while not all workers could be kept running" in log
    assert log.count("exit code 7; replacing it in slot 1 now") >= 10  # at once, until it was one crash too many

"""A cluster with nothing to do does nothing."""

import os
import time
from pathlib import Path

import pytest
from harness import APPS, wait_for

# Those of every day, unlike the plugin's: it is they that must cost nothing.
PERIODS = {"heartbeat_s": 1.0, "ledger_tick_s": 0.25, "hang_timeout_s": 30.0, "master_timeout_s": 60.0}


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("app", ["hello:app", "counting:app"])
def test_an_idle_cluster_rests(app, zcluster_factory, monkeypatch):
    """Ready, and after a request: no process takes more than a tenth of a core; one that spins takes all of it."""
    monkeypatch.syspath_prepend(APPS)
    cluster = zcluster_factory(app, **PERIODS)
    cluster.client.get("/")
    seconds = []

    def rests():  # the first second may yet see the end of the start
        before = {pid: cpu_s(pid) for pid in cluster.processes()}
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() >= begun + 1.0)
        used = {pid: cpu_s(pid) - start for pid, start in before.items()}
        seconds.append(used)
        assert len(used) == 5  # launcher, master, zygote, two workers
        return max(used.values()) < 0.1 * (time.monotonic() - begun)

    wait_for(rests, 20.0, f"a second of rest in {seconds}")

"""`--health-path`: no worker serves before its app has answered 200 there, not even in a reload or after a crash."""

import re

import pytest
from anatomy import kill
from load import Load
from verbs_rig import until, verbs

from zcluster.errors import BusError

# Whether it is well is asked of files beside it. Where it is sick by its code, `health` is replaced.
HEALTH = """
def health(environ):
    return "503 no database" if os.path.exists("sick") else "200 OK"

class OnHealth:
    def __init__(self, app):
        self.app = app
    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] != "/health":
            return self.app(environ, start_response)
        start_response(health(environ), [("Content-Length", "0")])
        return []
"""
LAST = "\napp = OnHealth(app)\n"
RAISES = "    raise RuntimeError('on fire')\n"
HANGS = "    select.select([], [], [])\n"


def sick(how):
    """The app with another body of `health`."""
    return HEALTH.replace("    return", f"{how}    return", 1)


def write(it, version, before):
    """The app of the rig behind `OnHealth`."""
    it.write(version, before)
    with (it.folder / "served.py").open("a") as file:
        file.write(LAST)


def hangs(it):
    """Reload code that does not answer; returns how many generations that took.

    The boot timeout holds for the import as well, which may be slow on a busy machine: then a longer one is tried.
    """
    texts = []
    for boot_s in (4, 10, 30):
        (it.folder / "zcluster.toml").write_text(f"boot-timeout = {boot_s}\n")
        texts.append(refused(it, f"hangs {boot_s}"))
        if "its import took longer than the boot timeout" not in texts[-1]:
            break
    assert "GET /health was not answered before the boot timeout; the log has its stack" in texts[-1]
    return len(texts)


def refused(it, token):
    """A reload that is not taken: why, in the words of the master; the same workers go on serving."""
    before = it.pids()
    with pytest.raises(BusError, match="is not taken, generation 1 goes on serving: ") as error:
        it.ask("reload", {"token": token})
    until(lambda: it.pids() == before, "only those from before are left")  # a worker of the new code may still die
    return str(error.value)


def test_nobody_serves_who_is_not_well(tmp_path):
    """A generation that is not is given up with its status, or its traceback; it costs no client anything."""
    with verbs(tmp_path, "--health-path=/health") as it, Load(it.cluster.address, clients=1) as load:
        checks = len(it.whole(2, 1)["workers"])
        write(it, 2, sick(RAISES))
        text = refused(it, "a")
        assert "GET /health (Host: localhost) was answered '500 Internal Server Error', not 200\n" in text
        assert text.endswith("RuntimeError: on fire")
        write(it, 3, sick(HANGS))
        generations = 2 + hangs(it)
        assert re.search(r"stacks of worker (.*\n)*  File .*served\.py\", line \d+ in health\n", it.cluster.log)
        (tmp_path / "zcluster.toml").unlink()
        (tmp_path / "sick").touch()
        write(it, 4, HEALTH)
        done = it.cluster.command_line("reload", "--wait", code=1)
        assert "GET /health (Host: localhost) was answered '503 no database', not 200" in done.stderr
        (tmp_path / "sick").unlink()
        assert it.ask("reload", {"token": "d"}) == {"generation": generations + 2}
        it.whole(2, generations + 2)
        load.stop()
        load.check(it.snapshot()["counters"]["requests"], base=checks)  # the app of the first generation counts them


def test_a_replacement_that_is_not_well(tmp_path):
    """It is tried again until it is, and its slot stays empty meanwhile: degraded, and the others serve."""
    with verbs(tmp_path, "--health-path=/health") as it:
        shot = it.whole(2, 1)
        assert [w["requests"] for w in shot["workers"]] == [0, 0]  # the checks are no client's requests
        assert shot["counters"] == {"requests": 2}  # but the app has seen them
        write(it, 2, HEALTH)
        it.ask("reload", {"token": "a"})
        victim, other = it.whole(2, 2)["workers"]
        (tmp_path / "sick").touch()
        kill(victim["pid"])
        it.cluster.wait_log(r"could not start: the health check failed: .* '503 no database', not 200")
        it.cluster.wait_log("degraded, and serving with the rest: slot 0 has no ready worker after failed starts")
        assert it.snapshot()["state"] == "degraded"
        assert it.about()["pid"] == other["pid"]
        (tmp_path / "sick").unlink()
        it.whole(2, 2)
        it.cluster.wait_log("not degraded any more")
        log = it.cluster.end()
    assert log.count("the health check failed") == 1  # the same again is not said again


def test_a_master_that_dies_during_the_check(tmp_path):
    """The worker that is being checked becomes one of the next master's, and is not checked twice."""
    waits = "    open('asked', 'a').write('x')\n    while not os.path.exists('go'): select.select([], [], [], 0.01)\n"
    with verbs(tmp_path, "--health-path=/health", workers=1) as it:
        write(it, 2, sick(waits))
        (tmp_path / "go").touch()
        it.ask("reload", {"token": "a"})
        shot = it.whole(1, 2)
        (tmp_path / "go").unlink()
        (tmp_path / "asked").unlink()
        kill(shot["workers"][0]["pid"])
        until((tmp_path / "asked").exists)
        kill(shot["master_pid"])
        it.cluster.wait_log("epoch 2: adopting 1 workers")
        assert it.snapshot()["workers"][0]["state"] == "online"
        (tmp_path / "go").touch()
        it.whole(1, 2)
        assert (tmp_path / "asked").read_text() == "x"
        it.cluster.end()

"""As a service: what systemd hears of a start, a reload and a stop, and what no worker hears of systemd."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import APPS, running, wait_for
from namespaces import CONTAINED, is_contained
from test_addresses import activated, listening


class Manager:
    """A service manager's socket; `heard` is what it was told and nobody has waited for."""

    def __init__(self, path):
        self.address = str(path)
        self.heard = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(self.address)
        self._sock.setblocking(False)

    def hear(self, *wanted):
        """Wait for lines that begin so, one after the other; what comes in between does not matter."""
        for word in wanted:
            while not (self.heard and self.heard.pop(0).startswith(word)):
                wait_for(self._more, what=f"{word} is told")

    def _more(self):
        with contextlib.suppress(BlockingIOError):
            self.heard += self._sock.recv(4096).decode().split("\n")
        return self.heard

    def close(self):
        self._sock.close()


@pytest.fixture
def manager(tmp_path):
    with contextlib.closing(Manager(tmp_path / "notify")) as made:
        yield made


def test_a_service(manager):
    """Socket activation and notification together: a start, a reload by signal, a dead master, an announced stop."""
    env = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "400000"}
    with (
        listening() as sock,
        activated(sock, options=("--drain-delay=0.1",), app="surrounded:app", env=env) as cluster,
    ):
        sock.close()
        running_1, running_2 = (f"STATUS=running: 2 workers, generation {generation}" for generation in (1, 2))
        manager.hear("STATUS=starting", "READY=1", f"MAINPID={cluster.process.pid}", running_1, "WATCHDOG=1")
        environ = json.loads(cluster.get())["environ"]
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"} & environ.keys()
        cluster.signal(signal.SIGHUP)
        manager.hear("RELOADING=1", "MONOTONIC_USEC=", "READY=1", running_2)
        os.kill(cluster.ps()["master_pid"], signal.SIGKILL)
        manager.hear("STATUS=no master; workers serve", running_2, "WATCHDOG=1")
        cluster.signal(signal.SIGTERM)
        manager.hear("STOPPING=1", "EXTEND_TIMEOUT_USEC=")
        cluster.ended()


def test_a_container():
    """PID 1 on a read-only root with docker's 64 MiB of memory and no home: strangers are reaped, TERM is heard."""
    base = None if is_contained else Path(tempfile.mkdtemp(prefix="zct-", dir="/dev/shm"))
    # Of one thread, so that a large body is stored before the app runs, and needs a place.
    options = ("--threads=1", "--run-dir=/dev/shm") if is_contained else ("--threads=1",)
    with running("surrounded:app", *options, base=base, workers=1, prefix=CONTAINED) as cluster:
        launcher = launcher_of(cluster)
        body = "x" * 3_000_000
        said = subprocess.run(
            ["curl", "-s", "--data-binary", "@-", f"{cluster.url}/orphan"], input=body, capture_output=True, text=True
        )
        about = json.loads(said.stdout)
        assert about["size"] == len(body)
        if is_contained:
            assert about["memory_bytes"] == 64 << 20
            assert about["used_bytes"] < 32 << 20
            assert about["temporary"].startswith("/dev/shm/")
            assert "HOME" not in about["environ"]
            assert Path(f"/proc/{launcher}/status").read_text().partition("NSpid:")[2].split()[1] == "1"
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        wait_for(lambda: len(children.read_text().split()) == 3, what="the stranger is reaped")
        os.kill(launcher, signal.SIGTERM)
        assert cluster.wait() == 0
        assert not cluster.processes()
    if base is not None:
        base.rmdir()


def launcher_of(cluster):
    """The launcher's pid out here: of the one child of unshare(1), if there is that."""
    pid = cluster.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text()) if is_contained else pid


def test_no_memory_to_live_in(tmp_path):
    """A container with nothing writable that is memory is told what to mount."""
    with running("hello:app", f"--run-dir={tmp_path}", wait=False) as cluster:
        assert "tmpfs" in cluster.ended(code=4)


def test_a_pid_file(tmp_path):
    """It names the launcher while it runs; a second cluster that wants it is refused by name."""
    path = tmp_path / "pid"
    with running("hello:app", f"--pid={path}", workers=1) as cluster:
        assert path.read_text() == f"{cluster.process.pid}\n"
        with running("hello:app", f"--pid={path}", wait=False) as second:
            log = second.ended(code=4)
        assert f"the pid file {path} names process {cluster.process.pid}, which runs" in log
        assert path.exists()
        cluster.end()
    assert not path.exists()


def test_options_that_cannot_be(tmp_path):
    """A folder that is not there, an extra that is not installed: exit 2, and the text says what to do."""
    for words, why in (
        (["--chdir=/nowhere"], "option 'chdir' is '/nowhere', but that cannot be entered: No such file"),
        (
            ["--reload", "--reload-extra-file=none.ini"],
            "option 'reload_extra_file' is 'none.ini', but there is no such",
        ),
    ):
        done = subprocess.run([sys.executable, "-m", "zcluster", "run", "hello:app", *words],
                              capture_output=True, text=True, cwd=APPS, timeout=60)  # fmt: skip
        assert (done.returncode, why in done.stderr) == (2, True), done.stderr
    without = "import sys; sys.modules['watchfiles'] = None; from zcluster.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", without, "run", "hello:app", "--reload"],
                          capture_output=True, text=True, cwd=APPS, timeout=60)  # fmt: skip
    assert (done.returncode, "pip install 'zcluster[reload]'" in done.stderr) == (2, True), done.stderr

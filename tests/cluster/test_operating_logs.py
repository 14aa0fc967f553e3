"""The log of a whole cluster: its file, its rotation, `zcluster logs`, and what workers print."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from anatomy import kill, see
from harness import ZCLUSTER, Running, wait_for

from zcluster.cli import main

PRINTED = re.compile(r"^\[.{23}\] OUTPUT worker\[(\d+)\] gen=(\d+) id=(\d+) pid=(\d+): (.*)$", re.MULTILINE)
NUMBERED = r"[ab]-\d*( \d*)?$"  # the end of a line may be missing, once, where a service was killed; it comes again
EVENT = re.compile(
    r"^\[.{23}\] [A-Z]+ (worker\[\d+\] gen=\d+ id=\d+|zygote gen=\d+|master|launcher|output) pid=\d+: "
)


class Printing(Running):
    """A cluster whose app prints, with its log and its access log in files."""

    def __init__(self, folder, *options, **more):
        self.files_in = folder
        super().__init__("printing:app", "--capture-output", f"--log-file={folder}/log", *options, **more)

    @property
    def text(self):
        path = self.files_in / "log"
        return path.read_text() if path.exists() else ""

    def printed(self):
        """What workers have printed: pid, text."""
        return [(int(found[4]), found[5]) for found in PRINTED.finditer(self.text)]

    def shows(self, pid, text):
        wait_for(lambda: (int(pid), text) in self.printed(), what=f"{text!r} of {pid} in the log:\n{self.text}")

    def service(self, without=0):
        """Wait for the one service that reads the output; returns its pid."""

        def look():
            named = [pid for pid in self.processes() if title(pid) == "zc-output"]
            return named if len(named) == 1 and named != [without] else None

        return wait_for(look, what="the output service")[0]


def title(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@contextmanager
def printing(folder, *options, workers=1):
    made = Printing(folder, *options, workers=workers)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    with printing(folder, f"--access-logfile={folder}/access", "--access-logformat=%(r)s", workers=2) as made:
        yield made


def test_what_workers_print(cluster):
    """print(), stderr, and what a child process writes: each line once, with its prefix, and nowhere else."""
    said = {}
    for path in ("print", "error", "child"):
        said[path] = cluster.get(f"/{path}?text=this+is+{path}")
    for path, pid in said.items():
        cluster.shows(pid, f"this is {path}")
        assert cluster.text.count(f"this is {path}\n") == 1
    workers = {w["pid"]: (w["slot"], w["generation"], w["id"]) for w in cluster.workers()}
    for found in PRINTED.finditer(cluster.text):
        assert workers[int(found[4])] == tuple(map(int, found.group(1, 2, 3)))
    assert "this is" not in cluster.log


def test_a_service_that_is_killed(cluster):
    """While workers print: no request fails, every line is in the log, another service goes on."""
    answers, enough = [], threading.Event()

    def client(name):
        number = 0
        while not enough.is_set():
            number += 1
            pid = cluster.get(f"/many?text={name}-{number}&count=20")
            answers.extend((int(pid), f"{name}-{number} {line}") for line in range(20))

    clients = [threading.Thread(target=client, args=(name,)) for name in ("a", "b")]
    for thread in clients:
        thread.start()
    service = 0
    try:
        for _ in range(2):
            service = cluster.service(without=service)
            size = len(cluster.text)
            wait_for(lambda least=size: len(cluster.text) > least, what="the service writes")
            kill(service)
        cluster.service(without=service)
    finally:
        enough.set()
        for thread in clients:
            thread.join()
    assert answers
    wait_for(lambda: set(answers) <= set(cluster.printed()), what="all that was printed")
    mixed = [text for _pid, text in cluster.printed() if text[:2] in ("a-", "b-") and not re.match(NUMBERED, text)]
    assert not mixed


def test_the_last_words_of_a_worker(cluster):
    """It aborts in the middle of a line: the line is in the log, its pipe is gone, the replacement has its own."""
    before = {worker["pid"] for worker in cluster.workers()}
    with cluster.connect() as sock:
        sock.sendall(b"GET /abort?text=last+words HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(100) == b""
    wait_for(lambda: any(text.startswith("last words") for _pid, text in cluster.printed()), what="its last words")
    wait_for(lambda: len(cluster.workers()) == 2 and {w["pid"] for w in cluster.workers()} != before)
    ids = {f"out-{worker['id']}" for worker in cluster.workers()}
    (current,) = cluster.base.glob("zcluster-*/*/current")
    instance = current.parent / current.read_text()
    wait_for(lambda: {path.name for path in instance.glob("out-*")} == ids, what="the pipes of the living")


def test_rotation(cluster):
    """Files are moved away, USR1 makes them anew; nobody writes into the old ones, though the master is stopped."""
    folder = cluster.files_in
    cluster.shows(cluster.get("/print?text=before"), "before")
    wait_for(lambda: "text=before" in (folder / "access").read_text(), what="the access log is written")
    master = see(cluster).master
    kill(master, number=signal.SIGSTOP)
    try:
        for name in ("log", "access"):
            (folder / name).rename(folder / f"{name}.1")
        cluster.signal(signal.SIGUSR1)
        wait_for(lambda: (folder / "access").exists() and "SIGUSR1: the logs are opened anew" in cluster.text)

        def is_followed():
            cluster.shows(cluster.get("/print?text=after"), "after")
            return len((folder / "access").read_text().splitlines()) > 1

        wait_for(is_followed, what="a line in the new access log")
    finally:
        kill(master, number=signal.SIGCONT)
    assert "after" not in (folder / "log.1").read_text()
    assert "opened anew" not in (folder / "log.1").read_text()


def test_logs_of_a_running_cluster(cluster, capsysbinary):
    """All of it, or the last lines, or those of one slot; nobody is asked, so a stopped master is no hindrance."""

    def logs(*options):
        assert main(["logs", f"--run-dir={cluster.base}", *options]) == 0
        return capsysbinary.readouterr().out.decode().splitlines()

    cluster.shows(cluster.get("/print?text=marked"), "marked")
    master = see(cluster).master
    kill(master, number=signal.SIGSTOP)
    try:  # workers may say something meanwhile: compared is what there was before, and what there is after
        before = logs()
        last = logs("-n", "2")
        slots = {slot: logs("--worker", str(slot)) for slot in (0, 1, 7)}
        after = logs()
    finally:
        kill(master, number=signal.SIGCONT)
    assert any(line.endswith(": marked") for line in before)
    assert after[: len(before)] == before
    assert len(last) == 2
    assert "\n".join(last) in "\n".join(after)
    assert slots[7] == []
    for slot in (0, 1):
        own = re.compile(rf"^\[.{{23}}\] \w+ worker\[{slot}\] ")
        assert {line for line in before if own.match(line)} <= set(slots[slot]) <= set(after)
        assert all(own.match(line) for line in slots[slot] if EVENT.match(line))


def test_json_and_follow(tmp_path):
    """Every line is an object; a follower in a terminal sees each as it comes, and ends with the cluster."""
    options = ("--log-format=json", "--access-logfile=-", "--access-logformat=%(r)s")
    with printing(tmp_path, *options) as cluster:
        keyboard, screen = pty.openpty()
        command = [*ZCLUSTER, "logs", "-f", f"--run-dir={cluster.base}", "--worker=0"]
        follower = subprocess.Popen(command, stdin=screen, stdout=screen, stderr=screen)
        os.close(screen)
        shown = b""

        def read():
            nonlocal shown
            if select.select([keyboard], [], [], 0.01)[0]:
                try:
                    shown += os.read(keyboard, 65536)
                except OSError:  # EIO: nobody has the terminal open any more
                    return True
            return b"hello" in shown

        pid = int(cluster.get("/print?text=hello"))
        wait_for(read, what="the line on the screen")
        assert follower.poll() is None
        cluster.stop()
        assert cluster.process.stdout.read() == b"GET /print?text=hello HTTP/1.1\n"
        cluster.ended()
        assert follower.wait(30) == 0
        os.close(keyboard)
        said = [json.loads(line) for line in cluster.text.splitlines()]
        assert {line["process"] for line in said} >= {"worker", "launcher", "master"}
        (hello,) = (line for line in said if line["message"] == "hello")
        assert (hello["level"], hello["slot"], hello["id"], hello["pid"]) == ("output", 0, 1, pid)
        assert b"launcher" not in shown


def test_the_launcher_is_killed(tmp_path):
    """Workers that print all the time meet no error, and nothing of the cluster is left."""
    with printing(tmp_path) as cluster:
        service = cluster.service()
        for _ in range(2):
            cluster.get(f"/flood?text={tmp_path}/error")
        wait_for(lambda: len(cluster.printed()) > 100, what="they print")
        kill(cluster.process.pid, service)
        wait_for(lambda: not cluster.processes(), what="all of it has ended")
        assert not (tmp_path / "error").exists()

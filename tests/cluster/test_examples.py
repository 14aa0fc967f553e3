"""The examples as programs of their own: scripts that use the library, run as their READMEs say."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import ZCLUSTER, answers_until, marked, send, wait_for

from zcluster.unix import rundir

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ANSWERS = {
    "hello": re.compile(r"I am a worker running in process (\d+)\n"),
    "counter": re.compile(r"Worker in process (\d+) says cluster has responded to (\d+) requests\.\n"),
}


class Script:
    """`python app.py` in an example's directory, on a port of its own."""

    def __init__(self, name, folder):
        self.answers = ANSWERS[name]
        self.mark = f"ZCT_MARK={folder}"
        self.log_path = folder / "log"
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=EXAMPLES / name,
                env={**os.environ, "ZCT_MARK": str(folder), "PORT": "0"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
        signal.signal(signal.SIGINT, before)
        first = re.fullmatch(r"(\d+) workers on (http://127\.0\.0\.1:\d+)\n", self.line())
        assert first, self.log
        self.workers, self.url = int(first[1]), first[2]
        (self.found,) = (f for f in rundir.clusters(None) if f.launcher_pid in set(marked(self.mark)))

    @property
    def log(self):
        return self.log_path.read_text()

    def line(self):
        """The next line of its output."""
        assert select.select([self.process.stdout], [], [], 20)[0], self.log
        return self.process.stdout.readline()

    def get(self):
        """What a worker answers, as a match."""
        with urllib.request.urlopen(self.url, timeout=10) as response:
            text = response.read().decode()
        found = self.answers.fullmatch(text)
        assert found, text
        return found

    def pid_in(self, body):
        """Who gave this answer."""
        return int(self.answers.fullmatch(body.decode())[1])

    @property
    def address(self):
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def ended(self):
        """See it end well and leave nothing; returns the rest of its output."""
        assert self.process.wait(20) == 0, self.log
        assert list(marked(self.mark)) == []
        assert not self.found.path.exists()
        assert "Traceback" not in self.log
        return self.process.stdout.read().splitlines()


@contextmanager
def script(name):
    """Run an example; whatever happens, nothing of it is left running."""
    with tempfile.TemporaryDirectory(prefix="zct-") as folder:
        example = None
        try:
            example = Script(name, Path(folder))
            yield example
        finally:
            for pid in marked(f"ZCT_MARK={folder}"):
                send(pid, signal.SIGKILL)
            if example is not None:
                example.process.wait(20)
                example.process.stdout.close()


def test_hello_as_a_script():
    """It prints the death of a worker that is killed; Ctrl-C ends it without a traceback."""
    with script("hello") as hello:
        pids = set()
        answers_until(hello.address, lambda body: pids.add(hello.pid_in(body)) or len(pids) == hello.workers)
        victim = pids.pop()
        os.kill(victim, signal.SIGKILL)
        assert hello.line() == f"Worker {victim} died. (killed by signal SIGKILL)\n"
        said = rf"Worker {victim} died\. signal SIGKILL; replacing it in slot \d now"
        wait_for(lambda: re.search(said, hello.log), what=said)
        answers_until(hello.address, lambda body: hello.pid_in(body) not in {victim, *pids})
        hello.process.send_signal(signal.SIGINT)
        assert len(hello.ended()) == hello.workers  # each has left, and that is told


def test_counter_as_a_script():
    """It counts exactly across the death of a worker, and says the sum when `zcluster stop` has ended it."""
    with script("counter") as counter:
        for total in range(1, 11):
            assert int(counter.get()[2]) == total
        victim = int(counter.get()[1])
        os.kill(victim, signal.SIGKILL)
        assert counter.line() == f"Worker {victim} died. (killed by signal SIGKILL)\n"
        for total in range(12, 21):
            assert int(counter.get()[2]) == total
        subprocess.run([*ZCLUSTER, "stop", "--name", counter.found.name], check=True, timeout=20)
        *deaths, last = counter.ended()
        assert last == "20 requests in all"
        assert len(deaths) == counter.workers
        assert all(re.fullmatch(r"Worker \d+ died\. \(voluntary\)", line) for line in deaths), deaths


@pytest.mark.parametrize("name", ANSWERS)
def test_an_example_is_short(name):
    """At most 40 lines, with a README beside it that says how to run it."""
    assert len((EXAMPLES / name / "app.py").read_text().splitlines()) <= 40
    readme = (EXAMPLES / name / "README.md").read_text()
    assert "zcluster run app:app" in readme
    assert "python app.py" in readme

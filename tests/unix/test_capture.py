"""What workers print, on its way through pipes that outlive whoever reads them: real processes, killed at will."""

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from ledger_support import kill, reap, start, until

from zcluster import current
from zcluster.config import make_config
from zcluster.unix import capture, logs
from zcluster.unix.capture import PIPE_BYTES, Pipes, pipe_path, who_path
from zcluster.unix.captured import Captured

LINE = re.compile(r"\[.{23}\] OUTPUT (\S+) gen=1 id=(\d+) pid=(\d+): (.*)")


class Site:
    """A run directory, the launcher's part (this process), and a log that a service writes."""

    def __init__(self):
        self.run_dir = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
        self.log_file = self.run_dir / "captured.log"
        self.pipes = Pipes()
        self.stop_r, self.stop_w = os.pipe()
        self.pids = []

    def serve(self, unborn_s=60.0):
        """Start a service; it leaves when told to stop and all pipes are at their end."""
        return self._start(self._service, unborn_s)

    def _service(self, unborn_s):
        os.close(self.stop_w)
        self.let_go()  # a real service is exec'd
        own_log = logs.begin("output", make_config(app="a:b", log_file=str(self.log_file)), None)
        Captured(self.run_dir, own_log, "text", unborn_s).run(self.stop_r)

    def work(self, worker, body):
        """Make the pipe and start a worker that runs body()."""
        self.pipes.make(self.run_dir, worker)
        return self._start(self._worker, worker, body)

    def _worker(self, worker, body):
        self.let_go()
        assert capture.begin(self.run_dir, worker, f"worker[{worker}] gen=1 id={worker}")
        body()

    def _start(self, body, *args):
        self.pids.append(start(body, *args))
        return self.pids[-1]

    def let_go(self):
        """In a child: what only the launcher holds."""
        for fd in self.pipes._held:
            os.close(fd)
        self.pipes._held.clear()

    def lines(self):
        """What has been written: worker, pid, text."""
        if not self.log_file.exists():
            return []
        found = [LINE.fullmatch(line) for line in self.log_file.read_text().splitlines()]
        return [(int(line[2]), int(line[3]), line[4]) for line in found if line]

    def size(self):
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    def texts(self):
        return [text for _worker, _pid, text in self.lines()]

    def stop(self):
        os.close(self.stop_w)
        self.stop_w = -1

    def end(self):
        for pid in self.pids:
            try:
                kill(pid)
            except (ProcessLookupError, ChildProcessError):
                pass  # the test has reaped it
        self.let_go()
        for fd in (self.stop_r, self.stop_w):
            if fd >= 0:
                os.close(fd)
        shutil.rmtree(self.run_dir)


@pytest.fixture
def site():
    made = Site()
    yield made
    made.end()


def numbered(count, width=10):
    """Print numbered lines with the buffered stream of Python."""

    def body():
        for number in range(count):
            os.write(1, b"%06d %s\n" % (number, b"x" * width))

    return body


def test_every_line_has_its_worker(site):
    """Three workers at once: each line once, in the worker's order, with its prefix; then nothing is left of them."""
    service = site.serve()
    pids = {site.work(worker, numbered(3000)): worker for worker in range(3)}
    assert [reap(pid) for pid in pids] == [0] * 3
    until(lambda: not list(site.run_dir.glob("*-*")), "the names of the pipes are gone")
    site.pipes.look()
    assert not site.pipes._held
    for pid, worker in pids.items():
        own = [(by, int(text[:6])) for who, by, text in site.lines() if who == worker]
        assert own == [(pid, number) for number in range(3000)]
    site.stop()
    assert reap(service) == 0


def test_killed_services_lose_nothing(site):
    """Services are killed while a worker prints: every line is there, whole; the worker notices nothing."""
    worker = site.work(1, numbered(20_000, width=100))
    for number in range(6):
        size, service = site.size(), site.serve()
        until(lambda seen=size: site.size() > seen, f"service {number} writes")
        kill(service)
    site.serve()
    assert reap(worker) == 0
    until(lambda: not pipe_path(site.run_dir, 1).exists(), "all has been read")
    texts = site.texts()
    # SIGKILL also ends a write to a file between two pages: at most a fragment for each, and its line comes again.
    assert len(site.log_file.read_text().splitlines()) - len(texts) <= 6
    assert {int(text[:6]) for text in texts if text[7:] == "x" * 100} == set(range(20_000))
    # A batch that was written and not taken out of the pipe is written again: that is the price.
    assert len(texts) <= 20_000 + 6 * 600


def test_half_a_line_waits_for_its_end(site):
    """It stays in the pipe, whichever service has seen it, and comes as one line."""
    go_r, go_w = os.pipe()

    def body():
        os.write(1, b"first\nbegin")
        os.read(go_r, 1)
        os.write(1, b" end\n")
        os.read(go_r, 1)

    worker = site.work(1, body)
    service = site.serve()
    until(lambda: site.texts() == ["first"], "the whole line")
    kill(service)
    site.serve()
    os.write(go_w, b".")
    until(lambda: site.texts()[1:] and site.texts()[-1] == "begin end", "the other line")
    assert set(site.texts()[:-1]) == {"first"}  # written again when its service was killed before it had taken it
    os.write(go_w, b".")
    assert reap(worker) == 0
    os.close(go_r)
    os.close(go_w)


@pytest.mark.parametrize("is_read", [True, False])
def test_last_words(site, is_read):
    """A worker is killed in the middle of a line, somebody reading or nobody: it is written, and the pipe is gone."""
    service = site.serve() if is_read else 0

    def body():
        os.write(2, b"one\n")
        until(lambda: site.texts() == ["one"] or not is_read, "it is read")
        os.write(2, b"last words")
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(site.work(1, body)) == -signal.SIGKILL
    service = service or site.serve()
    # Nothing tells a reader who comes so late that nobody will write the end of that line: it may go on.
    until(lambda: site.texts() == ["one", "last words" if is_read else "last words ..."], "what it said")
    site.stop()
    assert reap(service) == 0


def test_nobody_reads(site):
    """A MiB can be printed; then print() waits, neither raises nor loses, and goes on when somebody reads again."""
    done_r, done_w = os.pipe()
    count = 2 * PIPE_BYTES // 108

    def body():
        numbered(count, width=100)()
        os.write(done_w, b".")

    worker = site.work(1, body)
    os.set_blocking(done_r, False)
    state = Path(f"/proc/{worker}/wchan")
    until(lambda: "pipe_w" in state.read_text(), "it waits for a reader")
    with pytest.raises(BlockingIOError):
        os.read(done_r, 1)
    site.serve()
    assert reap(worker) == 0
    until(lambda: len(site.texts()) == count, "all of it")
    os.close(done_r)
    os.close(done_w)


def test_children_of_a_worker_are_read_to_their_end(site):
    """What a worker has started goes on printing when the worker has ended; its lines have the worker's name."""
    go_r, go_w = os.pipe()
    born_r, born_w = os.pipe()

    def body():
        start(child)
        os.read(born_r, 1)

    def child():
        os.write(born_w, b".")
        os.read(go_r, 1)
        os.write(1, b"a child\n")

    worker = site.work(4, body)
    service = site.serve()
    assert reap(worker) == 0
    assert not site.lines()
    os.write(go_w, b".")
    until(lambda: site.lines() == [(4, worker, "a child")], "the child's line")
    site.stop()
    assert reap(service) == 0
    for fd in (go_r, go_w, born_r, born_w):
        os.close(fd)


def test_threads_print_whole_lines(site):
    """print() gives text and newline one by one; what four threads print at once is whole lines all the same."""

    def say(name):
        for number in range(500):
            print(name, number, name)

    def body():
        sys.setswitchinterval(1e-6)
        sys.stdout = os.fdopen(1, "w", closefd=False)  # as in a process that is no test
        site.let_go()
        assert capture.begin(site.run_dir, 1, "worker[1] gen=1 id=1")
        threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print("without an end", end="", flush=True)

    site.pipes.make(site.run_dir, 1)
    worker = site._start(body)
    site.serve()
    assert reap(worker) == 0
    until(lambda: not pipe_path(site.run_dir, 1).exists(), "all has been read")
    texts = [text.removesuffix(" ...") for text in site.texts()]
    assert sorted(texts) == sorted(
        [f"{name} {number} {name}" for name in "abcd" for number in range(500)] + ["without an end"]
    )


def test_lines_that_are_too_long(site):
    """Without an end in sight it comes in pieces that are marked; odd bytes come as they are."""
    site.serve()
    reap(site.work(1, lambda: [os.write(1, b"y" * 3000) for _ in range(3)] and os.write(1, b"\xff\n\0\n\n")))
    until(lambda: not pipe_path(site.run_dir, 1).exists(), "all has been read")
    raw = site.log_file.read_bytes()
    assert max(map(len, raw.split(b"\n"))) < 4096
    assert raw.count(b"y") == 9000
    assert raw.count(b" ...\n") >= 2
    assert raw.split(b"\n")[-4].endswith(b"\xff")
    assert raw.endswith(b": \0\n" + raw[-len(raw.split(b"\n")[-2]) - 1 :])


def test_a_prompt_is_shown_after_a_while(site, monkeypatch):
    """Half a line whose end does not come is written, marked, while the worker lives."""
    monkeypatch.setattr("zcluster.unix.captured.PARTIAL_S", 0.1)
    site.serve()
    site.work(1, lambda: (os.write(1, b"name? "), signal.pause()))
    until(lambda: site.texts() == ["name?  ..."], "the prompt")


def test_a_worker_that_was_never_born(site):
    """Its pipe is not kept for ever."""
    site.pipes.make(site.run_dir, 9)
    site.pipes.make(site.run_dir, 9)  # a second master asked for it
    assert len(site.pipes._held) == 1
    site.serve(unborn_s=0.01)
    until(lambda: not pipe_path(site.run_dir, 9).exists(), "it is gone")


def test_a_worker_without_a_pipe(site, monkeypatch):
    """The launcher could make none: after a moment the worker goes on, and prints where it would have printed."""
    monkeypatch.setattr(capture, "PIPE_WAIT_S", 0.01)

    def body():
        assert not capture.begin(site.run_dir, 1, "worker[1]")
        assert current.streams == (-1, -1)

    assert reap(start(body)) == 0
    assert not who_path(site.run_dir, 1).exists()


def test_when_the_launcher_is_gone(site):
    """All reading ends but the worker's own are closed: its print() meets no error, and goes where it went before."""
    path = site.run_dir / "before"

    def body():
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1)
        assert capture.begin(site.run_dir, 1, "worker[1] gen=1 id=1")
        os.write(1, b"into the pipe\n")
        until(lambda: os.path.exists(site.run_dir / "gone"), "the launcher is gone")
        os.write(1, b"nobody reads this\n")
        capture.end()
        os.write(1, b"here again\n")

    site.pipes.make(site.run_dir, 1)
    worker = site._start(body)
    until(who_path(site.run_dir, 1).exists, "the worker has begun")
    site.let_go()
    (site.run_dir / "gone").touch()
    assert reap(worker) == 0
    assert path.read_text() == "here again\n"


def test_a_stream_that_is_no_file(site):
    """Something else may stand in the place of sys.stdout, or nothing: it is what lies below that is captured."""

    def body():
        sys.stdout = None
        assert capture.begin(site.run_dir, 1, "worker[1] gen=1 id=1")
        os.write(1, b"fine\n")

    site.pipes.make(site.run_dir, 1)
    assert reap(site._start(body)) == 0
    site.serve()
    until(lambda: site.texts() == ["fine"], "what was written")

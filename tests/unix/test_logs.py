"""The log on stderr and the lines on stdout, in processes whose streams are real files and pipes."""

import json
import logging
import os
import re
import socket
import subprocess
import sys

import pytest
from ledger_support import in_child, reap, start

from zcluster.config import make_config
from zcluster.unix import journal
from zcluster.unix.loglines import LINE_MAX_BYTES
from zcluster.unix.logs import begin, say

LINE = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] (\w+) (.+) pid=(\d+): (.*)$", re.DOTALL)


def log_as(who, level="info", run_dir=None, patience_s=5.0, **options):
    """Begin the log of a process, configured like this."""
    return begin(who, make_config(app="a:b", log_level=level, **options), run_dir, patience_s)


def logged(body, tmp_path, who="master", level="info"):
    """What `body(logger)` wrote to stderr in a child of the test."""
    path = tmp_path / "stderr"

    def run():
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        log_as(who, level)
        return body(logging.getLogger("zcluster.test")), os.getpid()

    _, pid = in_child(run)
    return path.read_text(), pid


def test_a_line_says_when_who_and_what(tmp_path):
    """Time, level, role, pid and message, one line per event."""
    text, pid = logged(lambda log: log.warning("worker %d died", 7), tmp_path)
    assert LINE.match(text).groups() == ("WARNING", "master", str(pid), "worker 7 died\n")
    assert text.count("\n") == 1


def test_levels_are_kept(tmp_path):
    """Below the level nothing is written."""
    text, _ = logged(lambda log: (log.info("quiet"), log.error("loud")), tmp_path, level="error")
    assert "quiet" not in text
    assert "loud" in text


def test_a_long_line_is_cut_to_one_write(tmp_path):
    """At most 4096 bytes, so that a pipe takes it whole; the cut is marked."""
    text, _ = logged(lambda log: log.error("x" * 10_000), tmp_path)
    assert len(text.encode()) == LINE_MAX_BYTES
    assert text.endswith("x ...\n")


def test_a_traceback_is_not_cut(tmp_path):
    """Several lines are several lines; what the operator needs is at the end."""

    def body(log):
        try:
            raise ValueError("y" * 10_000 + " the end")
        except ValueError:
            log.exception("it failed")

    text, _ = logged(body, tmp_path)
    assert text.rstrip().endswith("the end")


def test_text_that_is_not_utf8_is_logged(tmp_path):
    """File names come with lone surrogates: shown escaped, never an error."""
    text, _ = logged(lambda log: log.error("cannot read %s", "caf\udce9"), tmp_path)
    assert "caf\\udce9" in text


def test_lines_of_several_processes_do_not_mix(tmp_path):
    """Four processes write to one pipe at once: every line is whole."""
    reader, writer = os.pipe()

    def body(number):
        os.dup2(writer, 2)
        log_as(f"worker {number}")
        for count in range(200):
            logging.getLogger("zcluster.test").info("%s %d", str(number) * 500, count)

    pids = [start(body, number) for number in range(4)]
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    assert [reap(pid) for pid in pids] == [0] * 4
    assert len(lines) == 800
    for line in lines:
        who, message = LINE.match(line)[2], LINE.match(line)[4]
        number = who.removeprefix("worker ")
        assert re.fullmatch(rf"{number}{{500}} \d+", message)


def test_only_our_own_logger_is_configured(tmp_path):
    """The app's logging is its own: nothing at the root, nothing of ours propagates to it, and twice is once."""

    def body(log):
        log_as("worker 2", "debug")
        log.debug("ours")
        logging.getLogger("shop").error("the app's")
        return len(logging.getLogger("zcluster").handlers), logging.getLogger("zcluster").propagate

    text, _ = logged(body, tmp_path)
    assert [LINE.match(line)[2] for line in text.splitlines() if "ours" in line] == ["worker 2"]


def test_a_reader_that_has_gone_is_no_error():
    """A log that nobody reads ends nobody: a closed pipe and a closed descriptor alike."""

    def body(close):
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.close(reader)
        if close:
            os.close(2)
        log_as("launcher")
        logging.getLogger("zcluster.test").error("into the void")
        return "alive"

    assert in_child(body, False) == in_child(body, True) == "alive"


SAY = "from zcluster.unix.logs import say; say('zcluster: ready'); say('again')"


def test_say_is_flushed_at_once():
    """The line is there although the process has not ended."""
    with subprocess.Popen(
        [sys.executable, "-c", SAY + "; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "zcluster: ready\n"
        process.communicate("\n", timeout=20)
    assert process.returncode == 0


def test_say_to_nobody_changes_no_exit_code():
    """The reader of stdout has gone: no error, and no exit code 120 from the interpreter's last flush."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", SAY], stdout=writer, stderr=subprocess.PIPE, timeout=20)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("how", ["1>&-", "1>/dev/full"])
def test_say_without_a_usable_stdout(how):
    """Closed from the start, or on a full disk: not our failure."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {how}', sys.executable, SAY], stderr=subprocess.PIPE, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_say_to_a_closed_file_object(monkeypatch, tmp_path):
    """Somebody in this process closed sys.stdout."""
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        say("heard")
    say("not heard")
    assert (tmp_path / "out").read_text() == "heard\n"


def test_a_reader_that_stopped_does_not_stop_us(tmp_path):
    """A full pipe costs lines, not the process; when it is read again, the number of lost lines is told."""
    reader, writer = os.pipe()

    def body():
        os.dup2(writer, 2)
        log_as("master", patience_s=0.05)
        log = logging.getLogger("zcluster.test")
        for count in range(3000):  # far more than a pipe holds
            log.info("%s %d", "x" * 100, count)
        got = b""
        while len(got) < 8192:  # the reader is back
            got += os.read(reader, 8192)
        log.info("after the gap")
        os.set_blocking(reader, False)
        try:
            while piece := os.read(reader, 65536):
                got += piece
        except BlockingIOError:
            pass
        return got.decode()

    text = in_child(body)
    os.close(reader)
    os.close(writer)
    assert re.search(r"pid=\d+: \d+ log lines were lost\n", text)
    assert text.endswith("after the gap\n")


def test_the_last_room_in_a_pipe_stops_nobody():
    """It looked as if a line could be written, but another process took the room: the line is lost, nobody waits."""
    reader, writer = os.pipe()

    def body():
        os.dup2(writer, 2)
        log = log_as("master")
        log.is_writable = lambda timeout_s=0.0: True  # what it saw a moment before the others wrote
        full = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        os.write(full, bytes(1 << 20))  # as much as there is room for
        logging.getLogger("zcluster.test").error("x")
        return log.lost, os.get_blocking(2)

    assert in_child(body) == (1, True)
    os.close(reader)
    os.close(writer)


def test_a_log_file_that_was_moved_away(tmp_path):
    """The next line is in a new file of the old name; nobody holds the old one, so nobody had to be told."""
    path = tmp_path / "a.log"

    def run():
        log_as("master", log_file=str(path))
        log = logging.getLogger("zcluster.test")
        log.info("one")
        path.rename(tmp_path / "a.log.1")
        log.info("two")
        opened = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
        return [path for path in opened if path.startswith(str(tmp_path))]

    assert in_child(run) == []
    assert LINE.match((tmp_path / "a.log.1").read_text())[4] == "one\n"
    assert LINE.match(path.read_text())[4] == "two\n"


def test_a_log_file_that_cannot_be_written(tmp_path):
    """Its lines go to stderr, with the reason once; when it can be written again they go there."""
    folder = tmp_path / "folder"

    def run():
        os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        log_as("master", log_file=str(folder / "a.log"))
        log = logging.getLogger("zcluster.test")
        log.info("one")
        log.info("two")
        folder.mkdir()
        log.info("three")

    in_child(run)
    reason, one, two = (tmp_path / "stderr").read_text().splitlines()
    assert reason == (
        f"zcluster: error: cannot write the log file {folder}/a.log: No such file or directory; it goes on here"
    )
    assert (LINE.match(one)[4], LINE.match(two)[4]) == ("one", "two")
    assert LINE.match((folder / "a.log").read_text())[4] == "three\n"


def test_what_is_said_goes_into_the_journal_too(tmp_path):
    """Also what was said before there was one, and what nobody could be told otherwise; once in each place."""
    journal.make(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)

    def run():
        os.dup2(writer, 2)
        own_log = log_as("launcher", log_format="json")
        log = logging.getLogger("zcluster.test")
        log.info("early")
        own_log.keep(journal.Journal(tmp_path))
        log.info("late")
        own_log.close()

    in_child(run)
    os.close(writer)
    said = [json.loads(line) for line in journal.Reader(tmp_path).lines()]
    assert [(line["message"], line["process"]) for line in said] == [("early", "launcher"), ("late", "launcher")]


def test_a_long_traceback_is_cut_between_lines():
    """Each write is whole lines, at most 4096 bytes of them: what others write comes between lines."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # tells one write from the next

    def run():
        os.dup2(writer.fileno(), 2)
        log_as("master")
        try:
            raise ValueError("\n".join("x" * 100 for _ in range(100)))
        except ValueError:
            logging.getLogger("zcluster.test").exception("it failed")

    with reader:
        with writer:
            in_child(run)
        writes = list(iter(lambda: reader.recv(65536), b""))
    assert len(writes) >= 3
    assert all(piece.endswith(b"\n") and len(piece) <= LINE_MAX_BYTES for piece in writes)


def test_a_torn_end_is_mended(tmp_path):
    """A writer was killed inside a line: what comes next begins on a line of its own; a whole end stays as it is."""
    journal.make(tmp_path)
    (tmp_path / "log").write_bytes(b"half a li")
    (tmp_path / "a.log").write_bytes(b"whole\n")

    def run():
        log_as("output", run_dir=tmp_path, log_file=str(tmp_path / "a.log")).mend()
        logging.getLogger("zcluster.test").info("next")

    in_child(run)
    for name, begun in (("log", "half a li"), ("a.log", "whole")):
        first, second = (tmp_path / name).read_text().splitlines()
        assert first == begun
        assert LINE.match(second)

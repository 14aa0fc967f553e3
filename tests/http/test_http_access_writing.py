"""The access log's writer: nobody waits for it, and it loses, doubles and cuts nothing that can be helped."""

import logging
import os
import re
import stat
import subprocess
import textwrap
import threading
import time

import pytest
from access_rig import OK, run_script
from http_rig import until

from zcluster.http.access import WAITING_MAX_BYTES
from zcluster.http.sink import Sink


# ---- writing -------------------------------------------------------------------------------------------------------
def test_a_line_is_there_soon(make_log, tmp_path):
    """The first line wakes the writer; nothing has to follow it."""
    log = make_log("%(m)s")
    log.note({"REQUEST_METHOD": "PUT"}, OK, "", 0, 0.0)
    until(lambda: (tmp_path / "access.log").read_text() == "PUT\n", "the line in the file")


def test_threads_share_it(make_log, tmp_path):
    """Eight threads, each line once and whole, in the order of each thread."""
    log = make_log("%(m)s %(H)s")

    def work(name):
        for number in range(2000):
            log.note({"REQUEST_METHOD": name, "SERVER_PROTOCOL": str(number)}, OK, "", 0, 0.0)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    seen = {}
    for name, number in map(str.split, (tmp_path / "access.log").read_text().splitlines()):
        assert seen.get(name, -1) + 1 == int(number)
        seen[name] = int(number)
    assert seen == {f"t{number}": 1999 for number in range(8)}


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_processes_share_it(tmp_path, kind):
    """Four processes write one file, or one pipe, at once: no line is lost, doubled or cut."""
    script = """
        log = AccessLog(sys.argv[1], "%(r)s %({x}i)s")
        log.start()
        for number in range(1500):
            log.note({**ENVIRON, "RAW_URI": f"/{sys.argv[2]}/{number}", "HTTP_X": "x" * (number % 200)},
                     "HTTP/1.1 200 OK", "", 1, 0.0)
        log.close(20)
        assert not log.lost
    """
    path = tmp_path / "shared.log"
    chunks = []
    reader = None
    if kind == "pipe":
        os.mkfifo(path)
        fd = os.open(path, os.O_RDWR)

        def read():
            while not (chunks and chunks[-1].endswith(b"END\n")):
                chunks.append(os.read(fd, 1000))

        reader = threading.Thread(target=read)
        reader.start()
    workers = [threading.Thread(target=lambda n=n: done.append(run_script(script, path, n))) for n in range(4)]
    done = []
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if reader is not None:
        os.write(fd, b"END\n")
        reader.join()
        os.close(fd)
    assert [process.returncode for process in done] == [0] * 4, done
    data = path.read_bytes() if reader is None else b"".join(chunks).removesuffix(b"END\n")
    lines = data.decode().splitlines()
    assert len(lines) == 6000
    expected = {
        f"GET /{name}/{number} HTTP/1.1 {'x' * (number % 200)}" for name in range(4) for number in range(1500)
    }
    assert set(lines) == expected


def test_an_idle_log_sleeps(make_log, tmp_path):
    """Its thread is not scheduled once while nothing is logged."""
    log = make_log("%(m)s")
    log.note({}, OK, "", 0, 0.0)
    until(lambda: (tmp_path / "access.log").read_text(), "the line in the file")
    tid = next(thread.native_id for thread in threading.enumerate() if thread.name == "zcluster-access-log")

    def switches():
        with open(f"/proc/self/task/{tid}/status") as status:
            return re.findall(r"ctxt_switches:\s+(\d+)", status.read())

    def settled():
        nonlocal last
        last, before = switches(), last
        return last == before and until(lambda: time.monotonic() > end, "some time")

    last = None
    end = time.monotonic() + 0.4
    until(settled, "the writer to sleep")
    assert switches() == last


def test_nobody_waits_for_a_reader_that_has_stopped(make_log, tmp_path, log_records):
    """Lines are dropped, counted and told once a second; what was read is whole; closing takes its time only."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = make_log("%(a)s", path)
    environ = {"HTTP_USER_AGENT": "x" * 1000}
    count = 2 * WAITING_MAX_BYTES // 1000
    slowest = 0.0
    for _ in range(count):
        before = time.monotonic()
        log.note(environ, OK, "", 0, 0.0)
        slowest = max(slowest, time.monotonic() - before)
    assert slowest < 10.0  # it shares two cores with other tests; waiting for the reader would take for ever
    assert count // 3 < log.lost < count
    until(lambda: "lines of the access log" in str(log_records), "the warning")
    before = time.monotonic()
    log.close(0.3)
    assert time.monotonic() - before < 20.0
    data = os.read(reader, 1 << 20)
    os.close(reader)
    assert set(data.split(b"\n")) == {b"x" * 1000, b""}
    assert data.endswith(b"\n")
    assert log.lost + data.count(b"\n") == count
    told = [int(re.search(r"(\d+) lines", text)[1]) for text in log_records.lines]
    assert sum(told) == log.lost
    assert len(told) <= 5


def test_a_reader_that_comes_back_gets_whole_lines(make_log, tmp_path):
    """What waited is written as soon as there is room."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = make_log("%(m)s %(a)s", path)
    for number in range(1000):
        log.note({"REQUEST_METHOD": str(number), "HTTP_USER_AGENT": "x" * 300}, OK, "", 0, 0.0)
    chunks = []

    def has_come():
        try:
            chunks.append(os.read(reader, 3000))
        except BlockingIOError:
            return False
        return b"".join(chunks).count(b"\n") == 1000

    until(has_come, "all lines")
    os.close(reader)
    assert b"".join(chunks).decode().splitlines() == [f"{number} {'x' * 300}" for number in range(1000)]
    assert not log.lost


def test_a_full_disk_is_told_once(make_log, tmp_path, log_records):
    """Lines are counted as lost; when the file can be written again the log goes on."""
    (tmp_path / "access.log").symlink_to("/dev/full")
    log = make_log("%(m)s")
    for number in range(3):
        log.note({}, OK, "", 0, 0.0)
        until(lambda number=number: log.lost == number + 1, "a lost line")
    assert str(log_records).count("No space left on device") == 1
    (tmp_path / "access.log").unlink()
    log.reopen()
    log.note({"REQUEST_METHOD": "PUT"}, OK, "", 0, 0.0)
    until(lambda: (tmp_path / "access.log").exists() and (tmp_path / "access.log").read_text(), "the line")
    log.close()
    assert (tmp_path / "access.log").read_text() == "PUT\n"
    assert log.lost == 3
    assert "is written again" in str(log_records)
    assert "3 lines" in str(log_records)


def test_a_line_torn_by_a_full_disk_does_not_spoil_the_next(tmp_path):
    """What a file took of a line stands alone; the next one begins on a line of its own."""
    script = """
        import logging, resource, select
        logging.basicConfig(level="WARNING", format="%(message)s")
        log = AccessLog(sys.argv[1], "%(r)s")
        log.start()
        def wait(condition):
            for _ in range(3000):
                if condition():
                    return
                select.select([], [], [], 0.01)
            raise AssertionError("too late")
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, resource.RLIM_INFINITY))
        for number in range(4):  # 16 bytes each
            note(log, f"/{number:04}")
        wait(lambda: log.lost)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        note(log, "/later")
        log.close()
        print(log.lost)
    """
    done = run_script(script, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["GET /0000 HTTP/1.1", "GET /0001 HTTP/1.1", "GE", "GET /later HTTP/1.1"]
    assert done.stdout == "4\n"
    assert done.stderr.count("File too large") == 1


def test_no_folder_is_told_and_tried_again(make_log, tmp_path, log_records):
    """A log that cannot be opened costs lines, not the service; it is there when the folder is."""
    path = tmp_path / "missing" / "access.log"
    log = make_log("%(m)s", path)
    log.note({}, OK, "", 0, 0.0)
    until(lambda: log.lost, "the lost line")
    assert str(log_records).count("No such file or directory") == 1
    path.parent.mkdir()
    log.note({"REQUEST_METHOD": "PUT"}, OK, "", 0, 0.0)
    until(lambda: path.exists() and path.read_text() == "PUT\n", "the line")


def test_reopening_follows_the_name(make_log, tmp_path):
    """After rotation lines go to the new file, which is made at once; the old one keeps its own."""
    path = tmp_path / "access.log"
    log = make_log("%(m)s")
    log.note({"REQUEST_METHOD": "OLD"}, OK, "", 0, 0.0)
    until(lambda: path.read_text() == "OLD\n", "the old line")
    path.rename(tmp_path / "access.log.1")
    log.reopen()
    until(path.exists, "the new file")  # without any line
    log.note({"REQUEST_METHOD": "NEW"}, OK, "", 0, 0.0)
    log.close()
    assert path.read_text() == "NEW\n"
    assert (tmp_path / "access.log.1").read_text() == "OLD\n"


def test_reopening_that_fails_keeps_the_old_file(make_log, tmp_path, log_records):
    """Better the wrong file than none."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = make_log("%(m)s", folder / "access.log")
    folder.rename(tmp_path / "moved")
    log.reopen()
    until(lambda: "No such file" in str(log_records), "the error")
    log.note({"REQUEST_METHOD": "PUT"}, OK, "", 0, 0.0)
    log.close()
    assert (tmp_path / "moved" / "access.log").read_text() == "PUT\n"


def test_a_relative_path_is_where_it_was_given(make_log, tmp_path, monkeypatch):
    """An application that changes its directory does not move the log."""
    monkeypatch.chdir(tmp_path)
    log = make_log("%(m)s", "here.log", start=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.start()
    assert (tmp_path / "here.log").exists()


def test_the_umask_decides_who_reads_it(make_log, tmp_path):
    """No bit more than the umask leaves, none executable."""
    before = os.umask(0o027)
    try:
        make_log("%(m)s")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "access.log").stat().st_mode) == 0o640


# ---- stdout --------------------------------------------------------------------------------------------------------
PRINTING = """
    log = AccessLog(sys.argv[1], "%(r)s")
    log.start()
    os.write(1, b"begin\\n")
    os.set_blocking(1, True)
    note(log, "/1")
    log.close()
    assert os.get_blocking(1)
    os.write(1, b"end\\n")
"""


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_stdout_may_be_a_pipe(target):
    """The line comes out there, and the pipe blocks for everybody else as before."""
    done = run_script(PRINTING, target)
    assert (done.returncode, done.stdout) == (0, "begin\nGET /1 HTTP/1.1\nend\n"), done.stderr


@pytest.mark.parametrize("target", ["-", "/dev/stdout"])
def test_stdout_may_be_a_file(tmp_path, target):
    """Not opened for appending: the log shares the offset, so that nothing is overwritten."""
    with (tmp_path / "out").open("wb") as out:
        done = run_script(PRINTING, target, capture_output=False, stdout=out, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "begin\nGET /1 HTTP/1.1\nend\n"


def test_stdout_may_be_redirected_by_the_application():
    """The log stays where it was opened."""
    script = """
        log = AccessLog("-", "%(r)s")
        log.start()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        note(log, "/1")
        log.close()
    """
    assert run_script(script).stdout == "GET /1 HTTP/1.1\n"


def test_a_stdout_that_nobody_reads_does_not_hold_up_the_end():
    """A full pipe costs the lines; the process goes when its time is up."""
    script = """
        log = AccessLog("-", "%(r)s")
        log.start()
        for number in range(20000):
            note(log, f"/{number}")
        log.close(0.5)
        log._thread.join()  # it gives up by itself, but on a busy machine a moment later than anybody waits for it
        assert log.lost
        print("closed", file=sys.stderr)
    """
    reader, writer = os.pipe()
    try:
        done = run_script(script, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "closed" in done.stderr


# ---- beginning and end ---------------------------------------------------------------------------------------------
def test_closing_writes_everything_and_ends_the_writer(make_log, tmp_path):
    """It may be called again, and before a start; a line that comes too late is counted."""
    log = make_log("%(m)s")
    for _ in range(1000):
        log.note({}, OK, "", 0, 0.0)
    log.close()
    log.close()
    assert (tmp_path / "access.log").read_text().count("\n") == 1000
    log.note({}, OK, "", 0, 0.0)
    assert log.lost == 1
    make_log("%(m)s", start=False).close()


def test_a_child_of_the_application_writes_nothing(tmp_path):
    """Forked while lines wait and threads log: no line is doubled, nothing deadlocks, our descriptor is closed."""
    script = """
        log = AccessLog(sys.argv[1], "%(r)s")
        log.start()
        os.register_at_fork(after_in_child=log.close_in_child)
        stop = threading.Event()
        count = failed = 0
        def work():
            global count
            while not stop.is_set():
                note(log, "/thread")
                count += 1
                stop.wait(0.0001)
        thread = threading.Thread(target=work)
        thread.start()
        for number in range(50):
            note(log, "/parent")
            pid = os.fork()
            if not pid:
                note(log, "/child")
                names = [f"/proc/self/fd/{fd}" for fd in range(3, 20)]
                log.close()
                leave = os._exit if number % 5 else sys.exit  # which takes ten times as long as all the rest
                leave(any(os.path.exists(name) and os.path.samefile(name, sys.argv[1]) for name in names))
            failed += os.waitpid(pid, 0)[1] != 0
        stop.set()
        thread.join()
        log.close()
        print(count, log.lost, failed)
    """
    path = tmp_path / "access.log"
    done = run_script("import warnings; warnings.simplefilter('ignore')\n" + textwrap.dedent(script), path)
    assert done.returncode == 0, done.stderr
    count, lost, failed = map(int, done.stdout.split())
    lines = path.read_text().splitlines()
    assert (lost, failed) == (0, 0), done.stderr
    assert lines.count("GET /parent HTTP/1.1") == 50
    assert lines.count("GET /thread HTTP/1.1") == count
    assert len(lines) == 50 + count


def test_it_is_not_inherited_by_programs(make_log, tmp_path):
    """A program that the application starts does not hold the log open."""
    make_log("%(m)s")
    names = subprocess.run(
        ["sh", "-c", "ls -l /proc/self/fd"], capture_output=True, text=True, close_fds=False, check=True
    ).stdout
    assert "access.log" not in names


def test_a_pipe_of_another_user():
    """Stdout is a pipe of root's, as in many containers, and we have become somebody else: lines go there."""
    if os.getuid() != 0:
        return
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, 1)
        os.setgid(65534)
        os.setuid(65534)
        log = Sink("-", logging.getLogger("access-test"))
        os._exit(log.write(b"a line\n", lambda: True))
    os.close(writing)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "a line\n"

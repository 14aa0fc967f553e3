"""What goes wrong around a cluster rather than in it: its starter, its limits, its directories, its log's reader."""

import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from anatomy import gone, instance, kill, see, service
from harness import APPS, ZCLUSTER, running, wait_for


@contextmanager
def tmpfs_folder():
    folder = Path(tempfile.mkdtemp(prefix="zct-", dir="/dev/shm"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_clients_cannot_take_the_descriptors_a_worker_lives_on():
    """More connections than descriptors: the excess waits in the kernel, heartbeats and a rejoin go on."""
    limit = 256

    def limited():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    with (
        running("hello:app", "--keep-alive=60", workers=1, popen={"preexec_fn": limited}) as cluster,
        ExitStack() as held,
    ):
        (worker,) = see(cluster).worker_pids
        clients = [held.enter_context(cluster.connect()) for _ in range(limit + 44)]
        cluster.wait_log("connections: .* are open")
        kill(see(cluster).master)
        wait_for(lambda: cluster.log.count("adopting") == 1, what="the next master")
        wait_for(lambda: cluster.ps()["workers"][0]["threads"] > 0, what="a heartbeat to the new master")
        clients[0].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"200 OK" in clients[0].recv(4096)
        assert see(cluster).worker_pids == [worker], cluster.log


def test_an_app_that_ignores_its_children_can_be_forked():
    """SIGCHLD ignored at import: the zygote lives on, fork after fork, and the app finds what it has set."""
    with running("odd:app", workers=1) as cluster:
        zygote = see(cluster).zygote
        for _ in range(3):
            (worker,) = see(cluster).worker_pids
            kill(worker)
            gone(worker)
            assert cluster.get() == "ignored"
        assert see(cluster).zygote == zygote, cluster.log


def test_a_relative_run_directory_is_one_directory(monkeypatch):
    """The app changes its directory while it is imported; the workers find their cluster all the same."""
    with tmpfs_folder() as folder:
        monkeypatch.chdir(folder)
        Path("base").mkdir()
        path = os.pathsep.join(filter(None, (str(APPS), os.environ.get("PYTHONPATH"))))
        with running("odd:app", base=Path("base"), cwd=folder, env={"PYTHONPATH": path}) as cluster:
            assert cluster.get() == "ignored"
            assert len(cluster.workers()) == 2


@pytest.mark.parametrize(("arguments", "code"), [(["nosuch:app"], 3), (["hello:app", "--workers=x"], 2)])
def test_the_exit_code_does_not_depend_on_who_reads_the_error(arguments, code):
    """Nobody reads stderr any more: the code says whose fault it was."""
    with tmpfs_folder() as folder:
        reader, writer = os.pipe()
        os.close(reader)
        command = [*ZCLUSTER, "run", *arguments, "--bind=127.0.0.1:0", f"--run-dir={folder}"]
        try:
            ended = subprocess.run(command, stderr=writer, stdin=subprocess.DEVNULL, cwd=APPS, timeout=30)
        finally:
            os.close(writer)
        assert ended.returncode == code


def test_nohup_is_respected():
    """Started with SIGHUP ignored, a cluster survives the end of its terminal (it reloads), and ends at TERM."""
    with tmpfs_folder() as folder:
        options = ["--bind=127.0.0.1:0", "--workers=1", f"--run-dir={folder}"]
        ignoring = "import os, signal as s, sys; s.signal(s.SIGHUP, s.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", ignoring, *ZCLUSTER, "run", "hello:app", *options]
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(APPS)
            os.execv(command[0], command)
        try:
            with os.fdopen(terminal, "rb", buffering=0) as screen:
                read_until(screen, b"ready on")
                os.kill(pid, signal.SIGHUP)
                read_until(screen, b"reloaded: generation 2 serves")
                os.kill(pid, signal.SIGTERM)
                read_until(screen, b"stopping: SIGTERM")
        finally:
            os.kill(pid, signal.SIGTERM)  # twice is quick; it must not outlive a test that has failed
            _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


CLOSED = """
import os, sys
from zcluster import Cluster
told = os.fdopen(os.dup(1), "w")
for fd in map(int, sys.argv[2]):
    os.close(fd)
with Cluster("hello:app", bind="127.0.0.1:0", workers=1, run_dir=sys.argv[1]) as cluster:
    (worker,) = cluster.workers.values()
    folder = f"/proc/{worker.pid}/fd/"
    print(*(os.readlink(folder + number) for number in "012"), file=told)
"""


@pytest.mark.parametrize("closed", ["0", "1", "012"])
def test_a_program_without_standard_streams_can_hold_a_cluster(closed):
    """Files of ours that get the numbers 0, 1, 2 there are not taken for streams, here and in the cluster."""
    with tmpfs_folder() as folder:
        path = os.pathsep.join(filter(None, (str(APPS), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-c", CLOSED, str(folder), closed]
        ended = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=40
        )
        assert ended.returncode == 0, ended.stderr
        streams = ended.stdout.split()
        assert [streams[int(number)] for number in closed] == ["/dev/null"] * len(closed), streams


TO_STOP = """
import signal, subprocess, sys, termios
attributes = termios.tcgetattr(0)
attributes[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, attributes)
job = subprocess.Popen(sys.argv[1:], process_group=0)
signal.signal(signal.SIGUSR1, lambda *_: job.terminate())
print("job started", flush=True)
sys.exit(job.wait())
"""


def test_a_background_job_may_write_to_its_terminal():
    """Under `stty tostop` the launcher neither stops nor spins: it says ready, and ends when told."""
    with tmpfs_folder() as folder:
        options = ["--bind=127.0.0.1:0", "--workers=1", f"--run-dir={folder}"]
        shell, terminal = pty.fork()
        if shell == 0:
            os.chdir(APPS)
            os.execv(sys.executable, [sys.executable, "-c", TO_STOP, *ZCLUSTER, "run", "hello:app", *options])
        with os.fdopen(terminal, "rb", buffering=0) as screen:
            read_until(screen, b"ready on")
            os.kill(shell, signal.SIGUSR1)
            read_until(screen, b"stopping: SIGTERM")
            _, status = os.waitpid(shell, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def read_until(screen, wanted):
    """Read a terminal until it shows this."""
    said = b""
    while wanted not in said:
        ready, _, _ = select.select([screen], [], [], 20.0)
        assert ready, f"{wanted!r} is not shown:\n{said.decode()}"
        said += screen.read(4096)


def test_a_stopped_launcher_does_not_hold_up_a_replacement():
    """Nobody reports the death; the master sees that the process is gone, and the slot is filled."""
    with running("hello:app", "--hang-timeout=30") as cluster:
        before = see(cluster).worker_pids
        kill(cluster.process.pid, number=signal.SIGSTOP)
        try:
            kill(before[0])
            wait_for(lambda: [w for w in cluster.workers() if w["pid"] not in before], 20.0, "the replacement")
        finally:
            cluster.signal(signal.SIGCONT)
        gone(before[0])
        assert len(cluster.workers()) == 2
        assert "is hung" not in cluster.log


def test_a_state_directory_that_is_gone_makes_no_storm(tmp_path):
    """The checkpoint service cannot start: it is tried ever more slowly, until the directory is back."""
    state, away = tmp_path / "state", tmp_path / "away"
    with running("faults:app", f"--state={state}", workers=1) as cluster:
        first = service(cluster)
        state.rename(away)
        kill(first)
        pauses = r"service \d+ died; starting another in ([0-9.]+) s"

        def grown():  # 0.1 s doubled each time, less up to half by chance; a machine may be late and begin again
            found = [float(pause) for pause in re.findall(pauses, cluster.log)]
            return found if max(found, default=0.0) >= 0.3 else None

        assert wait_for(grown, 60.0, "a longer pause")[0] == 0.0
        away.rename(state)
        assert cluster.get("/durable") == "1"


def test_a_run_directory_that_was_removed_is_no_failure():
    """An operator has tidied up /dev/shm: the stop is as clean as any."""
    with running("hello:app") as cluster:
        shutil.rmtree(instance(cluster).parent)
        cluster.signal(signal.SIGTERM)
        assert cluster.wait() == 0, cluster.log
        assert "Traceback" not in cluster.log


def open_files(pid):
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def test_a_zygote_that_started_again_keeps_nothing_open(tmp_path):
    """What the image before it has left it is read and closed: all that the app executes would inherit it."""
    with running("hazards:app", env={"HAZARD": "thread", "HAZARD_DIR": str(tmp_path)}) as cluster:
        zygote = see(cluster).zygote
        assert not [target for target in open_files(zygote) if "memfd" in target]


def test_an_exit_code_of_the_app_takes_no_lane():
    """75 means a taken lane only of a worker that never became ready."""
    with running("odd:app", workers=1) as cluster:
        for _ in range(2):
            (worker,) = see(cluster).worker_pids
            with cluster.connect() as client:
                client.sendall(b"GET /exit?75 HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.recv(100) == b""
            gone(worker)
            cluster.get()
        # It has answered, so it has said that it is ready; the master may not have read that yet.
        assert [w["lane"] for w in wait_for(cluster.workers, what="the master knows it")] == [0]

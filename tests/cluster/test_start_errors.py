"""A start that cannot succeed: the exit code says whose fault it is, the text what to do, and nothing is left."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from harness import ZCLUSTER, lonely_host, running

ERROR = re.compile(r"^zcluster: error: ", re.MULTILINE)
APPS = {
    "raises": "def connect():\n    raise RuntimeError('the database is on fire')\n\nconnect()\n",
    "wants": "import no_such_library\n",
    "crooked": "def app(:\n",
    "leaves": "import sys\n\nsys.exit('no licence')\n",
    "number": "app = 42\n",
    "empty": "",
    "factory": "def make():\n    raise RuntimeError('no settings')\n",
    "sick": "def app(environ, start_response):\n    start_response('503 No', [])\n    return [b'no database']\n",
    "good": "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'here']\n",
}


@pytest.fixture(scope="module")
def apps(tmp_path_factory):
    """A directory with an app for every way to fail."""
    folder = tmp_path_factory.mktemp("apps")
    for name, text in APPS.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def failed(app, *options, code, cwd, timeout_s=20.0, **more):
    """Start a cluster and see it fail with this code and nothing left; returns its log and the seconds it took."""
    since = time.monotonic()
    with running(app, *options, wait=False, cwd=cwd, **more) as cluster:
        cluster.wait(timeout_s)
        took_s = time.monotonic() - since
        log = cluster.ended(code=code)
        assert cluster.process.stdout.read() == b"", "there was nothing to announce"
    assert len(ERROR.findall(log)) == 1, log
    return log, took_s


def error(log):
    """What follows "zcluster: error: ", to the end of the log."""
    return log.partition("zcluster: error: ")[2]


# ---- the application: 3 --------------------------------------------------------------------------------------------
IMPORT_ERRORS = {
    "nowhere:app": ("there is no module 'nowhere' for the app 'nowhere:app'", 0),
    "good.inner:app": ("there is no module 'good.inner' for the app", 0),
    "good:nothing": ("module good has no attribute 'nothing', wanted for the app 'good:nothing'", 0),
    "empty": ("module 'empty' has neither 'app' nor 'application'", 0),
    "number:app": ("number:app is an object of type 'int', which is not callable", 0),
    "raises:app": ("RuntimeError: the database is on fire", 1),
    "wants:app": ("ModuleNotFoundError: No module named 'no_such_library'", 1),
    "crooked:app": ("SyntaxError: invalid syntax", 0),  # its place in the file is told without a traceback
    "leaves:app": ("SystemExit: no licence", 1),
    "factory:make()": ("RuntimeError: no settings", 1),
}


@pytest.mark.parametrize("app", IMPORT_ERRORS)
def test_an_app_that_cannot_be_had(apps, app):
    """Exit 3, and the reason with the app's own traceback, once, however many workers were wanted."""
    said, tracebacks = IMPORT_ERRORS[app]
    log, _ = failed(app, code=3, cwd=apps)
    assert said in error(log)
    assert log.count(said) == 1
    assert log.count("Traceback (most recent call last)") == tracebacks
    assert "zcluster/" not in error(log), "our own frames say nothing about the app"


@pytest.mark.parametrize("app", ["nowhere:app", "number:app", "raises:app", "leaves:app"])
def test_the_same_in_each_worker(apps, app):
    """With --no-preload each worker finds out for itself; it is told once all the same."""
    said, tracebacks = IMPORT_ERRORS[app]
    log, _ = failed(app, "--no-preload", code=3, cwd=apps)
    assert said in error(log)
    assert log.count(said) == 1
    assert log.count("Traceback (most recent call last)") == tracebacks


def test_an_app_that_is_not_well(apps):
    """Exit 3 as well, with the path and the answer, when none of its workers passes the health check."""
    log, _ = failed("sick:app", "--health-path=/ready", code=3, cwd=apps, timeout_s=60.0)
    text = "the health check failed: GET /ready (Host: localhost) was answered '503 No', not 200: 'no database'"
    assert error(log).startswith(text)
    assert log.count("the health check failed") == 1


# ---- the operator: 2 -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-w", "x"], "--workers is 'x', but should be a number from 1 on, or 'auto'"),
        (["-w", "-1"], "--workers is '-1', but should be a number from 1 on, or 'auto'"),
        (["-w", "0"], "--workers is '0', but should be a number from 1 on, or 'auto'"),
        (["--bind", "nonsense"], "cannot bind to 'nonsense': it has no port; accepted forms are HOST:PORT, "),
        (["--bind", "[::1:80"], "cannot bind to '[::1:80': an IPv6 address stands in brackets"),
        (["--no-such-option"], "No such option"),
        (["--name", "a/b"], "--name is 'a/b', but a name is 1 to 40 of A-Z a-z 0-9 . _ - "),
        (["--heartbeat", "10", "--hang-timeout", "20"], "--heartbeat is 10 s, but must be below a third of"),
    ],
)  # fmt: skip
def test_nonsense(apps, options, said):
    """Exit 2 and one line that names the option."""
    log, _ = failed("good:app", *options, code=2, cwd=apps, workers=None, bind="", fast=False)
    assert error(log).startswith(said)
    assert log.count("\n") == 1


def test_nonsense_in_variables(apps):
    """What came by a variable is called by its name."""
    log, _ = failed("good:app", code=2, cwd=apps, workers=None, env={"WEB_CONCURRENCY": "many"})
    assert error(log).startswith("variable WEB_CONCURRENCY is 'many', but should be a number")
    log, _ = failed("good:app", code=2, cwd=apps, bind="", env={"PORT": "http"})
    assert "'http' is no port from 0 to 65535" in error(log)


# ---- the machine: 4 ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def first():
    """A cluster that the failures of others must not disturb."""
    with running("counting:app", "--name=mine") as cluster:
        yield cluster


def test_port_in_use(apps, first, record_property):
    """Exit 4 at once, naming the address; who has it does not notice."""
    total = int(first.get())
    address = first.url.removeprefix("http://")
    took, others = [], []
    for _ in range(3):
        others.append(failed("good:app", "--no-such-option", code=2, cwd=apps, workers=None, bind="")[1])
        log, took_s = failed("good:app", code=4, cwd=apps, bind=address)
        assert error(log).startswith(f"cannot listen on {address}: address already in use; ")
        assert log.count("\n") == 1
        took.append(took_s)
    record_property("port in use: seconds to exit 4", [round(took_s, 3) for took_s in took])
    # 1 s is promised on a machine that is not busy with other tests; how busy it is, a start that does nothing shows.
    assert min(took) < 1.0 + 3 * min(others), (took, others)
    assert int(first.get()) == total + 1


def test_one_of_several_ports_in_use(apps, first):
    """All addresses or none: the one that was free is given back."""
    host = lonely_host()
    with socket.create_server((host, 0)) as sock:
        free = f"{host}:{sock.getsockname()[1]}"
    taken = first.url.removeprefix("http://")
    log, _ = failed("good:app", f"--bind={taken}", code=4, cwd=apps, bind=free)
    assert error(log).startswith(f"cannot listen on {taken}: ")
    with socket.create_server((host, int(free.rpartition(":")[2]))):
        pass


def test_name_in_use(apps, first):
    """Exit 4 with the pid of who has the name; the first cluster serves on and keeps its files."""
    before, total = first.files(), int(first.get())
    with running("good:app", "--name=mine", base=first.base, cwd=apps, wait=False) as second:
        assert second.wait() == 4
        assert second.processes() == []
        assert error(second.log).startswith(
            f"a cluster named 'mine' is already running (launcher {first.process.pid}); "
            "stop it with 'zcluster stop --name mine', or give another --name"
        )
    assert first.files() == before
    assert int(first.get()) == total + 1
    assert first.ps("--name=mine")["epoch"] == 1


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("192.0.2.1:0", "this machine has no such address"),  # TEST-NET-1 of RFC 5737
        ("no-such-host.invalid:80", ""),
        ("unix:/no/such/directory/s", "No such file or directory"),
        ("fd://99", "Bad file descriptor"),
    ],
)
def test_an_address_that_is_not_to_be_had(apps, address, said):
    """Exit 4, naming the address."""
    # The longest time-out is for the name: a machine without a name server may ask for long before it gives up.
    log, _ = failed("good:app", code=4, cwd=apps, bind=address, timeout_s=60.0)
    assert error(log).startswith(f"cannot listen on {address}: ")
    assert said in error(log)


def test_run_dir_on_disk(apps, tmp_path):
    """Sockets and shared memory want a tmpfs; what is none is named, with what it is."""
    log, _ = failed("good:app", "--run-dir=/sys", code=4, cwd=apps)  # no tmpfs on any Linux
    assert error(log).startswith("/sys lies on sysfs; ")
    assert "give --run-dir on a tmpfs such as /dev/shm" in error(log)
    log, _ = failed("good:app", f"--run-dir={tmp_path / 'no'}", code=4, cwd=apps)
    assert error(log).startswith(f"{tmp_path / 'no'} is not a writable directory; give one on a tmpfs with --run-dir")


@pytest.fixture
def folder():
    """An empty directory on a tmpfs."""
    path = Path(tempfile.mkdtemp(prefix="zct-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_run_dir_too_long(apps, folder):
    """The path of a socket has 107 bytes."""
    long = folder / (60 * "x")
    long.mkdir()
    log, _ = failed("good:app", f"--run-dir={long}", f"--name={30 * 'n'}", code=4, cwd=apps)
    assert "is too long for the path of a socket" in error(log)
    assert "give a shorter --run-dir or --name" in error(log)
    assert list(long.iterdir()) == []


def test_run_dir_that_others_may_write_to(apps, folder):
    """It is not used: they could put their own sockets there."""
    ours = folder / f"zcluster-{os.getuid()}"
    ours.mkdir()
    ours.chmod(0o777)
    log, _ = failed("good:app", f"--run-dir={folder}", code=4, cwd=apps)
    assert error(log).startswith(f"{ours} is not a private directory of uid {os.getuid()} (mode drwxrwxrwx")
    assert list(ours.iterdir()) == []


def in_own_mounts(*mount):
    """A command prefix: make a mount that only the command sees. With a user namespace when we are not root."""
    script = f'mount {" ".join(mount)} && exec "$@"'
    return ["unshare", "-m" if os.getuid() == 0 else "-rm", "sh", "-c", script, "sh"]


def test_a_tmpfs_too_small_for_the_ledger(apps, tmp_path):
    """Exit 4 before anything is started, saying how much is wanted and where."""
    prefix = in_own_mounts("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path))
    log, _ = failed("good:app", f"--run-dir={tmp_path}", code=4, cwd=apps, prefix=prefix)
    assert str(tmp_path) in error(log)
    assert "No space left on device" in error(log)
    assert "--run-dir" in error(log)
    assert log.count("\n") == 1


def test_a_tmpfs_that_is_read_only(apps, tmp_path):
    """Exit 4, saying what to give."""
    prefix = in_own_mounts("-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path))
    log, _ = failed("good:app", f"--run-dir={tmp_path}", code=4, cwd=apps, prefix=prefix)
    assert str(tmp_path) in error(log)
    assert "--run-dir" in error(log)
    assert log.count("\n") == 1


def test_no_default_tmpfs(apps, tmp_path):
    """A machine whose /dev/shm is on a disk: exit 4, saying what to give."""
    prefix = in_own_mounts("--bind", str(tmp_path), "/dev/shm")
    command = [*prefix, *ZCLUSTER, "run", "good:app", "-b", "127.0.0.1:0"]
    env = {name: value for name, value in os.environ.items() if name != "ZCLUSTER_RUN_DIR"}
    done = subprocess.run(command, cwd=apps, env=env, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("zcluster: error: /dev/shm lies on ")
    assert "--run-dir" in done.stderr
    assert list(tmp_path.iterdir()) == []

"""Started by root, run by somebody else; or told why that cannot be."""

import json
import os
import socket
import subprocess
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from harness import APPS, ZCLUSTER, running
from namespaces import opened

NOBODY = 65534
IS_ROOT = os.getuid() == 0


@pytest.fixture
def place():
    """A folder that its owner and everybody else may enter, in memory: a home of run directories."""
    with tempfile.TemporaryDirectory(prefix="zct-", dir="/dev/shm") as name:
        path = Path(name)
        path.chmod(0o755)
        for folder, mode in (("theirs", 0o700), ("kept", 0o700), ("ours", 0o755)):
            (path / folder).mkdir()
            (path / folder).chmod(mode)
            if IS_ROOT and folder != "ours":
                os.chown(path / folder, NOBODY, NOBODY)
        yield path


def ask(path):
    """What the app says, over a Unix socket."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return json.loads(b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")[2])


def self_signed(path):
    """A key that only root may read, and its certificate."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", path / "key.pem", "-out", path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    (path / "key.pem").chmod(0o600)
    return path / "cert.pem", path / "key.pem"


def as_nobody(place, *options, **more):
    """A cluster of nobody's, started by us."""
    return running(
        "surrounded:app", "--user=65534", "--group=65534", f"--state={place}/kept/state", *options,
        base=place / "theirs", workers=1, prefix=opened() or (), **more,
    )  # fmt: skip


def test_root_is_given_up(place):
    """A socket, a pid file and a key that only root can have; everything else is the user's, and root finds it."""
    certificate, key = self_signed(place / "ours")
    options = ("--umask=027", f"--pid={place}/ours/pid", "--env=COLOR=red = blue", f"--chdir={APPS}",
               f"--certfile={certificate}", f"--keyfile={key}",
               f"--access-logfile={place}/kept/access")  # fmt: skip
    if not IS_ROOT or opened() is None:
        with as_nobody(place, wait=False) as cluster:
            log = cluster.ended(code=4 if IS_ROOT else 2)
        why = (
            "must be readable; is that environment in somebody's home?"
            if IS_ROOT
            else "only root can become somebody"
        )
        assert why in log
        return
    with as_nobody(place, *options, bind=f"unix:{place}/ours/sock") as cluster:
        pids = cluster.processes()
        assert len(pids) == 5  # launcher, master, zygote, worker, checkpoint
        for pid in pids:
            status = Path(f"/proc/{pid}/status").read_text()
            for word in ("Uid", "Gid"):
                assert f"{word}:\t" + "\t".join(["65534"] * 4) + "\n" in status
        said = subprocess.run(
            ["curl", "-sk", "--unix-socket", place / "ours/sock", "https://localhost/"],
            capture_output=True,
            check=True,
        ).stdout
        about = json.loads(said)
        assert about["ids"] == [NOBODY] * 6
        assert about["groups"] == [NOBODY]
        assert about["umask"] == 0o027
        assert about["folder"] == str(APPS)
        assert about["environ"]["COLOR"] == "red = blue"
        assert (place / "ours/pid").read_text() == f"{cluster.process.pid}\n"
        assert os.fstat(cluster.process.stdout.fileno()).st_uid == NOBODY  # whoever logs there may open it anew
        cluster.command_line("reload", "--wait")  # root finds what is nobody's; the key is still known
        cluster.end()
    kept = list((place / "kept").rglob("*"))
    assert {"access", "state", "checkpoint"} <= {path.name for path in kept}
    assert {path.stat().st_uid for path in kept} == {NOBODY}
    assert (place / "ours/pid").read_text() == ""  # in a folder of root's: emptied
    assert (place / "ours/sock").exists()


def test_what_the_user_may_not(place):
    """Found out before anything is started, with the user in the text: log, state, run directory."""
    if not IS_ROOT or opened() is None:
        return
    for option, code, why in (
        (f"--access-logfile={place}/ours/access", 2, "cannot be written: Permission denied"),
        (f"--state={place}/ours/state", 4, "Permission denied"),
        (f"--run-dir={place}/ours", 4, f"{place}/ours is not a writable directory; give one on a tmpfs"),
    ):
        done = subprocess.run(
            [*opened(), *ZCLUSTER, "run", "surrounded:app", "--user=65534", "--group=65534", "--bind=127.0.0.1:0",
             f"--run-dir={place}/theirs", option],
            capture_output=True, text=True, cwd=APPS, timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert why in done.stderr
        assert "(uid 65534, gid 65534))\n" in done.stderr
    assert list((place / "theirs").iterdir()) == []

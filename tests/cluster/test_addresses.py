"""Where a cluster listens: many addresses at once, socket files, descriptors it was given, socket units."""

import contextlib
import http.client
import os
import re
import signal
import socket
import stat
import sys
import urllib.parse
from pathlib import Path

from harness import free_port, running, wait_for

ERROR = re.compile(r"^zcluster: error: (.*)", re.MULTILINE)
# What systemd does for a service with a socket unit: descriptors from 3 on, and whom they are for.
ACTIVATE = """
import os, sys
fds, program = [int(fd) for fd in sys.argv[1].split(",")], sys.argv[2:]
moved = [os.dup2(fd, 100 + n) for n, fd in enumerate(fds)]
for fd in fds:
    os.close(fd)
for n, fd in enumerate(moved):
    os.dup2(fd, 3 + n)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES="web")
os.execv(program[0], program)
"""


def ask(url, path="/"):
    """One request over a connection of its own; returns the body."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "localhost", parts.port, timeout=20)
    try:
        if url.startswith("unix:"):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(20)
            connection.sock.connect(url.removeprefix("unix:"))
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def listening(family=socket.AF_INET, target=("127.0.0.1", 0), listen=True):
    """A socket as a starter makes it."""
    sock = socket.socket(family)
    sock.bind(target)
    if listen:
        sock.listen()
    return sock


def is_refused(url):
    """Whether nobody listens there any more."""
    try:
        ask(url)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


# ---- several -------------------------------------------------------------------------------------------------------
def test_several_addresses_of_every_kind(tmp_path):
    """All of them answer, the ready line names the first, ps all in their order; afterwards none is left."""
    port = free_port()
    more = ("--bind=[::1]:0", f"--bind=unix:{tmp_path}/s", f"--bind=localhost:{port}", "--bind=127.0.0.2:0")
    with running("hello:app", *more) as cluster:
        seen = cluster.ps()
        urls = seen["urls"]
        assert seen["url"] == urls[0] == cluster.url
        assert [re.sub(r":[0-9]+$", "", url) for url in urls] == [
            "http://127.0.0.1", "http://[::1]", f"unix:{tmp_path}/s", "http://127.0.0.1", "http://127.0.0.2",
        ]  # fmt: skip
        assert urls[3].endswith(f":{port}")
        pids = {str(worker["pid"]).encode() for worker in cluster.workers()}
        for url in urls:
            assert ask(url) in pids
        cluster.end()
        assert all(is_refused(url) for url in urls)
        assert list(tmp_path.iterdir()) == []


def test_one_of_several_is_taken(tmp_path):
    """Exit 4 with the one that is; what was bound before it is given back."""
    with listening() as taken:
        busy = "{}:{}".format(*taken.getsockname())
        with running("hello:app", f"--bind=unix:{tmp_path}/s", f"--bind={busy}", wait=False) as cluster:
            log = cluster.ended(code=4)
    assert ERROR.findall(log) == [
        f"cannot listen on {busy}: address already in use; stop what listens there, or give another with --bind"
    ]
    assert list(tmp_path.iterdir()) == []


# ---- socket files --------------------------------------------------------------------------------------------------
def test_permissions_of_a_socket_file(tmp_path):
    """--unix-mode, for each of them."""
    more = (f"--bind=unix:{tmp_path}/b", "--unix-mode=0620")
    with running("hello:app", *more, bind=f"unix:{tmp_path}/a") as cluster:
        for name in ("a", "b"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o620
            ask(f"unix:{tmp_path}/{name}")
        assert cluster.url == f"unix:{tmp_path}/a"
        cluster.end()


def test_after_a_kill_the_next_start_takes_the_file_over(tmp_path):
    """SIGKILL of the launcher leaves the file; the next start replaces it, and removes it at the end."""
    url = f"unix:{tmp_path}/s"
    with running("hello:app", bind=url) as first:
        first.signal(signal.SIGKILL)
        first.wait()
        wait_for(lambda: not first.processes(), what="the end of the workers")
        assert (tmp_path / "s").exists()
        assert is_refused(url)
        with running("hello:app", bind=url, base=first.base) as second:
            assert ask(url)
            second.end()
        assert not (tmp_path / "s").exists()


def test_the_file_of_a_running_cluster_is_its_own(tmp_path):
    """A second cluster is refused; the first goes on, and still removes its file."""
    url = f"unix:{tmp_path}/s"
    with running("hello:app", bind=url) as first:
        with running("hello:app", bind=url, wait=False) as second:
            assert f"cannot listen on {url}: address already in use" in second.ended(code=4)
        assert ask(url)
        first.end()
    assert not (tmp_path / "s").exists()


def test_a_file_that_somebody_else_made_meanwhile_stays(tmp_path):
    """At the end only what is ours is removed."""
    with running("hello:app", bind=f"unix:{tmp_path}/s") as cluster:
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("theirs")
        cluster.end()
    assert (tmp_path / "s").read_text() == "theirs"


# ---- descriptors ---------------------------------------------------------------------------------------------------
def test_a_descriptor_that_was_passed(tmp_path):
    """fd://N of a listening socket and of a bound one; while it drains nobody is kept waiting in its queue."""
    with listening() as one, listening(socket.AF_UNIX, f"{tmp_path}/given", listen=False) as two:
        fds = (one.fileno(), two.fileno())
        urls = [f"http://127.0.0.1:{one.getsockname()[1]}", f"unix:{tmp_path}/given"]
        with running("hello:app", f"--bind=fd://{fds[1]}", bind=f"fd://{fds[0]}", popen={"pass_fds": fds}) as cluster:
            one.close()
            two.close()
            assert cluster.ps()["urls"] == urls
            for url in urls:
                assert ask(url)
            cluster.end()
            assert all(is_refused(url) for url in urls)
    assert (tmp_path / "given").exists(), "it is not ours to remove"


def unfit_descriptors(stack):
    """What nobody can serve, with the reason; closed with `stack`."""
    left, right = socket.socketpair()
    yield stack.enter_context(open(os.devnull)), "it is no socket"  # noqa: SIM115 (the stack closes it)
    yield stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)), "it is AF_INET, SOCK_DGRAM, and no stream"
    yield stack.enter_context(left), "it is a connection, not a listening socket"
    yield stack.enter_context(socket.socket()), "it is bound to no address"
    right.close()


def test_a_descriptor_that_cannot_be_served():
    """Exit 4, and what is wrong with it."""
    with contextlib.ExitStack() as stack:
        for thing, reason in unfit_descriptors(stack):
            fd = thing.fileno()
            with running("hello:app", bind=f"fd://{fd}", wait=False, popen={"pass_fds": (fd,)}) as cluster:
                (said,) = ERROR.findall(cluster.ended(code=4))
            assert said.startswith(f"cannot listen on fd://{fd}: {reason}")


def test_a_descriptor_that_was_not_passed():
    """It is closed: the text says who may have forgotten it."""
    with running("hello:app", bind="fd://77", wait=False) as cluster:
        (said,) = ERROR.findall(cluster.ended(code=4))
    assert said.startswith("cannot listen on fd://77: there is no such descriptor")


# ---- socket units --------------------------------------------------------------------------------------------------
def activated(*sockets, bind="", options=(), wait=True, app="hello:app", env=None):
    """A cluster started as by a socket unit with these sockets."""
    fds = [sock.fileno() for sock in sockets]
    prefix = (sys.executable, "-c", ACTIVATE, ",".join(map(str, fds)))
    return running(app, *options, bind=bind, prefix=prefix, popen={"pass_fds": fds}, wait=wait, env=env)


def test_sockets_of_a_unit_stand_in_for_the_default(tmp_path):
    """They are served, the default is not bound, the file is systemd's, and no process sees the variables."""
    with listening() as tcp, listening(socket.AF_UNIX, f"{tmp_path}/unit") as file:
        urls = [f"http://127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path}/unit"]
        with activated(tcp, file) as cluster:
            assert cluster.ps()["urls"] == urls
            assert cluster.url == urls[0]
            for url in urls:
                ask(url)
            assert "listening on " + ", ".join(urls) + " from systemd" in cluster.log
            for pid in cluster.processes():
                if pid != cluster.process.pid:  # its own environ, as the kernel shows it, is what it was started with
                    assert b"LISTEN_" not in Path(f"/proc/{pid}/environ").read_bytes()
            cluster.end()
        tcp.setblocking(False)
        socket.create_connection(tcp.getsockname()).close()  # systemd's own: it listens for the next start
        tcp.accept()[0].close()
    assert (tmp_path / "unit").exists()


def test_an_explicit_bind_is_served_beside_them(tmp_path):
    """Nothing that was asked for is dropped; an address that a unit has as well is not bound twice."""
    with listening(socket.AF_UNIX, f"{tmp_path}/unit") as file:
        more = (f"--bind=unix:{tmp_path}/unit",)
        with activated(file, bind="127.0.0.1:0", options=more) as cluster:
            urls = cluster.ps()["urls"]
            assert urls[0] == f"unix:{tmp_path}/unit"
            assert urls[1].startswith("http://127.0.0.1:")
            assert len(urls) == 2
            for url in urls:
                ask(url)
            assert "besides 127.0.0.1:0" in cluster.log
            cluster.end()


def test_a_unit_with_accept_yes():
    """It passes a connection instead of the listener: said with the setting to change."""
    left, right = socket.socketpair()
    with left, right, activated(left, wait=False) as cluster:
        (said,) = ERROR.findall(cluster.ended(code=4))
    assert said == (
        "cannot listen on descriptor 3 (web) from systemd: "
        "it is a connection, not a listening socket (in a socket unit: set Accept=no)"
    )


def test_variables_for_another_process():
    """Another process's sockets are not taken: the address given with --bind is bound."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with running("hello:app", env=environ) as cluster:
        assert len(cluster.ps()["urls"]) == 1
        cluster.end()

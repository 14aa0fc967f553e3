"""Sockets the launcher was started with: fd://N and socket units of systemd."""

import fcntl
import os
import socket

import pytest
from ledger_support import in_child
from listen_support import bound, talk

from zcluster.errors import SpawnError
from zcluster.unix import listen

__all__ = ["bound"]

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


def bound_socket(family, tmp_path):
    """A socket as a starter would pass it, bound, with its name."""
    targets = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
        socket.AF_UNIX: f"{tmp_path}/given",
    }
    sock = socket.socket(family)
    sock.bind(targets[family])
    return sock, sock.getsockname()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
@pytest.mark.parametrize("listening", [True, False])
def test_an_inherited_descriptor(bound, tmp_path, family, listening):
    """fd://N: its real address in the url, non-blocking, its file not ours to remove, its number given back."""
    given, name = bound_socket(family, tmp_path)
    if listening:
        given.listen(3)
    given.set_inheritable(True)
    fd = given.detach()
    (listener,) = bound(f"fd://{fd}")
    expected = f"unix:{name}" if family == socket.AF_UNIX else f":{name[1]}"
    assert listener.url.endswith(expected)
    assert not listener.sock.getblocking()
    assert not listener.sock.get_inheritable()
    assert listener.sock.fileno() != fd
    assert not os.path.exists(f"/proc/self/fd/{fd}"), "the port would stay open when the listener is closed"
    talk(listener.sock, family, name)
    listener.close()
    assert family != socket.AF_UNIX or os.path.exists(name)


def test_a_standard_stream_that_is_a_listener():
    """fd://0, as inetd passes it: standard input is open afterwards, and no listener any more."""

    def body():
        with socket.socket() as given:
            given.bind(("127.0.0.1", 0))
            os.dup2(given.fileno(), 0)
        (listener,) = listen.bind(["fd://0"], 16)
        talk(listener.sock, socket.AF_INET, listener.sock.getsockname())
        return os.readlink("/proc/self/fd/0")

    assert in_child(body) == os.devnull


def test_a_descriptor_that_cannot_listen_is_refused(tmp_path):
    """Each with its reason, left as it was."""
    pair = socket.socketpair()
    unfit = {
        "it is no socket": open(os.devnull),  # noqa: SIM115 (closed with the others)
        "it is AF_INET, SOCK_DGRAM, and no stream socket of IPv4, IPv6 or Unix": socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM
        ),
        "it is AF_UNIX, SOCK_SEQPACKET, and no stream socket": socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        "it is a connection, not a listening socket": pair[0],
        "it is bound to no address": socket.socket(),
    }
    for reason, thing in unfit.items():
        with pytest.raises(SpawnError, match=f"cannot listen on fd://{thing.fileno()}: {reason}"):
            listen.bind([f"fd://{thing.fileno()}"], 16)
        assert os.fstat(thing.fileno())
    unbound = socket.socket(socket.AF_UNIX)
    with pytest.raises(SpawnError, match="it is bound to no address"):
        listen.bind([f"fd://{unbound.fileno()}"], 16)
    for thing in (*unfit.values(), *pair, unbound):
        thing.close()
    with pytest.raises(SpawnError, match=r"cannot listen on fd://999999: there is no such descriptor .* pass it on"):
        listen.bind(["fd://999999"], 16)


def passed(tmp_path, sockets, names=""):
    """Have these sockets at 3, 4, ... of a child and see what from_systemd makes of them: urls, or the error."""

    def body():
        moved = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in sockets]
        for number, fd in enumerate(moved):
            os.dup2(fd, 3 + number)
            os.close(fd)
        environ = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": names,
            "LISTEN_PIDFDID": "17",
            "HOME": "/",
        }
        try:
            listeners = listen.from_systemd(environ, os.getpid())
        except SpawnError as error:
            return str(error)
        assert environ == {"HOME": "/"}
        for listener in listeners:
            assert not listener.sock.get_inheritable()
            assert not listener.sock.getblocking()
            listener.close()
        return " ".join(listener.url for listener in listeners)

    return in_child(body)


def test_sockets_from_systemd(tmp_path):
    """Of every family, in their order; a file that is systemd's stays."""
    made = [bound_socket(family, tmp_path) for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)]
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0zcluster-test-{os.getpid()}")
    sockets = [*(sock for sock, _ in made), abstract]
    for sock in sockets:
        sock.listen()
    said = passed(tmp_path, sockets)
    assert said == (
        f"http://127.0.0.1:{made[0][1][1]} http://[::1]:{made[1][1][1]} unix:{made[2][1]} "
        f"unix:@zcluster-test-{os.getpid()}"
    )
    assert os.path.exists(made[2][1])
    for sock in sockets:
        sock.close()


def test_what_systemd_must_not_pass(tmp_path):
    """A connection (Accept=yes), what does not listen, what is no stream: named by number and name."""
    good, _ = bound_socket(socket.AF_INET, tmp_path)
    good.listen()
    silent, _ = bound_socket(socket.AF_INET6, tmp_path)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    left, right = socket.socketpair()
    said = passed(tmp_path, [good, silent], names="web:silent")
    assert said == (
        "cannot listen on descriptor 4 (silent) from systemd: it does not listen (in a socket unit: set Accept=no)"
    )
    assert "descriptor 3 from systemd: it is a connection" in passed(tmp_path, [left])
    assert "descriptor 3 from systemd: it is AF_INET, SOCK_DGRAM" in passed(tmp_path, [datagrams])
    for sock in (good, silent, datagrams, left, right):
        sock.close()


def test_variables_for_another_process():
    """They are not for us, nor for our children: removed, and nothing is taken."""
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "PATH": "/bin"}
    assert listen.from_systemd(environ, os.getpid()) == []
    assert environ == {"PATH": "/bin"}
    assert listen.from_systemd({"LISTEN_PID": "7", "LISTEN_FDS": "0"}, 7) == []


@pytest.mark.parametrize("count", ["", "-1", "many", "1_0", "9" * 30])
def test_a_number_of_sockets_that_is_none(count):
    """Said as it is, instead of a start without them."""
    with pytest.raises(SpawnError, match=r"LISTEN_FDS is .* should be the number of sockets"):
        listen.from_systemd({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7)


def test_a_number_without_sockets():
    """The first that is missing is named, at once, not the last of a billion."""
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "999999999"}

    def body():
        with pytest.raises(SpawnError) as caught:
            listen.from_systemd(environ, 7)
        return str(caught.value)

    assert in_child(body).startswith("cannot listen on descriptor ")

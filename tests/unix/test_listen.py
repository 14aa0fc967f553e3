"""Listening sockets: bound all or none, named truly, cleaned up."""

import errno
import fcntl
import os
import select
import socket
import stat
import time
import urllib.parse

import pytest
from ledger_support import in_child, start

from zcluster.errors import SpawnError
from zcluster.unix import listen

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def bound():
    """Bind, and close at the end."""
    made = []

    def bind(*addresses, backlog=16, **more):
        found = listen.bind(addresses, backlog, **more)
        made.extend(found)
        return found

    yield bind
    for listener in made:
        listener.close()


def talk(sock, family, target):
    """Connect and see that the listener accepts exactly this connection."""
    with socket.socket(family) as client:
        client.connect(target)
        accepted, _ = sock.accept()
        with accepted:
            client.send(b"x")
            accepted.settimeout(5)
            assert accepted.recv(1) == b"x"


def test_port_0_is_named_by_its_real_number(bound):
    """The url holds the port the kernel gave, and somebody listens there."""
    (listener,) = bound("127.0.0.1:0")
    parts = urllib.parse.urlsplit(listener.url)
    assert (parts.scheme, parts.hostname) == ("http", "127.0.0.1")
    assert parts.port == listener.sock.getsockname()[1] > 0
    talk(listener.sock, socket.AF_INET, ("127.0.0.1", parts.port))


def test_a_listener_does_not_block_and_is_not_inherited(bound):
    """A worker that loses the race for a connection gets an error at once; programs of the app get no listener."""
    for listener in bound("127.0.0.1:0"):
        assert not listener.sock.getblocking()
        assert not listener.sock.get_inheritable()
        with pytest.raises(BlockingIOError):
            listener.sock.accept()


def test_a_port_in_use_names_the_address(bound):
    """It says which address, that it is in use, and what to do."""
    (first,) = bound("127.0.0.1:0")
    address = first.url.removeprefix("http://")
    with pytest.raises(SpawnError, match=rf"cannot listen on {address}: address already in use; .* --bind"):
        listen.bind([address], 16)
    talk(first.sock, socket.AF_INET, first.sock.getsockname())


def test_all_or_none(bound, tmp_path):
    """When the last address is refused the ones before it are given back, a socket's file included."""
    (taken,) = bound("127.0.0.1:0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(SpawnError, match="address already in use"):
        listen.bind([free, f"unix:{tmp_path}/s", taken.url.removeprefix("http://")], 16)
    assert list(tmp_path.iterdir()) == []
    (again,) = bound(free)
    assert again.url == f"http://{free}"


def test_ipv6_and_ipv4_are_two_addresses(bound):
    """[::]:0 is named in brackets, and the same port of 0.0.0.0 is still free."""
    (six,) = bound("[::]:0")
    port = six.sock.getsockname()[1]
    assert six.url == f"http://[::]:{port}"
    (four,) = bound(f":{port}")
    assert four.url == f"http://0.0.0.0:{port}"
    talk(six.sock, socket.AF_INET6, ("::1", port))
    talk(four.sock, socket.AF_INET, ("127.0.0.1", port))


def test_a_host_name_is_looked_up(bound):
    """localhost is the IPv4 one when there is a choice; what cannot be a name is told as such."""
    (listener,) = bound("localhost:0")
    assert listener.url.startswith("http://127.0.0.1:")
    for name in ("a..b", "x" * 64):
        with pytest.raises(SpawnError, match=f"cannot listen on {name}:80: not a name a machine can have"):
            listen.bind([f"{name}:80"], 16)


def test_an_address_of_another_machine_is_refused():
    """TEST-NET-1 is nobody's."""
    with pytest.raises(SpawnError, match=r"cannot listen on 192\.0\.2\.1:0: this machine has no such address"):
        listen.bind(["192.0.2.1:0"], 16)


def test_a_low_port_needs_rights():
    """The reason and the right that is missing."""

    def body():
        from family import drop_privileges

        drop_privileges()
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
            if int(file.read()) == 0:
                return "permission denied; CAP_NET_BIND_SERVICE is not needed here"
        with pytest.raises(SpawnError) as caught:
            listen.bind(["127.0.0.1:1"], 16)
        return str(caught.value)

    assert "permission denied" in (text := in_child(body))
    assert "CAP_NET_BIND_SERVICE" in text


def test_a_unix_socket_comes_and_goes(bound, tmp_path):
    """The file exists while it listens, and is removed at close."""
    path = f"{tmp_path}/s"
    (listener,) = bound(f"unix:{path}")
    assert listener.url == f"unix:{path}"
    talk(listener.sock, socket.AF_UNIX, path)
    listener.close()
    assert not os.path.exists(path)
    listener.close()


def test_a_stale_socket_file_is_replaced(bound, tmp_path):
    """Its owner was killed: nobody listens on it."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    (listener,) = bound(f"unix:{path}")
    talk(listener.sock, socket.AF_UNIX, path)


def test_a_live_socket_file_is_refused(bound, tmp_path):
    """The server that has it keeps it, also when its queue is full and it answers nobody."""
    path = f"{tmp_path}/s"
    (first,) = bound(f"unix:{path}", backlog=1)
    clients = []
    try:
        while True:
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.setblocking(False)
            client.connect(path)
    except BlockingIOError:
        pass
    begun = time.monotonic()
    with pytest.raises(SpawnError, match=f"cannot listen on unix:{path}: address already in use"):
        listen.bind([f"unix:{path}"], 16)
    assert time.monotonic() - begun < 5
    for client in clients:
        client.close()
    assert os.path.exists(path)
    assert first.sock.accept()[0].close() is None


def test_a_datagram_socket_and_a_plain_file_are_refused(tmp_path):
    """What is in the way stays there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(f"{tmp_path}/datagrams")
        (tmp_path / "file").write_text("precious")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        for name in ("datagrams", "file", "link"):
            with pytest.raises(SpawnError, match=f"{name}: address already in use"):
                listen.bind([f"unix:{tmp_path}/{name}"], 16)
    assert (tmp_path / "file").read_text() == "precious"


def test_another_servers_socket_file_is_left_alone(bound, tmp_path):
    """Somebody replaced our file: close does not remove theirs."""
    path = f"{tmp_path}/s"
    (first,) = bound(f"unix:{path}")
    os.unlink(path)
    (second,) = bound(f"unix:{path}")
    first.close()
    talk(second.sock, socket.AF_UNIX, path)


def test_a_missing_directory_is_named(tmp_path):
    """The kernel's reason stands behind the address."""
    with pytest.raises(SpawnError, match=r"cannot listen on unix:.*/no/s: No such file or directory"):
        listen.bind([f"unix:{tmp_path}/no/s"], 16)


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
        "it is no socket": open(os.devnull),
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
    with pytest.raises(SpawnError, match="cannot listen on fd://999999: there is no such descriptor .* pass it on"):
        listen.bind(["fd://999999"], 16)


# ---- socket files ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, None])
def test_permissions_of_a_socket_file(bound, tmp_path, mode):
    """As asked for, whatever the umask; without the option what the umask leaves."""
    before = os.umask(0o027)
    try:
        (listener,) = bound(f"unix:{tmp_path}/s", unix_mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(f"{tmp_path}/s").st_mode) == (0o750 if mode is None else mode)
    talk(listener.sock, socket.AF_UNIX, f"{tmp_path}/s")


def test_a_file_whose_permissions_cannot_be_set_is_not_left(monkeypatch, tmp_path):
    """Whatever fails after bind() takes the file with it."""

    def refuse(path, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(listen.Path, "chmod", refuse)
    with pytest.raises(SpawnError, match="cannot listen on unix:.*/s: Operation not permitted"):
        listen.bind([f"unix:{tmp_path}/s"], 16, unix_mode=0o600)
    assert list(tmp_path.iterdir()) == []


def test_many_starts_on_one_stale_path(tmp_path):
    """Exactly one gets it and can be reached; all others are told that it is in use."""
    path = f"{tmp_path}/s"
    for _ in range(5):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
        go_reader, go = os.pipe()
        said_reader, said = os.pipe()

        def body(go_reader=go_reader, said=said, said_reader=said_reader):
            os.close(said_reader)
            os.read(go_reader, 1)
            try:
                (listener,) = listen.bind([f"unix:{path}"], 16)
            except SpawnError as error:
                assert "address already in use" in str(error)
                os.write(said, b"-")
                return 0
            os.write(said, b"+")
            client, _ = select_accept(listener.sock)
            client.close()
            listener.close()
            return 0

        pids = [start(lambda body=body: os._exit(body())) for _ in range(6)]
        os.close(said)
        os.write(go, b"g" * 6)
        answers = b""
        while len(answers) < 6:
            answers += os.read(said_reader, 6) or b"!"
        assert sorted(answers) == sorted(b"+-----"), answers
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for fd in (go_reader, go, said_reader):
            os.close(fd)
        assert not os.path.exists(path)


def select_accept(sock):
    """Accept from a non-blocking listener, within a time."""
    ready, _, _ = select.select([sock], [], [], 20)
    assert ready, "nobody came"
    return sock.accept()


def test_a_lock_that_nobody_releases(monkeypatch, tmp_path):
    """A start does not wait for ever, and says for what."""
    monkeypatch.setattr(listen, "LOCK_TIMEOUT_S", 0.1)
    held = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(SpawnError, match=rf"another program holds a lock \(flock\) on the directory {tmp_path}"):
        listen.bind([f"unix:{tmp_path}/s"], 16)
    os.close(held)


def test_directories_without_rights(tmp_path):
    """One we may write but not list will do; one we may not write is named with what it lacks."""

    def body():
        from family import drop_privileges

        (tmp_path / "blind").mkdir()
        (tmp_path / "closed").mkdir()
        for folder, mode in (("blind", 0o333), ("closed", 0o555)):
            (tmp_path / folder).chmod(mode)
        for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
            folder.chmod(folder.stat().st_mode | 0o011)
        drop_privileges()
        listen.bind([f"unix:{tmp_path}/blind/s"], 16)[0].close()
        with pytest.raises(SpawnError) as caught:
            listen.bind([f"unix:{tmp_path}/closed/s"], 16)
        return str(caught.value)

    assert "/closed/s: permission denied; the directory must be writable" in in_child(body)


# ---- systemd --------------------------------------------------------------------------------------------------------
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
    with pytest.raises(SpawnError, match="LISTEN_FDS is .* should be the number of sockets"):
        listen.from_systemd({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7)


def test_a_number_without_sockets():
    """They were closed on the way: the first that is missing is named, not the last of a billion."""

    def body():
        os.closerange(3, 20)
        with pytest.raises(SpawnError) as caught:
            listen.from_systemd({"LISTEN_PID": "7", "LISTEN_FDS": "999999999"}, 7)
        return str(caught.value)

    assert "cannot listen on descriptor 3 from systemd: there is no such descriptor" in in_child(body)


def test_an_address_that_was_passed_is_not_bound_again(bound, tmp_path):
    """--bind may name what a socket unit has as well; anything else is bound beside it."""
    (tcp, file) = bound("127.0.0.1:0", f"unix:{tmp_path}/s")
    name = tcp.url.removeprefix("http://")
    assert listen.bind([name, f"unix:{tmp_path}/s"], 16, passed=[tcp, file]) == []
    (other,) = bound("127.0.0.1:0", passed=[tcp, file])
    assert other.url != tcp.url


def test_urls_with_tls(bound, tmp_path):
    """What a client has to type."""
    tcp, file = bound("127.0.0.1:0", f"unix:{tmp_path}/s", tls=True)
    assert tcp.url == f"https://127.0.0.1:{tcp.sock.getsockname()[1]}"
    assert file.url == f"unix:{tmp_path}/s"

"""Listening sockets: bound all or none, named truly, cleaned up."""

import os
import socket
import time
import urllib.parse

import pytest
from ledger_support import in_child

from zcluster.errors import SpawnError
from zcluster.unix import listen

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def bound():
    """Bind, and close at the end."""
    made = []

    def bind(*addresses, backlog=16):
        made.extend(listen.bind(addresses, backlog))
        return made[-len(addresses) :]

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


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_an_inherited_descriptor(bound, tmp_path, family):
    """fd://N: its real address in the url, non-blocking, its file not ours to remove, its number not for children."""
    target = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0), socket.AF_UNIX: f"{tmp_path}/s"}[family]
    with socket.socket(family) as given:
        given.bind(target)
        given.set_inheritable(True)
        (listener,) = bound(f"fd://{given.fileno()}")
        name = given.getsockname()
        expected = f"unix:{name}" if family == socket.AF_UNIX else f":{name[1]}"
        assert listener.url.endswith(expected)
        assert not listener.sock.getblocking()
        assert not given.get_inheritable()
        talk(listener.sock, family, name)
        listener.close()
        assert family != socket.AF_UNIX or os.path.exists(f"{tmp_path}/s")


def test_a_descriptor_that_is_no_socket_is_refused():
    """Closed, a file, a datagram socket: each with the kernel's reason, nothing left open."""
    with open(os.devnull) as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for fd, reason in (
            (999_999, "Bad file descriptor"),
            (file.fileno(), "Socket operation on non-socket"),
            (datagrams.fileno(), "Operation not supported"),
        ):
            with pytest.raises(SpawnError, match=f"cannot listen on fd://{fd}: {reason}"):
                listen.bind([f"fd://{fd}"], 16)

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
from ledger_support import in_child, reap, start
from listen_support import bound, talk

from zcluster.errors import SpawnError
from zcluster.unix import listen

__all__ = ["bound"]

pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


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
    assert time.monotonic() - begun < 20  # and not for ever
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


# ---- socket files --------------------------------------------------------------------------------------------------
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
    with pytest.raises(SpawnError, match=r"cannot listen on unix:.*/s: Operation not permitted"):
        listen.bind([f"unix:{tmp_path}/s"], 16, unix_mode=0o600)
    assert list(tmp_path.iterdir()) == []


def race_for(path, number, said, go, enough):
    """One start among many; says "+" when it listens and "-" when told that the path is in use.

    Each is later than the one before between looking and removing: where the one could meet the other.
    """
    unlink = listen.Path.unlink

    def unlink_late(self, missing_ok=False):
        select.select([], [], [], 0.02 * number)
        unlink(self, missing_ok)

    listen.Path.unlink = unlink_late
    os.read(go, 1)
    try:
        (listener,) = listen.bind([f"unix:{path}"], 16)
    except SpawnError as error:
        os.write(said, b"-" if "address already in use" in str(error) else b"?")
        return
    os.write(said, b"+")
    os.read(enough, 1)  # it goes on listening while the others try
    listener.close()


def test_many_starts_on_one_stale_path(tmp_path):
    """Exactly one gets it and can be reached; all others are told that it is in use."""
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    (go, start_all), (enough, end_all), (hear, said) = pipes = [os.pipe() for _ in range(3)]
    pids = [start(race_for, path, number, said, go, enough) for number in range(6)]
    os.write(start_all, b"g" * len(pids))
    answers = b""
    while len(answers) < len(pids):
        assert select.select([hear], [], [], 20)[0], f"only {answers}"
        answers += os.read(hear, len(pids))
    assert sorted(answers) == sorted(b"+-----"), answers
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    os.write(end_all, b"e")
    assert [reap(pid) for pid in pids] == [0] * len(pids)
    assert not os.path.exists(path)
    for fd in (fd for pair in pipes for fd in pair):
        os.close(fd)


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

"""Clusters that speak TLS: over every address, resumed by every worker, refused before anything is started."""

import contextlib
import http.client
import os
import pty
import re
import select
import signal
import socket
import ssl
import subprocess
import urllib.parse

import pytest
from harness import running, wait_for

ERROR = re.compile(r"^zcluster: error: (.*)", re.MULTILINE)


def openssl(*arguments):
    """Run openssl(1) to its end."""
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


def make_certificate(folder, name="server"):
    """A self-signed certificate and its key: two files."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1"),
        *("-keyout", key, "-out", cert),
    )
    return cert, key


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """One certificate and its key."""
    return make_certificate(tmp_path_factory.mktemp("pem"))


def options(pem):
    """What makes a cluster speak TLS."""
    return f"--certfile={pem[0]}", f"--keyfile={pem[1]}"


def client_context(cert):
    return ssl.create_default_context(cafile=str(cert))


def where(url):
    """Host and port of a url."""
    parts = urllib.parse.urlsplit(url)
    return parts.hostname, parts.port


def ask(url, cert, path="/"):
    """One request over a connection of its own; returns status and body."""
    connection = http.client.HTTPSConnection(*where(url), context=client_context(cert), timeout=20)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def raw(url, timeout_s=20):
    return socket.create_connection(where(url), timeout_s)


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def read_to_the_end(sock):
    """Everything until an orderly end; with TLS a torn one is an error."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_every_address_speaks_tls(pem, tmp_path):
    """IPv4, IPv6 and a socket file; the ready line and ps say https."""
    more = ("--bind=[::1]:0", f"--bind=unix:{tmp_path}/s")
    with running("hello:app", *options(pem), *more) as cluster:
        assert cluster.url.startswith("https://127.0.0.1:")
        urls = cluster.ps()["urls"]
        assert urls[0] == cluster.url
        assert urls[1].startswith("https://[::1]:")
        assert urls[2] == f"unix:{tmp_path}/s"
        for url in urls[:2]:
            assert ask(url, pem[0])[0] == 200
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(f"{tmp_path}/s")
            with client_context(pem[0]).wrap_socket(sock, server_hostname="localhost") as client:
                client.send(REQUEST)
                assert read_to_the_end(client).startswith(b"HTTP/1.1 200 OK\r\n")
        cluster.end()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_resumes_with_every_worker(pem, version):
    """16 connections with one session over 4 workers: all but the first resume, whoever answers."""
    with running("hello:app", *options(pem), workers=4) as cluster:
        context = client_context(pem[0])
        context.maximum_version = version
        session, resumed, workers = None, [], set()

        def answer():
            nonlocal session
            with context.wrap_socket(raw(cluster.url), server_hostname="localhost", session=session) as client:
                client.send(REQUEST)
                workers.add(read_to_the_end(client).rpartition(b"\r\n\r\n")[2])
                session = client.session
                return client.session_reused

        for _ in range(16):
            resumed.append(answer())
        # Which worker accepts is the kernel's choice: go on until it was more than one.
        wait_for(lambda: resumed.append(answer()) or len(workers) > 1, what="an answer of a second worker")
        assert resumed == [False] + [True] * (len(resumed) - 1)
        cluster.end()


def test_what_is_no_tls_costs_one_connection(pem):
    """Plain HTTP is told so; garbage, a half hello and a reset leave no trace, and others are served meanwhile."""
    with running("hello:app", *options(pem), workers=1) as cluster:
        halves = [raw(cluster.url) for _ in range(5)]
        for half in halves:
            half.send(b"\x16\x03\x01\x02\x00\x01")
        with raw(cluster.url) as plain:
            plain.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert read_to_the_end(plain).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        with raw(cluster.url) as garbage:
            garbage.send(os.urandom(3000))
        assert ask(cluster.url, pem[0])[0] == 200
        for half in halves:
            half.close()
        assert ask(cluster.url, pem[0])[0] == 200
        log = cluster.end()
        assert "Traceback" not in log
        assert "internal error" not in log


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1", b"GET / HTTP/1.0"])
def test_a_response_ends_orderly(pem, request_line):
    """With close_notify: a client can tell a whole response from one that was cut off."""
    with running("hello:app", *options(pem), "--keep-alive=0.3", workers=1) as cluster:
        context = client_context(pem[0])
        with context.wrap_socket(raw(cluster.url), server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.send(request_line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_to_the_end(client).startswith(b"HTTP/1.1 200 OK\r\n")
        with context.wrap_socket(raw(cluster.url), server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in read_to_the_end(client), "the idle connection's time-out is an orderly end too"
        cluster.end()


def test_a_half_handshake_ends_by_its_time_out(pem):
    """Who connects and says no more is let go like a slow head."""
    with running("hello:app", *options(pem), "--header-timeout=0.3") as cluster:
        with (
            raw(cluster.url) as half,
            contextlib.suppress(ConnectionResetError),
        ):  # its time may be over before it speaks
            half.send(b"\x16\x03\x01")
            assert half.recv(100) == b""
        cluster.end()


def test_a_large_response_to_a_slow_client(pem):
    """Every byte of it arrives, in order, while fast clients are served; the end is orderly."""
    with running("large:app", *options(pem), workers=1) as cluster:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            sock.settimeout(20)
            sock.connect(where(cluster.url))
            context = client_context(pem[0])
            with context.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as client:
                client.send(REQUEST.replace(b"/ ", b"/8000000 "))
                assert ask(cluster.url, pem[0], "/10")[1] == b"0\n1\n2\n3\n4\n"
                head, _, body = read_to_the_end(client).partition(b"\r\n\r\n")
        assert b"Content-Length: 8000000\r\n" in head + b"\r\n"
        wanted = b"".join(b"%d\n" % n for n in range(1_300_000))[:8_000_000]
        assert body == wanted
        cluster.end()


def test_a_replaced_worker_needs_no_files(pem, tmp_path):
    """A worker that is replaced needs no files: its zygote has the context."""
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    cert.write_bytes(pem[0].read_bytes())
    key.write_bytes(pem[1].read_bytes())
    with running("hello:app", *options((cert, key)), workers=1) as cluster:
        cert.unlink()
        key.unlink()
        (first,) = cluster.workers()
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: [w for w in cluster.workers() if w["pid"] != first["pid"]], what="a replacement")
        assert ask(cluster.url, pem[0])[0] == 200
        cluster.ended(number=signal.SIGTERM)


def test_a_broken_renewal_changes_nothing(pem, tmp_path):
    """A new zygote that cannot read the files says so and is tried again; the workers go on with what they have."""
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    cert.write_bytes(pem[0].read_bytes())
    key.write_bytes(pem[1].read_bytes())
    with running("hello:app", *options((cert, key)), workers=1) as cluster:
        before = cluster.ps()
        key.write_text("half a key")
        os.kill(before["zygote_pid"], signal.SIGKILL)
        cluster.wait_log(re.escape(f"{str(key)!r} holds no private key in PEM form"))
        assert ask(cluster.url, pem[0])[0] == 200
        key.write_bytes(pem[1].read_bytes())
        (first,) = before["workers"]
        os.kill(first["pid"], signal.SIGKILL)
        wait_for(lambda: [w for w in cluster.workers() if w["pid"] != first["pid"]], what="a replacement")
        assert ask(cluster.url, pem[0])[0] == 200
        cluster.ended(number=signal.SIGTERM)


# ---- what is refused -----------------------------------------------------------------------------------------------
def failed(*more, **keywords):
    """Start and see it fail with exit code 2; returns the error's text."""
    with running("hello:app", *more, wait=False, **keywords) as cluster:
        log = cluster.ended(code=2)
        assert "Traceback" not in log
        (text,) = ERROR.findall(log)
        assert cluster.process.stdout.read() == b""
    return text


def test_files_that_cannot_be_used(pem, tmp_path):
    """Exit 2 and one line with the file and the reason, before any process is started."""
    _, other = make_certificate(tmp_path, "other")
    said = failed(f"--certfile={tmp_path}/none.pem", f"--keyfile={pem[1]}")
    assert said == f"cannot read the certificate '{tmp_path}/none.pem': No such file or directory"
    assert "the key does not belong to the certificate" in failed(f"--certfile={pem[0]}", f"--keyfile={other}")
    assert "holds no private key in PEM form; give the key's file with --keyfile" in failed(f"--certfile={pem[0]}")
    assert "--keyfile is given without" in failed(f"--keyfile={pem[1]}")


def test_an_encrypted_key_asks_nobody(pem, tmp_path):
    """Also with a terminal, where OpenSSL would wait for a passphrase."""
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", pem[1], "-out", locked, "-aes256", "-passout", "pass:secret")
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "start_new_session": True}
    try:
        assert "is encrypted" in failed(f"--certfile={pem[0]}", f"--keyfile={locked}", popen=terminal)
        assert not select.select([ours], [], [], 0)[0], "it has asked"
    finally:
        os.close(ours)
        os.close(theirs)

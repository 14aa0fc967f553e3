"""The access log of a whole cluster, and the clients' addresses behind proxies."""

import json
import re
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
from harness import running, wait_for

LINE = re.compile(
    r"(\S+) - (\S+) "
    r'\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "([^"]*)" (\d{3}) (\d+|-) "([^"]*)" "([^"]*)"'
)


def talk(cluster, *requests):
    """Send these requests on one connection, the last one with `Connection: close`; returns all that comes back."""
    with cluster.connect() as sock:
        sock.sendall(b"".join(requests))
        return b"".join(iter(lambda: sock.recv(65536), b""))


def request(target, *fields, method="GET", last=True):
    """The bytes of a request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: example.com", *fields, *(["Connection: close"] if last else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def lines_of(path):
    text = path.read_text()
    assert not text or text.endswith("\n")
    return text.splitlines()


def ask(cluster, headers=()):
    """What an application is told about its client."""
    with urllib.request.urlopen(urllib.request.Request(cluster.url, headers=dict(headers)), timeout=10) as response:
        return json.loads(response.read())


# ---- the log -------------------------------------------------------------------------------------------------------
def test_every_request_has_its_line(tmp_path):
    """Two workers write one file: each answered request is there once, whole, also those of the last moment."""
    path = tmp_path / "access.log"
    with running("logged:app", f"--access-logfile={path}", "--access-logformat=%(p)s %(r)s %(s)s") as cluster:

        def client(name):
            for number in range(50):
                batch = [request(f"/{name}/{number}/{part}", last=part == 3) for part in range(4)]
                assert talk(cluster, *batch).count(b"200 OK") == 4

        clients = [threading.Thread(target=client, args=(name,)) for name in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        pids = {worker["pid"] for worker in cluster.workers()}
        log = cluster.end()
    lines = lines_of(path)
    assert sorted(line.partition(" ")[2] for line in lines) == sorted(
        f"GET /{name}/{number}/{part} HTTP/1.1 200" for name in range(4) for number in range(50) for part in range(4)
    )
    assert {int(line.split()[0].strip("<>")) for line in lines} <= pids
    assert "access log" not in log


def test_a_line_tells_what_happened(tmp_path):
    """The default format: client, request line, status, size of the body without its framing, referrer and agent."""
    path = tmp_path / "access.log"
    requests = {
        "/missing": request("/missing?x=1", "Referer: http://a/", 'User-Agent: say "hi"\\'),
        "/stream": request("/stream"),
        "/raise": request("/raise"),
        "/head": request("/head", method="HEAD"),
    }
    with running("logged:app", f"--access-logfile={path}", workers=1) as cluster:
        for text in requests.values():
            assert talk(cluster, text)
        wait_for(lambda: path.exists() and len(lines_of(path)) == len(requests), what="a line for each request")
        cluster.end()
    missing, stream, raised, head = (
        line if '"hi' in line else LINE.fullmatch(line).groups()[2:5] for line in lines_of(path)
    )
    assert missing.startswith("127.0.0.1 - - [")
    assert missing.endswith(r'"GET /missing?x=1 HTTP/1.1" 404 7 "http://a/" "say \"hi\"\\"')
    assert stream == ("GET /stream HTTP/1.1", "200", "100000")
    assert raised[:2] == ("GET /raise HTTP/1.1", "500")
    assert head == ("HEAD /head HTTP/1.1", "200", "-")


def test_json_lines(tmp_path):
    """Each line is an object; durations are plausible."""
    path = tmp_path / "access.log"
    with running("logged:app", f"--access-logfile={path}", "--access-logformat=json") as cluster:
        talk(cluster, request("/a%20b?c", "User-Agent: \xc3\xa9"))
        cluster.end()
    (found,) = map(json.loads, lines_of(path))
    assert (found["method"], found["target"], found["status"]) == ("GET", "/a%20b?c", 200)
    assert (found["host"], found["user_agent"], found["remote"]) == ("example.com", "\xe9", "127.0.0.1")
    assert 0 <= found["duration_s"] < 10


def test_fields_of_the_response(tmp_path):
    """What the application sent can be logged too."""
    path = tmp_path / "access.log"
    with running("logged:app", f"--access-logfile={path}", "--access-logformat=%({x-answer}o)s") as cluster:
        cluster.get("/")
        cluster.end()
    assert lines_of(path) == ["42"]


def test_stdout():
    """'-' is the stdout of `zcluster run`, behind the ready line."""
    with running("logged:app", "--access-logfile=-", "--access-logformat=%(r)s") as cluster:
        for number in range(20):
            cluster.get(f"/{number}")
        cluster.stop()
        lines = cluster.process.stdout.read().decode().splitlines()
        cluster.ended()
    assert sorted(lines) == sorted(f"GET /{number} HTTP/1.1" for number in range(20))


def test_a_stdout_that_nobody_reads():
    """The cluster serves on, tells what was lost, and ends in time."""
    with running("logged:app", "--access-logfile=-", "--access-logformat=%(r)s", workers=1) as cluster:

        def is_told():
            assert talk(cluster, *(request("/" + 3000 * "x", last=part == 49) for part in range(50)))
            return "lines of the access log" in cluster.log

        wait_for(is_told, 40.0, what="lost lines are told")
        cluster.end()


def test_it_is_off_by_default(tmp_path):
    """Without the option nothing is written, to no file and not to stdout."""
    with running("logged:app", env={"TMPDIR": str(tmp_path)}) as cluster:
        cluster.get("/")
        cluster.stop()
        assert cluster.process.stdout.read() == b""
        cluster.ended()


def test_a_relative_path_is_where_the_operator_stands(tmp_path):
    """The application changes its directory at import; the log does not follow."""
    apps = Path(__file__).parent.parent / "apps"
    with running("odd:app", "--access-logfile=access.log", cwd=tmp_path, env={"PYTHONPATH": str(apps)}) as cluster:
        cluster.get("/")
        cluster.end()
    assert len(lines_of(tmp_path / "access.log")) == 1


def test_children_of_the_application_write_nothing(tmp_path):
    """A fork in a request: its line is there once, and the child does not hang on what it has inherited."""
    path = tmp_path / "access.log"
    with running("logged:app", f"--access-logfile={path}", "--access-logformat=%(r)s", workers=1) as cluster:
        for _ in range(5):
            talk(cluster, request("/before", last=False), request("/fork", last=False), request("/fork-exit"))
        cluster.end()
    assert lines_of(path) == ["GET /before HTTP/1.1", "GET /fork HTTP/1.1", "GET /fork-exit HTTP/1.1"] * 5


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (
            "--access-logformat=%(nope)s",
            r"--access-logformat is '%\(nope\)s', but it has no atom 'nope'; known are h,",
        ),
        ("--access-logfile=/missing/access.log", "/missing/access.log cannot be written: No such file or directory"),
        ("--forwarded-allow-ips=10.0.0.1/8", "the network is 10.0.0.0/8"),
        ("--forwarded-allow-ips=localhost", "accepted are addresses"),
    ],
)
def test_nonsense_is_refused_at_the_start(option, reason):
    """Exit 2 with the reason, before anything is running."""
    with running("logged:app", option, wait=False) as cluster:
        log = cluster.ended(code=2)
    assert re.search(reason, log), log


# ---- behind proxies ------------------------------------------------------------------------------------------------
FORWARDED = {
    "X-Forwarded-For": "203.0.113.66, 198.51.100.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example",
    "X-Forwarded-Prefix": "/shop",
}


def test_a_trusted_proxy(tmp_path):
    """The application and the access log see the client behind it."""
    path = tmp_path / "access.log"
    options = ("--forwarded-allow-ips=127.0.0.0/8", f"--access-logfile={path}", "--access-logformat=%(h)s")
    with running("logged:app", *options) as cluster:
        seen = ask(cluster, FORWARDED)
        cluster.end()
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("198.51.100.7", "https")
    assert (seen["HTTP_HOST"], seen["SCRIPT_NAME"]) == ("shop.example", "/shop")
    assert lines_of(path) == ["198.51.100.7"]


@pytest.mark.parametrize("allowed", ["10.0.0.1", "unix"])
def test_a_stranger(allowed):
    """Whoever is no proxy of ours is himself, whatever he says."""
    with running("logged:app", f"--forwarded-allow-ips={allowed}") as cluster:
        seen = ask(cluster, FORWARDED)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["SCRIPT_NAME"]) == ("127.0.0.1", "http", "")
    assert "HTTP_X_FORWARDED_FOR" not in seen


def test_nobody_is_believed_by_default():
    """The fields reach the application as they came, and change nothing."""
    with running("logged:app") as cluster:
        seen = ask(cluster, FORWARDED)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("127.0.0.1", "http")
    assert seen["HTTP_X_FORWARDED_FOR"] == FORWARDED["X-Forwarded-For"]


def test_a_proxy_on_a_unix_socket(tmp_path):
    """The commonest proxy of all has no address; 'unix' believes it, and the variable is as good as the option."""
    path = tmp_path / "s"
    with running("logged:app", bind=f"unix:{path}", env={"FORWARDED_ALLOW_IPS": "unix"}) as cluster:
        assert cluster.url
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(path))
            sock.sendall(request("/", *(f"{name}: {value}" for name, value in FORWARDED.items())))
            data = b"".join(iter(lambda: sock.recv(65536), b""))
    assert json.loads(data.partition(b"\r\n\r\n")[2])["REMOTE_ADDR"] == "198.51.100.7"

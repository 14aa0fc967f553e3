"""The client: what Werkzeug's does, over a real socket."""

import http.client
import io
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from werkzeug.test import EnvironBuilder, TestResponse

from zcluster.testing import RunningCluster, WireClient


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    log_path = tmp_path_factory.mktemp("wire") / "log"
    with RunningCluster("wire_app:app", log_path=log_path, keep_alive_s=60.0) as running:
        yield running


@pytest.fixture
def client(cluster):
    return cluster.new_client()


def test_arguments_are_those_of_werkzeug(client):
    """Query, JSON, forms, files, headers and raw bytes arrive; the answer is a TestResponse with its request."""
    got = client.post("/a", query_string={"q": "ä b"}, json={"n": 1}, headers={"X-Word": "yes"})
    assert isinstance(got, TestResponse)
    assert (got.status, got.mimetype, got.request.path) == ("200 OK", "application/json", "/a")
    assert (got.json["method"], got.json["target"], got.json["data"]) == ("POST", "/a?q=%C3%A4+b", '{"n": 1}')
    assert got.json["headers"]["X-Word"] == "yes"
    got = client.put("/form", data={"name": "ada", "file": (io.BytesIO(b"content"), "a.txt")})
    assert (got.json["form"], got.json["files"]) == ({"name": "ada"}, {"file": "content"})
    got = client.open("/raw", method="PATCH", data=b"bytes", content_type="text/plain")
    assert (got.json["method"], got.json["data"]) == ("PATCH", "bytes")
    got = client.open(EnvironBuilder("/built", "http://shop.example/", method="DELETE"))
    assert (got.json["method"], got.json["host"]) == ("DELETE", "shop.example")
    got = client.post("/chunks", input_stream=io.BytesIO(b"abc"), headers={"Transfer-Encoding": "chunked"})
    assert got.json["data"] == "abc"


@pytest.mark.parametrize(
    ("path", "target"),
    [("/a%2Fb", "/a%2Fb"), ("/ü b", "/%C3%BC%20b"), ("/50%25", "/50%25"), ("/?x=1&y=%20", "/?x=1&y=%20"), ("", "/")],
)
def test_the_target_is_as_written(client, path, target):
    """Escapes in a path stay as they are, and what cannot stand in a request line is escaped."""
    assert client.get(path).json["target"] == target


def test_a_get_looks_like_a_browsers(client, cluster):
    """The host is the server's, nothing is added, and a whole URL is as good as a path."""
    host = cluster.url.removeprefix("http://")
    got = client.get(cluster.url + "/whole?x=1").json
    assert (got["target"], got["headers"]) == ("/whole?x=1", {"Host": host})
    assert client.get("/", base_url="http://other.example").json["host"] == "other.example"
    assert client.head("/").data == b""


def test_cookies_and_redirects(client):
    """Cookies of the server are sent back to it, those set by hand too; redirects are followed over the socket."""
    client.get("/login")
    client.set_cookie("more", "1")
    assert client.get("/").json["cookies"] == {"user": "ada", "more": "1"}
    assert client.get_cookie("user").value == "ada"
    client.delete_cookie("user")
    got = client.get("/there", follow_redirects=True)
    assert (got.json["target"], got.json["cookies"], len(got.history)) == ("/here?yes=1", {"more": "1"}, 1)
    assert client.get("/there").status_code == 302


def test_requests_share_a_connection_unless_they_overlap(client):
    """Ten in a row meet one worker over one connection; an unfinished response keeps its own, which close() ends."""
    assert len({client.get(path).json["pid"] for path in ("/", "/x") * 5}) == 1
    assert client.get("/chunked").text == "firstsecond"
    (kept,) = client._idle
    endless = client.open("/endless", buffered=False)
    assert client._idle == []
    assert endless.iter_encoded().__next__() == b"first"
    assert client.get("/").status_code == 200
    assert len(client._idle) == 1
    assert client._idle != [kept]
    endless.close()
    assert len(client._idle) == 1  # what was not read to its end is not used again
    client.get("/chunked", buffered=False).close()
    assert client._idle == []  # nor this one, which was taken for it
    with ThreadPoolExecutor(8) as pool:
        assert {got.status_code for got in pool.map(client.get, ["/"] * 64)} == {200}
    assert 1 <= len(client._idle) <= 8


@pytest.mark.parametrize("path", ["/cut", "/short"])
def test_a_body_that_ends_too_early_is_an_error(client, path):
    """A worker that dies in the middle of a response is seen, whether the length was told before or not."""
    with pytest.raises(http.client.IncompleteRead):
        client.get(path)
    assert client.get("/").status_code == 200


def test_an_idle_connection_that_was_closed_is_not_used(cluster, client):
    """After a kill the next request has a connection of its own and is answered by somebody else."""
    pid = client.get("/").json["pid"]
    # The news of a worker that has just been forked may come after its answer.
    (slot,) = cluster.wait_for(lambda: [worker.slot for worker in cluster.workers.values() if worker.pid == pid])
    cluster.kill(slot)
    assert client.get("/").json["pid"] != pid


def test_unix_sockets_limits_and_ends(tmp_path):
    """A Unix socket does as well; a refusal of half a request is heard; a client is closed when its cluster ends."""
    bind = (f"unix:{tmp_path}/s", "127.0.0.1:0")
    with RunningCluster(
        "wire_app:app", log_path=tmp_path / "log", workers=1, bind=bind, limit_request_body=10
    ) as cluster:
        client = cluster.client
        assert client.get("/").json["host"] == "localhost"
        assert client.post("/", data=b"x" * 20_000_000).status_code == 413
        with WireClient(cluster.urls[1]) as other:
            assert other.get("/").status_code == 200
        with WireClient(cluster.urls[1], timeout_s=0.1) as other, pytest.raises(TimeoutError):
            other.get("/sleep")
        with cluster.raw() as sock:
            sock.sendall(b"GET /raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with sock.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(ValueError, match="this client is closed"):
        client.get("/")


def test_tls(tmp_path):
    """A certificate of the test's own is as good as any."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -keyout {key} -out {cert}"
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True, timeout=30)
    with RunningCluster(
        "wire_app:app", log_path=tmp_path / "log", workers=1, certfile=str(cert), keyfile=str(key)
    ) as cluster:
        assert cluster.url.startswith("https://")
        assert cluster.client.get("/").json["host"] == cluster.url.removeprefix("https://")

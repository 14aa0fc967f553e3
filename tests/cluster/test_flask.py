"""Flask in a cluster: sessions, files up and down, streams, error pages and a counter, as its users know them."""

import hashlib
import http.client
import json
import secrets

import pytest
from browser import LARGE, SMALL, Browser, break_off, form, one_per_worker, open_files, pieces, serving, with_consent
from harness import wait_for
from load import Load


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two workers, for all tests of this file that do not need one of their own."""
    with serving("flask_app:app", tmp_path_factory.mktemp("flask")) as site:
        yield site


@pytest.fixture
def browser(site):
    with site.browser() as browser:
        yield browser


def described(name, data):
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# ---- sessions and pages --------------------------------------------------------------------------------------------
def test_a_session_is_good_in_every_worker(site):
    """A signed cookie that one worker gave is read by the others: the visits count on, whoever answers."""
    with one_per_worker(site.cluster) as browsers:
        cookies, pids = {}, set()
        for number in range(1, 11):
            browser = browsers[number % len(browsers)]
            browser.cookies = cookies
            seen = browser.get("/visits").json
            cookies = browser.cookies
            pids.add(seen["pid"])
            assert seen["visits"] == number
    assert len(pids) == 2


def test_login_redirects_and_logout(browser):
    """A login by form redirects to a page that knows the name; the logout deletes the cookie and sets another."""
    assert browser.get("/me").status == 403
    form_type = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = browser.send("POST", "/login", "name=Ada+L%C3%B6velace", form_type)
    assert (reply.status, reply.headers["Location"]) == (303, "/me")
    assert browser.get("/me").json == {"name": "Ada Lövelace"}
    assert browser.get("/logout").status == 302
    assert "session" not in browser.cookies
    assert browser.cookies["seen"] == '"yes\\054 and \\303\\274"'
    assert browser.get("/me").status == 403


def test_a_form_may_come_in_chunks(browser):
    """A form without a Content-Length is read to its end: `wsgi.input_terminated` is what Flask goes by."""
    form_type = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = browser.send("POST", "/login", iter([b"na", b"me=", b"Grace"]), form_type, chunked=True)
    assert reply.status == 303
    assert browser.get("/me").json == {"name": "Grace"}


def test_a_forged_session_is_no_session(browser):
    """A cookie that nobody signed is ignored, not believed."""
    browser.cookies["session"] = "eyJuYW1lIjoiQWRhIn0.aaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbb"
    assert browser.get("/me").status == 403


def test_head_is_get_without_the_body(browser):
    """HEAD has the same status and fields as GET, and nothing follows: the next request on the connection works."""
    whole = browser.get("/")
    head = browser.send("HEAD", "/")
    assert whole.text == "<!doctype html><title>Notebook &amp; more</title><h1>Notebook &amp; more</h1>"
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == whole.headers["Content-Length"] == str(len(whole.body))
    assert browser.get("/").body == whole.body


def test_what_flask_answers_by_itself(browser):
    """OPTIONS names the methods, another one is refused with the names, and a form without its field is a 400."""
    assert set(browser.send("OPTIONS", "/").headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert browser.send("DELETE", "/").status == 405
    form_type = {"Content-Type": "application/x-www-form-urlencoded"}
    assert browser.send("POST", "/login", "wrong=1", form_type).status == 400
    assert browser.send("POST", "/json", "{", {"Content-Type": "application/json"}).status == 400
    assert browser.get("/").status == 200


# ---- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload_by_form(browser, chunked):
    """A form with two fields, a small file and one of 5 MiB arrives byte for byte, framed either way."""
    files = {"small.bin": secrets.token_bytes(SMALL), "large.bin": secrets.token_bytes(LARGE)}
    body, headers = form({"title": "Fotos", "note": "ü"}, files)
    reply = browser.send("POST", "/files", pieces(body) if chunked else body, headers, chunked)
    assert reply.status == 201, reply
    assert reply.json == {
        "files": [described(name, data) for name, data in files.items()],
        "form": {"title": "Fotos", "note": "ü"},
    }
    assert browser.get("/").status == 200


@pytest.mark.parametrize("size", [0, SMALL, 300_000, LARGE])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload_as_it_is(browser, size, chunked):
    """A view that reads `request.stream` gets a body of any size to its end and no further."""
    data = secrets.token_bytes(size)
    reply = browser.send("PUT", "/files/raw.bin", pieces(data) if chunked else data, chunked=chunked)
    assert reply.json == described("raw.bin", data)
    assert browser.get("/").status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upload_that_waits_for_consent(site, chunked):
    """A client that expects a 100 (Continue) gets it when a view reads, and none for a page that is not there."""
    data = secrets.token_bytes(LARGE)
    consented, reply = with_consent(site.cluster, "/files/asked.bin", data, chunked)
    assert (consented, reply.json) == (True, described("asked.bin", data))
    if not chunked:
        consented, reply = with_consent(site.cluster, "/nothing/here", data)
        assert (consented, reply.status) == (False, 404)


def test_an_upload_that_flask_finds_too_large(site):
    """More than MAX_CONTENT_LENGTH is a 413 that the client can read, though nobody read what it sent."""
    with Browser(site.cluster.address) as browser:
        reply = browser.send("PUT", "/files/huge.bin", bytes((8 << 20) + 1))
        assert reply.status == 413
    with Browser(site.cluster.address) as browser:
        body, headers = form({}, {"huge.bin": bytes((8 << 20) + 1)})
        assert browser.send("POST", "/files", body, headers).status == 413
    assert not (site.folder / "files" / "huge.bin").exists()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_broken_upload_harms_nobody(site, chunked, reset):
    """A client that goes away in the middle of a file leaves no file, no request in flight and the same workers."""
    before = {worker["pid"] for worker in site.cluster.workers()}
    break_off(site.cluster, "/files/broken.bin", chunked, reset)
    with site.browser() as browser:
        data = secrets.token_bytes(SMALL)
        assert browser.send("PUT", "/files/whole.bin", data).json == described("whole.bin", data)
    site.idle()
    assert not (site.folder / "files" / "broken.bin").exists()
    wait_for(lambda: not list(site.folder.glob("part-*")), what="no half file")
    assert {worker["pid"] for worker in site.cluster.workers()} == before


def test_download(site, browser):
    """`send_from_directory` sends 5 MiB whole, in ranges and not at all to a client that has it already."""
    data = secrets.token_bytes(LARGE)
    (site.folder / "files" / "down.bin").write_bytes(data)
    whole = browser.get("/files/down.bin")
    assert (whole.status, whole.body == data) == (200, True)
    assert whole.headers["Content-Length"] == str(LARGE)
    assert whole.headers["Content-Disposition"] == "attachment; filename=down.bin"
    etag = whole.headers["ETag"]
    for given, start, stop in (
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=4000000-", 4_000_000, LARGE),
        ("bytes=-70000", LARGE - 70_000, LARGE),
    ):
        part = browser.get("/files/down.bin", Range=given)
        assert (part.status, part.body == data[start:stop]) == (206, True), given
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{LARGE}"
    assert browser.get("/files/down.bin", Range=f"bytes={LARGE}-").status == 416
    assert browser.get("/files/down.bin", Range="bytes=0-9", If_Range=etag).body == data[:10]
    assert browser.get("/files/down.bin", Range="bytes=0-9", If_Range='"other"').body == data
    for given in ({"If_None_Match": etag}, {"If_Modified_Since": whole.headers["Last-Modified"]}):
        same = browser.get("/files/down.bin", **given)
        assert (same.status, same.body, same.headers["Content-Length"]) == (304, b"", None)
    head = browser.send("HEAD", "/files/down.bin")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(LARGE), b"")
    assert browser.get("/files/missing.bin").status == 404
    wait_for(lambda: not open_files(site.cluster, site.folder), what="every file closed")


def test_a_download_that_the_client_gives_up(site):
    """The file is closed when its reader goes away in the middle."""
    (site.folder / "files" / "left.bin").write_bytes(bytes(4 * LARGE))
    with site.browser() as browser:
        response = browser.begin("/files/left.bin")
        assert len(response.read(1000)) == 1000
        assert open_files(site.cluster, site.folder)
        response.close()
    wait_for(lambda: not open_files(site.cluster, site.folder), what="the file closed")


def test_etag_of_a_page(browser):
    """A page with an ETag of its own is not sent twice."""
    first = browser.get("/etag")
    assert first.text == "always the same"
    assert browser.get("/etag", If_None_Match=first.headers["ETag"]).status == 304
    assert browser.get("/etag", If_None_Match='"another"').text == "always the same"


def test_large_json(browser):
    """3 MB of JSON go down, and half as much goes up and comes back."""
    rows = browser.get("/json?n=20000").json
    assert rows == [{"id": number, "text": "ü" * 20} for number in range(20_000)]
    body = json.dumps(rows[:10_000], ensure_ascii=False).encode()
    reply = browser.send("POST", "/json", body, {"Content-Type": "application/json"})
    assert reply.json == rows[:10_000]


# ---- streams and slow views ----------------------------------------------------------------------------------------
def test_a_stream_arrives_piece_by_piece(site, browser):
    """The first piece is here while the last one is not made yet; the request's context lasts as long."""
    response = browser.begin("/stream/pieces?name=Ada")
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.readline() == b"first of Ada\n"
    assert not (site.folder / "note-pieces").exists()
    site.open_gate("pieces")
    assert response.read() == b"last of Ada\n"
    assert site.note("pieces") == "Ada"
    assert browser.get("/").status == 200


def test_a_stream_to_http_1_0_ends_with_its_connection(site):
    """A client that knows no chunks gets the pieces as they are, and then the end."""
    with site.cluster.connect() as client:
        client.sendall(b"GET /stream/old?name=Bob HTTP/1.0\r\n\r\n")
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 200 ")
        assert b"Transfer-Encoding" not in b"".join(iter(stream.readline, b"\r\n"))
        assert stream.readline() == b"first of Bob\n"
        site.open_gate("old")
        assert stream.read() == b"last of Bob\n"


def test_a_stream_that_nobody_reads_on_is_closed(site):
    """When the client leaves, the generator is closed, its `finally` runs, and nothing is logged as an error."""
    mark = len(site.cluster.log)
    with site.browser() as browser:
        assert len(browser.begin("/endless/gone").read(100_000)) == 100_000

    assert site.note("gone") == "closed"
    site.idle()
    assert "Traceback" not in site.log_since(mark)


def test_a_context_stream_that_is_closed_early(site):
    """`stream_with_context` is left in the context it was entered in, also when the client went before the end."""
    mark = len(site.cluster.log)
    with site.browser() as browser:
        assert browser.begin("/stream/early?name=Eve").readline() == b"first of Eve\n"
    site.open_gate("early")
    assert site.note("early") == "Eve"
    site.idle()
    assert "Traceback" not in site.log_since(mark)


def test_a_blocking_view_beside_fast_ones(tmp_path):
    """One worker answers 100 fast requests while a view of it waits, and says that it is multithreaded."""
    with (
        serving("flask_app:app", tmp_path, "--threads=8", workers=1) as site,
        site.browser() as slow,
        site.browser() as fast,
    ):
        slow.ask("GET", "/wait/door")
        pid = int(site.note("door"))
        for _ in range(100):
            assert fast.get("/who").json == {"pid": pid, "multithread": True}
        site.open_gate("door")
        assert slow.reply().text == "passed"


def test_a_slow_upload_beside_fast_requests(site):
    """While a client takes its time in the middle of a file, others are served; then its file arrives whole."""
    data = secrets.token_bytes(LARGE)
    with one_per_worker(site.cluster) as browsers, site.cluster.connect() as slow:
        slow.sendall(f"PUT /files/slow.bin HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n".encode())
        slow.sendall(data[: LARGE // 2])
        for _ in range(50):
            assert all(browser.get("/").status == 200 for browser in browsers)
        slow.sendall(data[LARGE // 2 :])
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert json.loads(response.read()) == described("slow.bin", data)


def test_one_thread_is_told_so(tmp_path):
    """With --threads 1 an app may rely on `wsgi.multithread` being false."""
    with serving("flask_app:app", tmp_path, "--threads=1", workers=1) as site, site.browser() as browser:
        assert browser.get("/who").json["multithread"] is False


# ---- what goes wrong -----------------------------------------------------------------------------------------------
def test_error_pages(site, browser):
    """A 404 and a 500 are the app's own pages; the traceback is in the log, not on the page; the connection lives."""
    mark = len(site.cluster.log)
    missing = browser.get("/nothing/here")
    assert (missing.status, "<h1>No such page</h1>" in missing.text) == (404, True)
    for _ in range(3):
        broken = browser.get("/crash")
        assert (broken.status, "<h1>Something broke</h1>" in broken.text) == (500, True)
        assert "Traceback" not in broken.text
        assert browser.send("HEAD", "/crash").status == 500
        assert browser.get("/").status == 200
    log = site.log_since(mark)
    assert log.count("RuntimeError: the notebook is on fire") == 6
    assert "in crash" in log


def test_a_stream_that_breaks_is_no_whole_response(site, browser):
    """An error after the first piece cuts the connection, and its traceback is logged with the request."""
    mark = len(site.cluster.log)
    response = browser.begin("/torn")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()
    site.cluster.wait_log("RuntimeError: the pen broke")
    assert "GET /torn" in site.log_since(mark)


# ---- the counter ---------------------------------------------------------------------------------------------------
def test_a_counter_in_a_view_is_exact(site):
    """Four clients count through two workers: the cluster's total is the number of their requests."""
    before = site.cluster.counters().get("visits", 0)
    with Load(site.cluster.address, path="/count") as load:
        wait_for(lambda: load.acknowledged >= 1000)
    assert not load.broken
    assert site.cluster.counters()["visits"] == before + load.acknowledged

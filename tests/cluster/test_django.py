"""Django in a cluster: its ORM in many threads, sessions, files up and down, streams and error pages."""

import hashlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import threading

import pytest
from browser import (
    LARGE,
    SMALL,
    break_off,
    environment,
    form,
    one_per_worker,
    open_files,
    pieces,
    serving,
    with_consent,
)
from harness import APPS, Running, wait_for

APP = "django_site.wsgi:application"


def django_admin(folder, *words):
    """Run django-admin on the app; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "django", *words],
        cwd=APPS,
        env={**os.environ, **environment(folder), "DJANGO_SETTINGS_MODULE": "django_site.settings"},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an empty database in it."""
    folder = tmp_path_factory.mktemp("django")
    django_admin(folder, "migrate", "--run-syncdb")
    return folder


@pytest.fixture(scope="module")
def site(folder):
    """Two workers of eight threads, for all tests of this file that do not need one of their own."""
    with serving(APP, folder, "--threads=8") as site:
        yield site


@pytest.fixture
def browser(site):
    with site.browser() as browser:
        yield browser


def described(name, data):
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# ---- before it starts ----------------------------------------------------------------------------------------------
def test_the_system_check_passes(folder):
    """`django-admin check` finds nothing to complain about in the app of these tests."""
    assert "System check identified no issues" in django_admin(folder, "check", "--database", "default")


def test_a_setting_that_django_cannot_use_fails_the_start(folder):
    """An app that is not installed: exit 3, and Django's own words once in the log."""
    cluster = Running(APP, env={**environment(folder), "ANOTHER_APP": "not_there"}, wait=False)
    try:
        log = cluster.ended(code=3)
        assert log.count("ModuleNotFoundError: No module named 'not_there'") == 1, log
    finally:
        cluster.close()


def test_it_is_imported_once(site):
    """Django is safe to import before the fork: nothing in it keeps a thread or a connection, so nobody warns."""
    assert "is not preloaded" not in site.cluster.log


# ---- pages and sessions --------------------------------------------------------------------------------------------
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


def test_logout_redirects_and_forgets(browser):
    """The end of a session deletes its cookie, sets another one, and redirects."""
    assert browser.get("/visits").json["visits"] == 1
    left = browser.get("/leave")
    assert (left.status, left.headers["Location"]) == (302, "/")
    assert browser.cookies == {"seen": "yes"}
    assert browser.get("/visits").json["visits"] == 1


def test_paths_and_methods(browser):
    """A missing slash is redirected to, with the query kept; a method that a view does not know is a 405."""
    moved = browser.get("/slashed?a=1")
    assert (moved.status, moved.headers["Location"]) == (301, "/slashed/?a=1")
    assert browser.send("DELETE", "/files/x").status == 405
    assert browser.get("/slashed/").status == 200


def test_head_and_conditional_get(site, browser):
    """HEAD has GET's fields and no body; a page that the client has already is a 304."""
    browser.send("POST", "/guests", "name=page-1", {"Content-Type": "application/x-www-form-urlencoded"})
    whole = browser.get("/")
    assert "<p>page-1</p>" in whole.text
    head = browser.send("HEAD", "/")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))
    same = browser.get("/", If_None_Match=whole.headers["ETag"])
    assert (same.status, same.body) == (304, b"")
    assert browser.get("/").body == whole.body


def test_a_form_needs_its_token(site, browser):
    """Without the CSRF token a form is refused, whatever its size; with cookie and token it is taken."""
    body, headers = form({}, {"token.bin": bytes(SMALL)})
    assert browser.send("POST", "/files", body, headers).status == 403
    large, large_headers = form({}, {"token.bin": bytes(LARGE)})
    with site.browser() as another:  # its connection may be closed: nobody read what it sent
        assert another.send("POST", "/files", large, large_headers).status == 403
    token = browser.get("/token").json["token"]
    assert browser.send("POST", "/files", body, {**headers, "X-CSRFToken": token}).status == 201


# ---- the database --------------------------------------------------------------------------------------------------
def test_the_database_in_eight_threads(folder):
    """Eight requests are inside their views of one worker at once, each with a database connection of its own."""
    with serving(APP, folder, "--threads=8", workers=1) as site:
        browsers = [site.browser() for _ in range(7)]
        form_type = {"Content-Type": "application/x-www-form-urlencoded"}
        try:
            for number, browser in enumerate(browsers):
                browser.ask("POST", "/guests?like=eight", f"name=eight-{number}&gate=eight", form_type)
            threads = {site.note(f"eight-{number}") for number in range(len(browsers))}
            with site.browser() as beside:  # in the last thread, while the others hold theirs
                assert len(beside.get("/guests?like=eight").json["guests"]) == len(browsers)
            site.open_gate("eight")
            replies = [browser.reply() for browser in browsers]
        finally:
            for browser in browsers:
                browser.connection.close()
        assert len(threads) == len(browsers)
        assert [reply.status for reply in replies] == [201] * len(browsers), replies
        assert {guest["thread"] for guest in replies[0].json["guests"]} == {int(thread) for thread in threads}
        assert "Traceback" not in site.cluster.log


def test_transactions_from_many_clients(site):
    """What eight clients add up in transactions, in two workers of eight threads, is exact."""
    with site.browser() as browser:
        before = int(browser.send("POST", "/tally").text)
    seen, lock = [], threading.Lock()

    def client():
        with site.browser() as browser:
            mine = [int(browser.send("POST", "/tally").text) - before for _ in range(25)]
        with lock:
            seen.extend(mine)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(seen) == list(range(1, 201))


@pytest.mark.parametrize("path", ["/database", "/files/given.bin", "/json?n=20000", "/stream/open?name=x"])
def test_database_connections_are_given_back(site, path):
    """Django closes a request's connection when the server calls `close()` on the response: nobody holds one."""
    (site.folder / "files" / "given.bin").write_bytes(secrets.token_bytes(LARGE))
    site.open_gate("open")
    with one_per_worker(site.cluster) as browsers:
        for browser in browsers:
            assert browser.get(path).status == 200
            assert browser.send("HEAD", path).status == 200
            assert browser.get("/database").json["was_open"] is False
        site.idle()
        wait_for(lambda: not open_files(site.cluster, site.folder), what="database and files closed")


# ---- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload_by_form(browser, chunked):
    """A form with fields, a small file and one of 5 MiB (which Django puts on disk) arrives byte for byte.

    Also in chunks, though Django reads no body whose length it is not told: so the server has to tell it.
    """
    token = browser.get("/token").json["token"]
    files = {"small.bin": secrets.token_bytes(SMALL), "large.bin": secrets.token_bytes(LARGE)}
    body, headers = form({"title": "Fotos", "note": "ü"}, files, token)
    reply = browser.send("POST", "/files", pieces(body) if chunked else body, headers, chunked)
    assert reply.json == {
        "files": [described(name, data) for name, data in files.items()],
        "form": {"title": "Fotos", "note": "ü"},
    }
    assert browser.get("/who").status == 200


@pytest.mark.parametrize("size", [0, SMALL, 300_000, LARGE])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_upload_as_it_is(browser, size, chunked):
    """A view that reads the request as a file gets a body of any size to its end and no further."""
    data = secrets.token_bytes(size)
    reply = browser.send("PUT", "/files/raw.bin", pieces(data) if chunked else data, chunked=chunked)
    assert reply.json == described("raw.bin", data)
    assert browser.get("/who").status == 200


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_upload_that_waits_for_consent(site, chunked):
    """`curl -T` waits for a 100 (Continue) before it sends a large file, which arrives, in chunks too."""
    data = secrets.token_bytes(LARGE)
    consented, reply = with_consent(site.cluster, "/files/asked.bin", data, chunked)
    assert reply.json == described("asked.bin", data)
    assert consented


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
    """A FileResponse of 5 MiB arrives whole, and a 304 or HEAD sends none of it; Django knows no ranges."""
    data = secrets.token_bytes(LARGE)
    (site.folder / "files" / "down.bin").write_bytes(data)
    whole = browser.get("/files/down.bin")
    assert (whole.status, whole.body == data) == (200, True)
    assert whole.headers["Content-Length"] == str(LARGE)
    assert whole.headers["Content-Disposition"] == 'attachment; filename="down.bin"'
    same = browser.get("/files/down.bin", If_Modified_Since=whole.headers["Last-Modified"])
    assert (same.status, same.body) == (304, b"")
    head = browser.send("HEAD", "/files/down.bin")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(LARGE), b"")
    part = browser.get("/files/down.bin", Range="bytes=0-9")
    assert (part.status, part.body == data) == (200, True)
    assert browser.get("/files/missing.bin").status == 404
    wait_for(lambda: not open_files(site.cluster, site.folder / "files"), what="every file closed")


def test_a_download_that_the_client_gives_up(site):
    """The file is closed when its reader goes away in the middle, and so is the database connection."""
    (site.folder / "files" / "left.bin").write_bytes(bytes(4 * LARGE))
    with site.browser() as browser:
        response = browser.begin("/files/left.bin")
        assert len(response.read(1000)) == 1000
        assert open_files(site.cluster, site.folder / "files")
        response.close()
    wait_for(lambda: not open_files(site.cluster, site.folder), what="files and database closed")


def test_large_json(browser):
    """3 MB of JSON go down, and half as much goes up and comes back."""
    rows = browser.get("/json?n=20000").json
    assert rows == [{"id": number, "text": "ü" * 20} for number in range(20_000)]
    body = json.dumps(rows[:10_000], ensure_ascii=False).encode()
    assert browser.send("POST", "/json", body, {"Content-Type": "application/json"}).json == rows[:10_000]


# ---- streams and slow views ----------------------------------------------------------------------------------------
def test_a_stream_arrives_piece_by_piece(site, browser):
    """The first piece is here while the last one, with a question to the database, is not made yet."""
    response = browser.begin("/stream/pieces?name=Ada")
    assert response.headers["Transfer-Encoding"] == "chunked"
    assert response.readline() == b"first of Ada\n"
    assert not (site.folder / "note-pieces").exists()
    site.open_gate("pieces")
    assert response.read() == b"last of 0\n"
    assert site.note("pieces") == "Ada"
    assert browser.get("/who").status == 200


def test_a_stream_that_nobody_reads_on_is_closed(site):
    """When the client leaves, the generator is closed, its `finally` runs, and nothing is logged as an error."""
    mark = len(site.cluster.log)
    with site.browser() as browser:
        assert len(browser.begin("/endless/gone").read(100_000)) == 100_000
    assert site.note("gone") == "closed"
    site.idle()
    assert "Traceback" not in site.log_since(mark)


def test_a_blocking_view_beside_fast_ones(folder):
    """One worker answers 100 fast requests while a view of it waits, and says that it is multithreaded."""
    with serving(APP, folder, "--threads=8", workers=1) as site, site.browser() as slow, site.browser() as fast:
        slow.ask("GET", "/wait/door")
        pid = int(site.note("door"))
        for _ in range(100):
            assert fast.get("/who").json == {"pid": pid, "multithread": True}
        site.open_gate("door")
        assert slow.reply().text == "passed"


# ---- what goes wrong -----------------------------------------------------------------------------------------------
def test_error_pages(site, browser):
    """A 404 and a 500 are the app's own pages; the traceback is in the log, not on the page; the connection lives."""
    mark = len(site.cluster.log)
    missing = browser.get("/nothing/here")
    assert (missing.status, missing.text) == (404, "<h1>No such page</h1>")
    for _ in range(3):
        broken = browser.get("/crash")
        assert (broken.status, broken.text) == (500, "<h1>Something broke</h1>")
        assert browser.send("HEAD", "/crash").status == 500
        assert browser.get("/who").status == 200
    assert site.log_since(mark).count("RuntimeError: the guest book is on fire") == 6


def test_a_host_that_is_not_ours(site, browser):
    """A Host outside ALLOWED_HOSTS is the app's 400 page, on a connection that goes on."""
    reply = browser.get("/slashed", Host="evil.example")
    assert (reply.status, reply.text) == (400, "<h1>We did not understand you</h1>")
    site.cluster.wait_log("Invalid HTTP_HOST header: 'evil.example'")
    assert browser.get("/slashed/").status == 200


def test_a_stream_that_breaks_is_no_whole_response(site, browser):
    """An error after the first piece cuts the connection, and its traceback is logged with the request."""
    mark = len(site.cluster.log)
    response = browser.begin("/torn")
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()
    site.cluster.wait_log("RuntimeError: the pen broke")
    assert "GET /torn" in site.log_since(mark)

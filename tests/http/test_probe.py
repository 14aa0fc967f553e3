"""The health check: one request through an engine, and what is said of its answer."""

import threading

import pytest
from http_rig import giving, open_fds, plain, until

from zcluster.http import Limits, Probe


def checked(app, path="/health?deep=1", **options):
    """Run a check to its end; returns what failed, and the codes of SystemExit."""
    threads, fds = set(threading.enumerate()), open_fds()
    ended, exits = threading.Event(), []
    probe = Probe(app, path, ended.set, exits.append, Limits(), **{"threads": 4, "tls": False, **options})
    assert not probe.begun
    probe.start()
    assert probe.begun
    assert ended.wait(20)
    assert probe.ended
    until(lambda: set(threading.enumerate()) <= threads)
    assert open_fds() == fds
    return probe.failure, exits


RAISED = "GET /: the application raised"


def raising(environ, start_response):
    raise RuntimeError("no database")


def late(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"half an answer"
    raise RuntimeError("no database")


def leaving(environ, start_response):
    raise SystemExit(9)


def test_an_app_that_is_well():
    """It sees a plain GET from this host; 200 is all that is asked for, however long the answer is."""
    seen = []

    def app(environ, start_response):
        seen.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return giving([b"x" * 4_000_000])(environ, lambda *_: None)

    assert checked(app) == ("", [])
    (environ,) = seen
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("GET", "/health", "deep=1")
    assert (environ["HTTP_HOST"], environ["wsgi.url_scheme"], environ["wsgi.multithread"]) == (
        "localhost",
        "http",
        True,
    )
    assert checked(app, tls=True, threads=1) == ("", [])
    assert (seen[1]["wsgi.url_scheme"], seen[1]["SERVER_PORT"], seen[1]["wsgi.multithread"]) == (
        "https",
        "443",
        False,
    )


NOT_OK = {
    "503": (plain(b"no database\n", "503 Down"), "/", "'503 Down', not 200: 'no database'"),
    "204": (plain(b"", "204 No Content"), "/", "'204 No Content', not 200"),
    "raises": (raising, "/", f"'500 Internal Server Error', not 200\n{RAISED} (answered 500)\nTraceback"),
    "breaks off": (late, "/", f"'200 OK', but went wrong\n{RAISED} (the connection is cut)\nTraceback"),
    "refused": (plain(), "/ HTTP/3\r\nX:", "'400 Bad Request', not 200: 'Bad Request: "),
}


@pytest.mark.parametrize(("app", "path", "text"), NOT_OK.values(), ids=NOT_OK)
def test_an_app_that_is_not(app, path, text):
    """What failed names the path and the status, with what the app said, or its traceback."""
    failure, exits = checked(app, path)
    assert failure.startswith(f"the health check failed: GET {path} (Host: localhost) was answered {text}"), failure
    assert exits == []
    if "Traceback" in text:
        assert failure.endswith("RuntimeError: no database")


def test_an_app_that_leaves():
    """SystemExit is passed on, as from any request."""
    failure, exits = checked(leaving)
    assert "500" in failure
    assert exits == [9]

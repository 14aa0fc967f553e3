"""Access logs for tests: made, started, closed, and nothing of them left."""

import logging
import subprocess
import sys
import textwrap
import threading

import pytest
from http_rig import Records, open_fds

from zcluster.http.access import AccessLog

COMBINED = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'
OK = "HTTP/1.1 200 OK\r\n"
FIELDS = 'Content-Type: text/html\r\nETag: "v1"\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n'
ENVIRON = {
    "REMOTE_ADDR": "192.0.2.7",
    "REQUEST_METHOD": "GET",
    "RAW_URI": "/a%20b?x=1",
    "PATH_INFO": "/a b",
    "QUERY_STRING": "x=1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "example.com",
    "HTTP_REFERER": "http://example.com/",
    "HTTP_USER_AGENT": "curl/8.5",
    "HTTP_AUTHORIZATION": "Basic am9lOnNlY3JldA==",  # joe:secret
    "CONTENT_TYPE": "text/plain",
    "wsgi.url_scheme": "http",
    "wsgi.multithread": True,
    "wsgi.input": object(),
}


@pytest.fixture
def log_records():
    """A logger of its own, and what was logged on it."""
    kept = Records()
    logger = logging.Logger("access-test")
    logger.addHandler(kept)
    kept.logger = logger
    return kept


@pytest.fixture
def make_log(tmp_path, log_records):
    """Started logs, closed at the end; no thread and no descriptor stays."""
    before = open_fds()
    made = []

    def make_log(format=COMBINED, target=None, start=True):
        log = AccessLog(str(target or tmp_path / "access.log"), format, log=log_records.logger)
        made.append(log)
        if start:
            log.start()
        return log

    yield make_log
    for log in made:
        log.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "zcluster-access-log"]
    assert open_fds().keys() == before.keys()


def run_script(text, *arguments, **more):
    """Run Python with the names that these tests use; returns the finished process."""
    head = f"""
        import os, sys, threading
        from zcluster.http.access import AccessLog
        ENVIRON = {{"REMOTE_ADDR": "192.0.2.7", "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1"}}
        def note(log, target):
            log.note({{**ENVIRON, "RAW_URI": target}}, {OK!r}, "", 1, 0.0)
    """
    program = textwrap.dedent(head) + textwrap.dedent(text)
    keywords = {"capture_output": True, "text": True, "timeout": 100, **more}
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], **keywords)

"""A small WSGI app for the tests of the handle and the command line: it counts, and tells who answered."""

import os

from zcluster import Counter, worker

requests = Counter("requests")


def app(environ, start_response):
    """Answer "ID PID TOTAL"."""
    body = f"{worker.id} {os.getpid()} {requests.incr()}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Factory:
    """Apps that are no plain functions."""

    @staticmethod
    def nested(environ, start_response):
        """An app that is found by its qualified name."""
        return app(environ, start_response)


def broken():
    """A factory that fails."""
    raise RuntimeError("the database is on fire")

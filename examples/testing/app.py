"""Counts its visits exactly, on any number of workers."""

import os

from werkzeug import Request, Response

from zcluster import Counter

visits = Counter("visits")


@Request.application
def app(request: Request) -> Response:
    return Response(f"Visit {visits.incr()}, served by process {os.getpid()}.\n")

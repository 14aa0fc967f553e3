"""Says back what it was asked, counts, and does what a client may meet."""

import itertools
import json
import os
import threading

from werkzeug import Request, Response

from zcluster import Counter

requests = Counter("requests")


def parts(then):
    """A body in parts: the second comes at once, never ends, or does not come because the worker dies."""
    yield b"first"
    if then == "endless":
        yield from itertools.repeat(b"x" * 1000)
    if then == "cut":
        os._exit(3)
    yield b"second"


def told(request):
    """What there is to a request, as JSON."""
    files = {name: file.read().decode() for name, file in request.files.items()}
    return json.dumps(
        {
            "method": request.method,
            "target": request.environ["REQUEST_URI"],
            "host": request.host,
            "headers": dict(request.headers),
            "form": request.form,
            "files": files,
            "data": request.get_data(as_text=True),
            "cookies": request.cookies,
            "pid": os.getpid(),
        }
    )


@Request.application
def app(request):
    requests.incr()
    match request.path:
        case "/chunked" | "/endless" | "/cut":
            return Response(parts(request.path[1:]))
        case "/short":
            return Response(parts("cut"), headers={"Content-Length": "99"})
        case "/there":
            return Response(status=302, headers={"Location": "/here?yes=1"})
        case "/login":
            response = Response()
            response.set_cookie("user", "ada")
            return response
        case "/sleep":
            threading.Event().wait(60.0)
        case "/print":
            print("printed by the app", flush=True)
    return Response(told(request), content_type="application/json")

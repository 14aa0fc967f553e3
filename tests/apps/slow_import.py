"""An app whose import takes half a minute, and says that it has begun."""

import sys
import threading

print("the import has begun", file=sys.stderr, flush=True)
threading.Event().wait(30)


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"at last"]

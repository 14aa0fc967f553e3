"""Tells who its client is; and does, by path, what an access log must get right."""

import json
import os


def client(environ):
    keys = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "HTTP_X_FORWARDED_FOR")
    return json.dumps({key: environ[key] for key in keys if key in environ}).encode()


def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/raise":
        raise RuntimeError("as asked")
    if path == "/fork":
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    if path == "/fork-exit":  # returns from the request in the child, which the engine ends
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
    if path == "/missing":
        start_response("404 Nothing Here", [("Content-Type", "text/plain")])
        return [b"nothing"]
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Answer", "42")])
    if path == "/stream":
        return (b"x" * 1000 for _ in range(100))
    return [client(environ)]

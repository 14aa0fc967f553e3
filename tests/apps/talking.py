"""Prints each path to the terminal it was started in; /read tries to read from there, and from its stdin."""

import os
import sys


def app(environ, start_response):
    print(f"asked for {environ['PATH_INFO']}", file=sys.stderr, flush=True)
    answer = "printed"
    if environ["PATH_INFO"] == "/read":
        terminal = os.open("/dev/tty", os.O_RDONLY)
        try:
            answer = f"read {os.read(terminal, 100)}"
        except OSError as error:
            answer = f"cannot read: {error.strerror}"
        finally:
            os.close(terminal)
        answer += f"; stdin: {os.read(0, 100)}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()]

"""Does to its process at import what real apps do: ignores its children's ends, and changes the directory."""

import os
import signal

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.chdir("/")


def app(environ, start_response):
    if environ["PATH_INFO"] == "/exit":
        os._exit(int(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ignored" if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN else b"not ignored"]

"""Does at import what HAZARD says; $HAZARD_DIR/imports and /exits list the pids that imported, and that ended, it."""

import atexit
import os
import signal
import socket
import sys
import threading

from zcluster import Counter

HAZARD, DIR = os.environ.get("HAZARD", ""), os.environ["HAZARD_DIR"]
SLOT = int(os.environ.get("ZCLUSTER_WORKER_SLOT", "-1"))  # -1: in the zygote

requests = Counter("requests")


def note(name):
    fd = os.open(f"{DIR}/{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d\n" % os.getpid())
    os.close(fd)


def poll_for_ever():
    while True:
        threading.Event().wait(3600)


def never_ending_import():
    threading.Event().wait()


note("imports")
atexit.register(note, "exits")
if HAZARD == "thread":
    threading.Thread(target=poll_for_ever, name="poller", daemon=True).start()
if HAZARD == "connection":
    connection = socket.create_connection(("127.0.0.1", int(os.environ["HAZARD_PORT"])))
if HAZARD == "count":
    requests.incr()
if HAZARD == "endless":
    never_ending_import()
if HAZARD == "endless-in-worker" and SLOT >= 0:
    never_ending_import()
if HAZARD == "slot-1-dies" and SLOT == 1 and not os.path.exists(f"{DIR}/repaired"):
    os.kill(os.getpid(), signal.SIGKILL)
if HAZARD == "dies":
    os._exit(9)


def app(environ, start_response):
    path, argument = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/exit":
        note("asked-to-exit")
        sys.exit(int(argument) if argument else None)
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/pid":
        return [b"%d" % os.getpid()]
    if path == "/name":
        return ["{}:{}".format(*connection.getsockname()).encode()]
    if path == "/threads":
        return [" ".join(thread.name for thread in threading.enumerate()).encode()]
    if path == "/haunt":
        threading.Thread(target=poll_for_ever, name="ghost").start()  # not a daemon: the interpreter waits for it
    return [b"%d" % requests.incr()]

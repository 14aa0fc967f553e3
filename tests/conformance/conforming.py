"""The app of these tests: PATH names a function below, QUERY_STRING its argument; messages are orders or echoed."""

import os
import re
import signal
import subprocess
import sys
import threading

from zcluster import Counter, worker

requests = Counter("requests")
PID_AT_IMPORT = os.getpid()
exit_codes = []  # what the next disconnect ends with


def index(_):
    """Who answers."""
    return str(worker.id)


def pid(_):
    """The process that answers."""
    return str(os.getpid())


def count(_):
    """The total after one more."""
    return str(requests.incr())


def value(_):
    """The total."""
    return str(requests.value)


def imported_by(_):
    """The process that has imported this module."""
    return str(PID_AT_IMPORT)


def environ_of(name):
    """A variable of this worker's environment."""
    return os.environ.get(name, "-")


def environ_of_subprocess(_):
    """What a program that we execute thinks it is, and the variables of ours that it has."""
    code = "import zcluster; print(bool(zcluster.worker))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def held(path):
    """Begin an answer, and end it when the test says so."""
    yield f"{worker.id:8d}".encode()
    with open(path, "rb", buffering=0) as gate:
        gate.read(1)
    yield b"whole"


def leave(_):
    """Disconnect from within."""
    worker.disconnect()
    return "leaving"


def terminate(_):
    """A worker's own TERM."""
    os.kill(os.getpid(), signal.SIGTERM)
    return "terminating"


def exit_with(code):
    """SystemExit in a request."""
    sys.exit(int(code))


def os_exit(code):
    """The hard way."""
    os._exit(int(code))


def spin(_):
    """Say who answers, and go into an endless loop of Python's."""
    yield f"{worker.id:8d}".encode()
    while True:
        pass


def regex(_):
    """Say who answers, and go into an endless loop in C that holds the interpreter."""
    yield f"{worker.id:8d}".encode()
    re.match(r"(a+)+$", "a" * 60 + "b")


def flood(argument):
    """Send COUNT messages of BYTES bytes, and leave: by exit, disconnect, or not at all."""
    number, size, how = argument.split(",")
    for sent in range(int(number)):
        worker.send({"number": sent, "body": b"x" * int(size)})
    if how == "exit":
        sys.exit(0)
    if how == "disconnect":
        worker.disconnect()
    return how


def app(environ, start_response):
    """Answer what the function that PATH names returns or yields."""
    function = globals()[environ["PATH_INFO"].strip("/") or "index"]
    answer = function(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer.encode()] if isinstance(answer, str) else answer


@worker.on("message")
def on_message(payload):
    """Do what is ordered; send back anything else."""
    order = payload.get("do") if isinstance(payload, dict) else None
    if order == "raise":
        raise ValueError("as ordered")
    if order == "exit code":
        exit_codes.append(payload["code"])
    elif order == "flood":
        for number in range(payload["count"]):
            worker.send(number)
    elif order == "tell who":
        worker.send({"thread": threading.current_thread().name})
    else:
        worker.send(payload)


@worker.on("disconnect")
def on_disconnect():
    """Say so, and decide the exit code if a test wants that."""
    worker.send("disconnecting")
    if exit_codes:
        sys.exit(exit_codes[-1])

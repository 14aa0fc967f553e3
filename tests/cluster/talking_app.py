"""A WSGI app whose workers talk: what they are told decides what they say and how they end."""

import os
import sys
import threading

from zcluster import request, subscribe, worker

received = []
release = threading.Event()


@worker.on("message")
def on_message(payload):
    """Do what the message says; anything else is sent back."""
    received.append(payload)
    match payload:
        case {"say": count, "then": end}:
            for number in range(count):
                worker.send(number)
            if end == "disconnect":
                worker.disconnect()
            elif end == "exit":
                sys.exit(0)
            elif end == "die":
                os._exit(42)
        case {"ask": target, "about": what}:
            return request(target, what, 10)
        case "environment":
            worker.send([os.environ.get("COLOR"), os.environ.get("SHAPE")])
        case "release":
            release.set()
        case bytes():
            pass
        case _:
            worker.send(payload)
    return None


@worker.on("disconnect")
def on_disconnect():
    """Say how much has come, as the last words."""
    worker.send({"received": len(received), "connected": worker.is_connected(), "pid": os.getpid()})


@subscribe("roll call")
def on_roll_call(payload):
    """Answer by name."""
    return [payload, worker.slot]


def app(environ, start_response):
    """Answer at once; /slow waits for the message "release"."""
    if environ["PATH_INFO"] == "/slow":
        worker.send("slow")
        release.wait(20)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]

"""Workers that send to each other what they are told, and remember what has come.

GET /ID?COMMAND (JSON, percent-encoded) has worker ID carry it out and answers with its reply, as JSON.
"""

import json
import sys
import threading
import time
import urllib.parse
import zlib

from zcluster import current, publish, request, subscribe, worker
from zcluster.core.mail import MASTER
from zcluster.core.outbox import QueueFull
from zcluster.errors import BusError

arrived = []  # [tag, number] of what was as it should be
lost = []
results = []


def body_of(number, size):
    """Different for each number."""
    return (b"%d," % number * (size // 2 + 1))[:size]


def send_all(to, tag, count, size):
    """Send so many; when the queue is full, wait for what was sent."""
    for number in range(count):
        body = body_of(number, size)
        while True:
            try:
                current.mailbox.send(f"worker:{to}", ["data", tag, number, body, zlib.crc32(body)])
                break
            except QueueFull:
                current.mailbox.flush().result(60)


def send_until_gone(to):
    """Send until that fails; leaves the first error's name, and when (time.time) it came."""
    failed, pause = [], threading.Event()

    def note(future):
        if future.exception() is not None:
            failed.append([type(future.exception()).__name__, time.time()])

    for number in range(10_000):
        current.mailbox.send(f"worker:{to}", ["data", "gone", number, b"", 0]).add_done_callback(note)
        if failed:
            break
        pause.wait(0.005)
    results.append(failed[0])


@worker.on("message")
def take(message):
    """A piece of data, or a command."""
    match message:
        case ["data", tag, number, body, crc]:
            if zlib.crc32(body) == crc:
                arrived.append([tag, number])
        case {"do": "send", "to": to, "bursts": bursts, "then": then}:
            for tag, count, size in bursts:
                send_all(to, tag, count, size)
            if then == "exit":
                sys.exit(0)
            if then == "disconnect":
                worker.disconnect()
            return True
        case {"do": "arrived"}:
            return [arrived, lost]
        case {"do": "until gone", "to": to}:
            threading.Thread(target=send_until_gone, args=(to,)).start()
            return True
        case {"do": "results"}:
            return results
        case {"do": "publish", "tag": tag, "count": count}:
            for number in range(count):
                publish("news", [tag, number], reliable=number % 2 == 0)
            current.mailbox.flush(MASTER).result(60)  # of no worker's: one of them may be stopped, and owe a Got
            return True
        case {"do": "follow"}:
            subscribe("news", on_lost=lost.append)(arrived.append)
            return True
    return None


def app(environ, start_response):
    """Pass a command on."""
    id_, command = environ["PATH_INFO"].strip("/"), json.loads(urllib.parse.unquote(environ["QUERY_STRING"]))
    try:
        answer = {"reply": request(int(id_), command, 60.0)}
    except BusError as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]

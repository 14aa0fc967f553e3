"""Requests that are under way when a cluster is stopped, and what a calm end looks like."""

import contextlib
import re
import signal
import time
from pathlib import Path

from harness import running, wait_for

# A stop is a few round trips, below 0.2 s on an idle machine; a worker that is still starting is given 2 s. The rest
# is for a machine that is busy elsewhere: what nobody may wait for are the 30 s of a graceful stop.
SOON_S = 20.0
TERM_BIT = 1 << (signal.SIGTERM - 1)
ALARMS = ("Traceback", "ERROR", "CRITICAL")


def blocks_term(cluster):
    """Has the launcher blocked SIGTERM (proc(5), status)? Not any more, either, when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{cluster.process.pid}/status").read_text().splitlines():
            if line.startswith("SigBlk:"):
                return bool(int(line.split()[1], 16) & TERM_BIT)
    return False


ONCE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEPT = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def ask(cluster, path):
    """A connection with its one request on its way; `answer` takes the rest."""
    sock = cluster.connect(20.0)
    sock.sendall(ONCE.replace(b" / ", f" {path} ".encode()))
    return sock


def answer(sock):
    """The whole answer to the request on this connection, which is closed then; returns its body."""
    with sock:
        return next_answer(sock)


def next_answer(sock):
    """The same on a connection that stays open."""
    data = b""
    while not (found := re.search(rb"\r\nContent-Length: (\d+)\r\n(?:.*\r\n)?\r\n", data, re.DOTALL)) or len(
        data
    ) < found.end() + int(found[1]):
        part = sock.recv(4096)
        assert part, f"closed after {data!r}"
        data += part
    assert data.startswith(b"HTTP/1.1 200 OK\r\n"), data
    return data[found.end() :]


def all_answered(socks):
    """Each request has its answer, and each was counted (two that are counted at once may see the same total)."""
    totals = [int(answer(sock)) for sock in socks]
    assert max(totals) == len(totals), sorted(totals)
    return True


class Held:
    """A cluster in whose workers requests are held until `go`."""

    def __init__(self, folder, *options, **more):
        self.folder = folder
        self.context = running("holding:app", *options, env={"HOLD_DIR": str(folder)}, **more)

    def __enter__(self):
        self.cluster = self.context.__enter__()
        return self.cluster, self

    def __exit__(self, *what):
        return self.context.__exit__(*what)

    def hold(self, number):
        """Ask until so many workers hold a request; returns the connections (one worker may have got several)."""
        socks, asked_at = [], 0.0

        def all_hold():
            nonlocal asked_at
            held = [path.name.split("-")[1] for path in self.folder.glob("held-*")]
            if len(set(held)) >= number:
                return True
            # Idle workers race for each. When all are held the next may come; or when one waits behind another.
            if len(socks) <= len(held) or time.monotonic() > asked_at + 0.2:
                socks.append(ask(self.cluster, "/hold"))
                asked_at = time.monotonic()
            return False

        wait_for(all_hold)
        return socks

    @property
    def pids(self):
        """The workers that hold requests."""
        return {int(path.name.split("-")[1]) for path in self.folder.glob("held-*")}

    def go(self):
        (self.folder / "go").touch()


def is_calm(log):
    """Nothing in it alarms."""
    assert not [line for line in log.splitlines() if any(word in line for word in ALARMS)], log
    return True

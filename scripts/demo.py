"""The counter example on all cores, real requests from several client processes, a SIGKILL in the middle, a table.

Exit code 1 when a response was not counted (total < responses), when a connection was refused, or when a killed
worker was not replaced.
"""

import argparse
import json
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ZCLUSTER = [sys.executable, "-m", "zcluster"]
START_TIMEOUT_S = 30.0
PROGRESS_S = 0.25


def client(port: int, seconds: float, tell: Connection) -> None:
    """Keep-alive requests until the time is up; a connection that a dying worker took along is opened again."""
    import socket

    request = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n"
    responses = refused = broken = 0
    tell.send((responses, refused, broken))  # here we are: an interpreter takes its time to start
    said = time.monotonic()
    until = said + seconds
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), 5.0) as sock:
                answers = sock.makefile("rb")
                while time.monotonic() < until:
                    sock.sendall(request)
                    length = 0
                    line = answers.readline()
                    if not line.startswith(b"HTTP/1.1 200"):
                        raise ConnectionError("no response")
                    while (line := answers.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    if not answers.read(length).startswith(b"Worker in process"):
                        raise ConnectionError("a cut response")
                    responses += 1
                    if time.monotonic() - said > 0.2:
                        said = time.monotonic()
                        tell.send((responses, refused, broken))
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            broken += 1  # it was being answered by the worker that was killed
    tell.send((responses, refused, broken))
    tell.close()


def zcluster(*words: str) -> dict[str, object]:
    out = subprocess.run([*ZCLUSTER, *words], capture_output=True, check=True, timeout=20)
    answer: dict[str, object] = json.loads(out.stdout)
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--kills", type=int, default=1)
    options = parser.parse_args()

    name = f"demo-{os.getpid()}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*ZCLUSTER, "run", "app:app", "--bind", "127.0.0.1:0", "--name", name],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT / "examples" / "counter",
        )
        try:
            return run(server, name, options)
        except Exception:
            log.seek(0)
            sys.stderr.buffer.write(log.read())
            raise
        finally:
            server.terminate()
            server.wait(30)


def run(server: "subprocess.Popen[bytes]", name: str, options: argparse.Namespace) -> int:
    assert server.stdout is not None
    ready, _, _ = select.select([server.stdout], [], [], START_TIMEOUT_S)
    line = server.stdout.readline().decode() if ready else ""
    found = re.search(r"ready on http://[^:]+:(\d+) \((\d+) workers", line)
    if not found:
        raise RuntimeError(f"the counter example did not start: {line!r}")
    print(line.strip(), flush=True)
    port, workers = int(found[1]), int(found[2])

    pipes, clients = [], []
    context = multiprocessing.get_context("spawn")
    for _ in range(options.clients):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=client, args=(port, options.seconds, theirs), daemon=True)
        process.start()
        theirs.close()
        clients.append(process)
        pipes.append(ours)
    counts = {}
    for pipe in pipes:
        if not pipe.poll(START_TIMEOUT_S):
            raise RuntimeError("a client did not start")
        counts[pipe] = pipe.recv()
    started = time.monotonic()
    kill_at = [started + options.seconds * (i + 1) / (options.kills + 1) for i in range(options.kills)]
    killed: list[int] = []
    shown = 0.0
    open_pipes = set(pipes)
    while open_pipes:
        timeout = min([at - time.monotonic() for at in kill_at] + [0.2])
        for pipe in multiprocessing.connection.wait(list(open_pipes), max(0.0, timeout)):
            try:
                counts[pipe] = pipe.recv()
            except EOFError:
                open_pipes.discard(pipe)
        if kill_at and time.monotonic() >= kill_at[0]:
            kill_at.pop(0)
            victims = [w["pid"] for w in zcluster("ps", "--json", "--name", name)["workers"] if w["state"] == "ready"]
            os.kill(victims[len(killed) % len(victims)], signal.SIGKILL)
            killed.append(victims[len(killed) % len(victims)])
            print(f"\nkill -9 {killed[-1]}", flush=True)
        responses, refused, broken = (sum(column) for column in zip(*counts.values(), strict=True))
        elapsed = time.monotonic() - started
        if elapsed < shown + PROGRESS_S and open_pipes:
            continue
        shown = elapsed
        print(f"\r{elapsed:5.1f} s  {responses:>9,} responses  {responses / elapsed:>8,.0f}/s", end="", flush=True)
    for process in clients:
        process.join()
    print()
    return report(name, workers, killed, responses, refused, broken, options.seconds)


def report(
    name: str, workers: int, killed: list[int], responses: int, refused: int, broken: int, seconds: float
) -> int:
    """The table and the verdict."""
    deadline = time.monotonic() + 10
    while True:
        state = zcluster("ps", "--json", "--name", name)
        ready = [w for w in state["workers"] if w["state"] == "ready" and w["pid"] not in killed]
        if len(ready) == workers or time.monotonic() > deadline:
            break
    replacements = sum(w["restarts"] for w in ready)
    total = state["counters"].get("requests", 0)
    for label, value in (
        ("responses received", responses), ("total counted", total), ("kills", len(killed)),
        ("replacements", replacements), ("connections refused", refused), ("responses cut by the kill", broken),
        ("requests/s", round(responses / seconds)),
    ):  # fmt: skip
        print(f"  {label:<26}{value:>12,}")
    faults = []
    if total < responses:
        faults.append(f"{responses - total} responses were not counted")
    if refused:
        faults.append(f"{refused} connections were refused")
    if replacements < len(killed) or len(ready) != workers:
        faults.append("a killed worker was not replaced")
    print("  verdict: " + ("; ".join(faults) if faults else "every response was counted, no connection was refused"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

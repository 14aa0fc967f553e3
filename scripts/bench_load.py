"""The load: wrk, one thread of it, told to print what we need by scripts/peers/load.lua."""

import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench_processes import BenchError, Server, end_with_parent

SCRIPT = Path(__file__).parent / "peers" / "load.lua"
OVERTIME_S = 60.0  # wrk waits for the answers that are due: 30 s at most, as it is told below
# With Host, which wrk sends by itself, the twelve that a desktop browser sends with a plain navigation.
BROWSER = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Connection: keep-alive",
    "Referer: http://127.0.0.1/overview?sort=date&page=2",
    "Cookie: session=eyJ1c2VyIjo0NzExfQ.aKx1Zw.Zm9ydHktdHdvLWlzLXRoZS1hbnN3ZXI; theme=dark; consent=1",
    "Upgrade-Insecure-Requests: 1",
    "Sec-Fetch-Dest: document",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Site: same-origin",
)


@dataclass(frozen=True)
class Stream:
    """Clients that ask for one path as fast as they are answered, each on a keep-alive connection of its own."""

    path: str = "/"
    connections: int = 64
    headers: Sequence[str] = ()
    fresh_paths: bool = False  # a number is added to `path`, another one for each request


@dataclass(frozen=True)
class Answers:
    """What one stream got."""

    requests: int
    seconds: float
    p50_s: float
    p99_s: float
    p999_s: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def load(server: Server, seconds: float, *streams: Stream) -> list[Answers]:
    """All streams at once against `server` for so long. A single failed request is an error: its figures are void."""
    with ExitStack() as stack:
        started = [stack.enter_context(background(server, seconds, stream)) for stream in streams or (Stream(),)]
        outputs = [process.communicate(timeout=seconds + OVERTIME_S)[0].decode() for process in started]
    return [_read(server, output) for output in outputs]


@contextmanager
def background(server: Server, seconds: float, stream: Stream) -> "Iterator[subprocess.Popen[bytes]]":
    """A stream that goes on while the block runs, for so long at most."""
    wrk = shutil.which("wrk")
    if not wrk:
        raise BenchError("wrk is not installed")
    with _start(wrk, server, seconds, stream) as process:
        try:
            yield process
        finally:
            process.kill()


def _start(wrk: str, server: Server, seconds: float, stream: Stream) -> "subprocess.Popen[bytes]":
    # wrk takes whole seconds only.
    words = [wrk, "-t1", f"-c{stream.connections}", f"-d{max(1, round(seconds))}s", "--timeout=30s", f"-s{SCRIPT}"]
    for header in stream.headers:
        words += ["-H", header]
    environ = dict(os.environ)
    if stream.fresh_paths:
        environ["BENCH_FRESH_PATHS"] = stream.path
    return subprocess.Popen(
        [*words, f"http://127.0.0.1:{server.port}{stream.path}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, preexec_fn=end_with_parent,
    )  # fmt: skip


def disturbed(server: Server, limit_s: float, stream: Stream, disturb: Callable[[], object]) -> tuple[int, int]:
    """Load until `disturb()` is over, for so long at most: the requests that were answered, and those that failed.

    wrk counts as failed: connections refused or cut before the answer was there, time-outs, a status of 400 or more.
    """
    with background(server, limit_s, stream) as process:
        disturb()
        process.send_signal(signal.SIGINT)  # wrk then prints what it has
        found = _found(process.communicate(timeout=OVERTIME_S)[0].decode())
    if "requests" not in found:
        raise BenchError(f"{server.name}: wrk did not say what it got")
    return int(found["requests"]), int(found["failed"])


def _found(output: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(-?\d+)", output.rpartition("bench ")[2]))


def _read(server: Server, output: str) -> Answers:
    found = _found(output)
    if "requests" not in found or found["failed"] != "0":
        raise BenchError(f"{server.name}, port {server.port}, under load:\n{output}")
    if found["requests"] == "0":  # nobody was answered in time: a figure, if not a good one
        return Answers(0, int(found["duration_us"]) / 1e6, math.inf, math.inf, math.inf)
    micro = {key: int(value) / 1e6 for key, value in found.items()}
    return Answers(int(found["requests"]), micro["duration_us"], micro["p50_us"], micro["p99_us"], micro["p999_us"])

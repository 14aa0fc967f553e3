"""Connections: how they spread over the workers, and what an idle one weighs."""

import math
import resource
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from bench_load import Stream, background, load
from bench_processes import BenchError, Server, running, until
from bench_report import in_turn
from bench_servers import Bench, granian, nginx, ps, zcluster

CONNECTIONS, WORKERS = 64, 4
IDLE = 10_000
SPARE_FILES = 200  # descriptors that we and a worker need for everything else
WARM_S = 1.0
GRANIAN_MANY = ("--backlog=4096", "--backpressure=10000")  # its default is 512 connections for each of 2 workers
BATCH = 250  # connections opened before their answers are read: well below any backlog
TOLD_LIMIT_S = 8.0  # `ps` shows what workers said in their last heartbeat, 1 s apart, more under full load
ASK = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


def held(server: Server) -> list[int]:
    """Connections of each worker."""
    return [int(worker["connections"]) for worker in ps(server)["workers"]]


def spread(server: Server) -> float:
    """Most loaded / least loaded, once `ps` shows all connections; nobody at all is infinitely uneven."""
    seen: list[int] = []

    def all_there() -> bool:
        seen[:] = held(server)
        return sum(seen) == CONNECTIONS

    if not until(all_there, TOLD_LIMIT_S):
        raise BenchError(f"ps shows {seen} connections, {CONNECTIONS} are open")
    return max(seen) / min(seen) if min(seen) else math.inf


def spread_under_load(server: Server) -> float:
    """The spread while wrk's clients keep all workers busy."""
    if not until(lambda: sum(held(server)) == 0, TOLD_LIMIT_S):
        raise BenchError(f"connections stay open that nobody holds: {held(server)}")
    with background(server, 2 * TOLD_LIMIT_S, Stream(connections=CONNECTIONS)):
        return spread(server)


def spread_at_rest(server: Server) -> float:
    """The spread of connections opened one after the other, each with one request."""
    if not until(lambda: sum(held(server)) == 0, TOLD_LIMIT_S):
        raise BenchError(f"connections stay open that nobody holds: {held(server)}")
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            connection.sendall(ASK)
            if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
                raise BenchError(f"{server.name} did not answer")
        return spread(server)


def balance(bench: Bench) -> None:
    """64 keep-alive connections over 4 workers."""
    program = zcluster("apps:raw", "--keep-alive=60", workers=WORKERS)
    with running(program) as server:
        kinds = {"under load": partial(spread_under_load, server), "at rest": partial(spread_at_rest, server)}
        results = in_turn(kinds, bench.rounds)
    for kind, values in results.items():
        bench.report.row("balance", f"{kind}: most / least loaded, median", {"zcluster": values})
        bench.report.row("balance", f"{kind}: the worst round", {"zcluster": [max(values)]})
        bench.report.goal("balance", f"{kind}: most / least loaded, worst", max(values), 1.25)


@contextmanager
def idle_connections(server: Server, wanted: int) -> Iterator[list[socket.socket]]:
    """Keep-alive connections that were each answered once and ask for nothing more."""
    with ExitStack() as stack:
        opened: list[socket.socket] = []
        while len(opened) < wanted:
            batch = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
                for _ in range(min(BATCH, wanted - len(opened)))
            ]
            for connection in batch:
                connection.sendall(ASK)
            for connection in batch:
                if not connection.recv(65536).startswith(b"HTTP/1.1 200"):
                    raise BenchError(f"no 200 on connection {len(opened)}")
                opened.append(connection)
        yield opened


def weigh(server: Server, wanted: int) -> float:
    """Bytes of all the server's processes for each idle connection."""
    load(server, WARM_S)  # what a first load allocates is no cost of idle connections
    with idle_connections(server, BATCH):
        before = server.pss_bytes()
    with idle_connections(server, wanted) as opened:
        gone = sum(1 for connection in opened if _closed(connection))
        if gone:
            raise BenchError(f"{server.name} closed {gone} of {wanted} idle connections")
        return (server.pss_bytes() - before) / (wanted - BATCH)


def weigh_all(bench: Bench, servers: Mapping[str, Server], wanted: int) -> dict[str, list[float]]:
    """KiB for each connection. One round: memory that was freed stays with a process, a second would see nothing."""
    weights = {}
    for name, server in servers.items():
        try:
            weights[name] = [weigh(server, wanted) / 1024]
        except (BenchError, OSError) as error:
            told = bench.report.fail if name == "zcluster" else bench.report.note
            told(f"{name} could not hold {wanted} idle connections: {error}")
    return weights


def _closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def idle(bench: Bench) -> None:
    """Memory (PSS of all processes, without the kernel's share) of each of 10,000 idle keep-alive connections."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(IDLE, most - SPARE_FILES)
    if wanted < IDLE:
        bench.report.note(f"only {wanted} idle connections: no more than {most} descriptors are allowed (ulimit -n)")
    programs = [
        zcluster("apps:raw", "--keep-alive=600"),
        nginx(bench.tools),
        granian(bench.tools, "apps:raw", *GRANIAN_MANY),
    ]
    with bench.all_running(programs) as servers:
        weights = weigh_all(bench, servers, wanted)
    bench.report.row("idle", "memory for each connection, KiB", weights)
    weight = weights.get("zcluster")
    bench.report.goal("idle", f"KiB for each of {wanted:,} connections", weight[0] if weight else None, 3.0)

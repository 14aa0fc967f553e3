"""How soon a server is there: after its start, after its only worker's death; and what a reload costs clients."""

import http.client
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from bench_load import Stream, disturbed, load
from bench_processes import BenchError, Program, Server, running, until
from bench_servers import Bench, granian, gunicorn, nginx, node, uwsgi, waitress, zcluster

FIRST = "start until the first answer, ms"
REPLACED = "SIGKILL of the only worker until an answer, ms"
LOST = "requests begun until then that got no answer, in all"
ONE_MORE = "memory (PSS) of one more worker, MiB"
FAILED = "failed requests in {} reloads, {}"
RELOAD = "a reload until the last old worker is gone, s"

# Some servers take a second death within seconds for a crash loop: uWSGI pauses (2 s), Granian gives up (5.5 s).
HEALTHY_S = 6.0
REPLACED_LIMIT_S = 15.0  # the slowest takes one second
PACE_S = 0.002  # between two requests after a death; each is a connection of its own
PATIENCE_S = 1.0  # of a client whose request was begun before the replacement answered
RELOAD_LIMIT_S = 15.0  # Granian waits 3.5 s between two workers, by default
BEFORE_S, AFTER_S = 1.0, 0.5  # load around a reload
RELOADS = 2
CLIENTS = 16  # of a reload: enough to keep both cores busy
ASKS = 40  # new connections that find all of two workers
WARM_S = 1.0
KINDS = {
    "keep-alive": Stream(connections=CLIENTS),
    "new connections": Stream(connections=CLIENTS, headers=("Connection: close",)),
}


def programs(bench: Bench, workers: int) -> list[Program]:
    """Each of them answers with the process id of the worker, and replaces one that dies if it can."""
    tools, app = bench.tools, "apps:pid"
    found = [
        zcluster(app, workers=workers, log_level="critical"),
        nginx(tools, workers, body="$pid"),
        node(tools, "pid.js", workers),
        granian(tools, app, "--respawn-failed-workers", workers=workers),  # its default is to end
        gunicorn(tools, app, "--threads=4", workers=workers),
        uwsgi(tools, app, "--threads=2", workers=workers),
    ]
    return [program for program in found if program]


def first_answer(bench: Bench) -> None:
    """Milliseconds from exec to the first 200, asked every 2 ms; the port is given, not read from what it prints."""
    found = [program for program in programs(bench, 2) if program.name != "zcluster"]
    others = [zcluster("apps:pid", log_level="critical", port="{port}"), waitress(bench.tools, "apps:pid")]
    chosen = [others[0], *found, others[1]]

    def once(program: Program) -> float:
        with running(replace(program, workers=0, ready=None)) as server:
            return server.start_s * 1e3

    times = bench.in_turn({program.name: partial(once, program) for program in chosen if program}, bench.rounds)
    bench.report.row("recovery", FIRST, times)


def who(server: Server) -> int:
    """The process that answers on a new connection; 0 when the connection was refused or cut."""
    try:
        return int(server.get("/"))
    except (OSError, http.client.HTTPException):
        return 0


def kill(server: Server) -> tuple[float, int]:
    """Seconds from SIGKILL until a request begun afterwards is answered, and how many begun meanwhile never were.

    A client begins every PACE_S, whatever became of those before: one that hangs does not hide the answer that the
    next one gets.
    """
    pid = who(server)
    asked: dict[socket.socket, float] = {}
    lost, took_s, killed = 0, 0.0, time.monotonic()
    os.kill(pid, signal.SIGKILL)
    with ExitStack() as stack, selectors.DefaultSelector() as ready:
        begun = 0
        while not took_s or (asked and time.monotonic() < killed + took_s + PATIENCE_S):
            now = time.monotonic()
            if not took_s and now >= killed + begun * PACE_S:
                begun += 1
                if client := _ask(server.port):
                    asked[stack.enter_context(client)] = now
                    ready.register(client, selectors.EVENT_READ)
                else:
                    lost += 1
            for key, _ in ready.select(PACE_S / 4):
                client = key.fileobj  # type: ignore[assignment]
                ready.unregister(client)
                del asked[client]
                answer = _answer(client)
                client.close()  # at once, as clients do: gunicorn's thread waits for it
                if not answer:
                    lost += 1
                elif answer != pid and not took_s:
                    took_s = time.monotonic() - killed
            if not took_s and now > killed + REPLACED_LIMIT_S:
                raise BenchError(f"{server.name}: worker {pid} was killed and not replaced in {REPLACED_LIMIT_S:g} s")
    return took_s, lost + len(asked)


def _ask(port: int) -> socket.socket | None:
    """A request on a connection of its own; None when it is refused."""
    client = socket.socket()
    try:
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    except OSError:
        client.close()
        return None
    return client


def _answer(client: socket.socket) -> int:
    """The process that answered; 0 when the connection was cut."""
    try:
        head, _, body = client.recv(65536).partition(b"\r\n\r\n")
        while head and not body.endswith(b"\n"):
            if not (more := client.recv(65536)):
                return 0
            body += more
        return int(body) if head.startswith(b"HTTP/1.1 200") else 0
    except (OSError, ValueError):
        return 0


def kills(bench: Bench) -> None:
    """The only worker of each server, in turn, after a time of health."""
    with bench.all_running(programs(bench, 1)) as servers:
        killed_at = dict.fromkeys(servers, time.monotonic())

        def healthy(name: str) -> tuple[float, int]:
            time.sleep(max(0.0, killed_at[name] + HEALTHY_S - time.monotonic()))
            found = kill(servers[name])
            killed_at[name] = time.monotonic()
            return found

        results = bench.in_turn({name: partial(healthy, name) for name in servers}, bench.rounds)
    bench.report.row("recovery", REPLACED, {name: [s * 1e3 for s, _ in found] for name, found in results.items()})
    bench.report.row("recovery", LOST, {name: [sum(lost for _, lost in found)] for name, found in results.items()})


def reload(server: Server) -> float:
    """SIGHUP, the documented way of all that have one; seconds until no process is left that answered before."""
    old = {who(server) for _ in range(ASKS)} - {0}
    started = time.monotonic()
    server.process.send_signal(signal.SIGHUP)
    if not until(lambda: not old & set(server.family()), RELOAD_LIMIT_S):
        raise BenchError(f"{server.name}: {RELOAD_LIMIT_S:g} s after a SIGHUP old workers were still there")
    return time.monotonic() - started


def reloads(bench: Bench, server: Server) -> dict[str, list[float]]:
    """Requests that failed in reloads at full load, by kind of connection, and how long reloads took."""
    told: dict[str, list[float]] = {}

    def disturb() -> None:
        time.sleep(BEFORE_S)
        told.setdefault(RELOAD, []).append(reload(server))
        time.sleep(AFTER_S)

    for kind, stream in KINDS.items():
        limit_s = BEFORE_S + RELOAD_LIMIT_S + AFTER_S + 5
        failed = [disturbed(server, limit_s, stream, disturb)[1] for _ in range(RELOADS)]
        told[FAILED.format(RELOADS, kind)] = [sum(failed)]
    return told


def all_reloads(bench: Bench) -> None:
    """One server after the other: an idle one beside it would be in the way."""
    rows: dict[str, dict[str, list[float]]] = {FAILED.format(RELOADS, kind): {} for kind in KINDS}
    rows[RELOAD] = {}
    for program in programs(bench, 2):
        if program.name == "Node":
            continue
        try:
            with running(program) as server:
                load(server, WARM_S)
                for measure, values in reloads(bench, server).items():
                    rows[measure][program.name] = values
        except BenchError as error:
            bench.told(program.name, error)
    for measure, figures in rows.items():
        bench.report.row("recovery", measure, figures)
    bench.report.note("Node's cluster has no reload: a program has to disconnect and fork its workers itself")
    bench.report.note("waitress is one process: nothing replaces it when it dies, and it has no reload")


def one_more(bench: Bench) -> None:
    """What two workers more weigh, halved: a process that is there once is in neither."""

    def weigh(program: Program) -> float:
        with running(program) as server:
            load(server, WARM_S, Stream(connections=16))
            return server.pss_bytes() / 2**20

    two, four = (_each(bench, programs(bench, workers), weigh) for workers in (2, 4))
    bench.report.row("recovery", ONE_MORE, {name: [(four[name] - two[name]) / 2] for name in two if name in four})


def _each(bench: Bench, chosen: Iterable[Program], weigh: Callable[[Program], float]) -> dict[str, float]:
    found = {}
    for program in chosen:
        try:
            found[program.name] = weigh(program)
        except BenchError as error:
            bench.told(program.name, error)
    return found


def recovery(bench: Bench) -> None:
    """Start, death of the only worker, reload under load, one more worker: each server as its documentation says."""
    first_answer(bench)
    kills(bench)
    all_reloads(bench)
    one_more(bench)

"""The servers that are compared, each with the settings its own documentation advises for many small requests."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench_machine import ROOT, VENV, Tools
from bench_processes import BenchError, Program, Server, running
from bench_report import Report

T = TypeVar("T")
PEERS = ROOT / "scripts" / "peers"
ZCLUSTER = [sys.executable, "-m", "zcluster"]
READY = re.compile(r"(?m)^zcluster: ready on http://127\.0\.0\.1:(\d+) ")

# Everything it would otherwise put under /var goes into its folder, so that no right is needed; a keep-alive
# connection may send any number of requests, as with all the others.
NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr error;
events { worker_connections 16384; }
http {
    access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; default_type text/plain;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server { listen 127.0.0.1:{port} backlog=4096; location / { return 200 "{body}\\n"; } }
}
"""


# waitress logs a warning for nearly every request that finds all threads busy, and has no option against it.
QUIET_WAITRESS = """import logging, sys, waitress.runner
logging.getLogger("waitress.queue").setLevel(logging.ERROR)
sys.exit(waitress.runner.run())"""


@dataclass
class Bench:
    """What a section needs: where figures go, what is installed, how long and how often to measure."""

    report: Report
    tools: Tools
    seconds: float
    rounds: int

    @contextmanager
    def all_running(self, programs: Iterable[Program | None]) -> Iterator[dict[str, Server]]:
        """Those of them that start, by name. A peer that does not is noted and left out; zcluster must."""
        with ExitStack() as stack:
            servers: dict[str, Server] = {}
            for program in filter(None, programs):
                try:
                    servers[program.name] = stack.enter_context(running(program))
                except BenchError as error:
                    if program.command[:3] == ZCLUSTER:
                        raise
                    self.report.note(str(error))
            yield servers

    def told(self, name: str, error: BenchError) -> None:
        """A peer that fails is noted; zcluster must not."""
        (self.report.fail if name == "zcluster" else self.report.note)(str(error).strip())

    def in_turn(self, subjects: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
        """A B C A B C ...; one that fails is told, and has no figures."""
        results: dict[str, list[T]] = {name: [] for name in subjects}
        for _ in range(rounds):
            for name in list(results):
                try:
                    results[name].append(subjects[name]())
                except BenchError as error:
                    self.told(name, error)
                    del results[name]
        return results


def zcluster(
    app: str,
    *options: str,
    cwd: Path = PEERS,
    name: str = "zcluster",
    workers: int = 2,
    log_level: str = "error",
    port: str = "0",
) -> Program:
    """`zcluster run` with its default settings, in a run directory of its own."""
    words = [
        "run",
        app,
        f"--bind=127.0.0.1:{port}",
        f"--workers={workers}",
        "--run-dir={folder}",
        f"--log-level={log_level}",
    ]
    return Program(name, [*ZCLUSTER, *words, *options], cwd, workers=workers, ready=READY)


def ps(server: Server) -> dict[str, Any]:
    """What `zcluster ps --json` says."""
    words = [*ZCLUSTER, "ps", "--json", f"--run-dir={server.folder}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise BenchError(f"zcluster ps: exit status {done.returncode}: {done.stderr.strip()}")
    state: dict[str, Any] = json.loads(done.stdout)
    return state


def nginx(tools: Tools, workers: int = 2, body: str = "Hello, world!") -> Program | None:
    """`return 200`: the least an HTTP server of this shape can cost."""
    if "nginx" not in tools:
        return None
    words = [tools["nginx"], "-p", "{folder}", "-c", "{folder}/nginx.conf"]
    text = NGINX.replace("{workers}", str(workers)).replace("{body}", body)
    return Program("nginx", words, PEERS, files={"nginx.conf": text}, workers=workers)


def node(tools: Tools, script: str, workers: int = 2) -> Program | None:
    """Node's cluster, default settings."""
    if "node" not in tools:
        return None
    environ = {"PORT": "{port}", "WORKERS": str(workers)}
    return Program("Node", [tools["node"], str(PEERS / script)], PEERS, environ, workers=workers)


def granian(tools: Tools, app: str, *options: str, workers: int = 2) -> Program | None:
    """Granian as a WSGI server. Without --http 1 it also looks at each connection for HTTP/2."""
    if "granian" not in tools:
        return None
    words = [tools["granian"], app, "--interface=wsgi", "--http=1", "--no-ws", "--host=127.0.0.1", "--port={port}"]
    words += [f"--workers={workers}", "--log-level=error", *options]
    return Program("granian", words, PEERS, workers=workers, setting=shown(options))


def gunicorn(tools: Tools, app: str, *options: str, workers: int = 2) -> Program | None:
    """gunicorn's threaded worker."""
    if "gunicorn" not in tools:
        return None
    words = [tools["gunicorn"], app, "-k", "gthread", f"--workers={workers}", "--bind=127.0.0.1:{port}"]
    words += ["--log-level=error", *options]
    return Program("gunicorn", words, PEERS, workers=workers, setting=shown(options))


def uwsgi(tools: Tools, app: str, *options: str, workers: int = 2) -> Program | None:
    """uWSGI behind its own HTTP router: without it a keep-alive connection keeps a thread, and 64 do not fit."""
    if "uwsgi" not in tools:
        return None
    words = [
        tools["uwsgi"],
        f"--module={app}",
        f"--virtualenv={VENV}",
        "--http=127.0.0.1:{port}",
        "--http-keepalive=60",
    ]
    words += ["--master", f"--processes={workers}", "--die-on-term", "--need-app", "--disable-logging"]
    # Its socket towards the workers is an abstract one of its own choice; the router is one more process.
    return Program("uWSGI", [*words, *options], PEERS, workers=workers + 1, setting=shown(options))


def waitress(tools: Tools, app: str, *options: str) -> Program | None:
    """waitress: one process with threads, whatever the others have."""
    if "waitress" not in tools:
        return None
    words = [str(VENV / "bin" / "python"), "-c", QUIET_WAITRESS, "--listen=127.0.0.1:{port}", *options, app]
    return Program("waitress", words, PEERS, workers=0, setting=shown(options))


def shown(options: Iterable[str]) -> str:
    """Options as they stand in a note."""
    return " ".join(option.lstrip("-") for option in options)

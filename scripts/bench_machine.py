"""The machine and the programs on it: what there is, what had to be installed, what could not be.

Peers from PyPI live in .venv-bench, beside and never in the project's own environment.
"""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import timeit
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-bench"
DEBIAN = {"wrk": "wrk", "nginx": "nginx-light", "node": "nodejs"}
PYPI = {
    "granian": "granian",
    "gunicorn": "gunicorn",
    "uwsgi": "uwsgi",
    "waitress": "waitress-serve",
    "py-spy": "py-spy",
}
INSTALL_LIMIT_S = 600.0
SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"  # where Debian puts nginx


@dataclass
class Tools:
    """Where each program is; a missing one has no entry, and `problems` says why."""

    paths: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.paths

    def __getitem__(self, name: str) -> str:
        return self.paths[name]


def find(wanted: Iterable[str], install: bool) -> Tools:
    """Find these programs; with `install`, try to get those that are absent."""
    names = list(dict.fromkeys(wanted))
    tools = Tools()
    _from_debian(tools, [name for name in names if name in DEBIAN], install)
    _from_pypi(tools, [name for name in names if name in PYPI], install)
    return tools


def _from_debian(tools: Tools, names: list[str], install: bool) -> None:
    absent = [name for name in names if not shutil.which(name, path=SEARCH)]
    wrong = "not installed, and --no-install was given"
    if absent and install:
        wrong = _apt_get([DEBIAN[name] for name in absent])
    for name in names:
        if path := shutil.which(name, path=SEARCH):
            tools.paths[name] = path
        else:
            tools.problems.append(f"no {name} (Debian: apt-get install {DEBIAN[name]}): {wrong}")


def _apt_get(packages: list[str]) -> str:
    """Install them; say what was wrong."""
    if os.geteuid() or not shutil.which("apt-get"):
        return "only root can install it, with apt-get"
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wrong = _run(["apt-get", "update", "-q"], environ)  # a stale list may do, so go on
    for package in packages:  # one by one: one that cannot be had does not stop the others
        print(f"== apt-get install {package}", flush=True)
        wrong = _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", package], environ) or wrong
    return wrong or "the package does not contain it"


def _from_pypi(tools: Tools, names: list[str], install: bool) -> None:
    wrong = _make_venv() if names and install else ""
    for name in names:
        path = VENV / "bin" / PYPI[name]
        why = wrong or "not installed, and --no-install was given"
        if not path.exists() and install and not wrong:  # one by one: uWSGI needs a C compiler, and may fail alone
            why = _pip_install(name) or "the package does not contain it"
        if path.exists():
            tools.paths[name] = str(path)
        else:
            tools.problems.append(f"no {name} (pip install {name}, into .venv-bench): {why}")


def _make_venv() -> str:
    """Make .venv-bench with the same Werkzeug as ours, unless there is one; say what was wrong."""
    wish = f"werkzeug=={importlib.metadata.version('werkzeug')}"
    stamp, mark = VENV / "installed-for", f"{platform.python_version()} {wish}\n"
    if stamp.exists() and stamp.read_text() == mark:
        return ""
    wrong = _run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if not wrong:
        (VENV / ".gitignore").write_text("*\n")
        wrong = _pip_install(wish)
    if not wrong:
        stamp.write_text(mark)
    return wrong


def _pip_install(wish: str) -> str:
    print(f"== pip install {wish} (in .venv-bench)", flush=True)
    return _run([str(VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", wish])


def _run(words: list[str], environ: dict[str, str] | None = None) -> str:
    """Run it; its last words when it failed."""
    try:
        done = subprocess.run(
            words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return f"{words[0]}: {((done.stderr or done.stdout).strip().splitlines() or ['no message'])[-1]}"


def describe(tools: Tools) -> dict[str, str]:
    """What a reader must know to compare these figures with others."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    loop_ns = min(timeit.repeat("pass", number=1_000_000, repeat=3)) * 1e3
    told = {
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}, {model[1] if model else platform.machine()}",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB",
        "kernel": f"Linux {platform.release()}",
        "load before": " ".join(Path("/proc/loadavg").read_text().split()[:3]),
        "Python": f"{platform.python_version()}, timeit of 'pass' {loop_ns:.1f} ns",
        "zcluster": importlib.metadata.version("zcluster"),
    }
    ask = {"wrk": "-v", "nginx": "-v", "node": "--version", "granian": "--version", "gunicorn": "--version"}
    ask |= {"uwsgi": "--version", "py-spy": "--version"}
    for name, flag in ask.items():
        if name in tools:
            told[name] = _version([tools[name], flag])
    if "waitress" in tools:  # it does not say
        ask_it = "import importlib.metadata; print(importlib.metadata.version('waitress'))"
        told["waitress"] = _version([str(VENV / "bin" / "python"), "-c", ask_it])
    return told


def _version(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    found = re.search(r"\d+(\.\d+)+", done.stdout + done.stderr)
    return found[0] if found else "?"


def raise_file_limit() -> int:
    """As many descriptors as we may have, for us and what we start; the number."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most

"""`zcluster systemd`: the unit that runs an app as a service of systemd, printed, not installed.

Invariant: the service comes to the same configuration as `zcluster run` would with the same words here and now: they
are checked, folders and variables that the result depends on are written down, files are read again by the service.
"""

import os
import pwd
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click

from zcluster.config import Config, options
from zcluster.option import Option
from zcluster.parameters import SETTINGS, run_parameters, say, sources_of
from zcluster.resolution import Sources, resolve
from zcluster.unix.rundir import safe_name

# What a stop may take beyond the workers' drain: the launcher's own limits (see bodies.launcher) and a busy machine.
STOP_MARGIN_S: Final = 20
START_MARGIN_S: Final = 30  # an older instance of the name is waited for, then the boot timeout runs
# The launcher says so every 15 s, and a master that hangs is replaced by it: this is for what it cannot mend.
WATCHDOG_S: Final = 30
FDS: Final = 1 << 20  # each connection is one


def _systemd(**given: Any) -> None:
    """Print a systemd unit that runs APP with these options: zcluster systemd shop:app > shop.service"""
    name = safe_name(given["app"] or "")
    sources = sources_of(given)
    config = resolve(sources).config
    say("\n".join(_lines(config, sources, config.name or safe_name(config.app) or name)))


def _lines(config: Config, sources: Sources, name: str) -> Iterator[str]:
    program = _program()
    which = ["--name", name, *(["--run-dir", config.run_dir] if config.run_dir else [])]
    yield f"# {name}.service: made by `zcluster systemd`. Put it into /etc/systemd/system and run:"
    yield f"#   systemctl daemon-reload && systemctl enable --now {name}"
    yield "[Unit]"
    yield f"Description=zcluster {_plain(config.app)}"
    yield "After=network.target"
    yield ""
    yield "[Service]"
    yield "# The launcher says when all workers are ready, and when a reload or a stop begins."
    yield "Type=notify"
    yield "NotifyAccess=main"
    yield f"WorkingDirectory={_plain(sources.folder)}"
    for variable, value in sorted(sources.environ.items()):
        yield f"Environment={_quoted(f'{variable}={value}')}"
    if not config.user:
        yield "# Ports below 1024 then need AmbientCapabilities=CAP_NET_BIND_SERVICE, or a socket unit."
        yield _user(config)
    yield f"ExecStart={_command([*program, 'run', *_words(sources, name)])}"
    yield "# It fails when the new code does not come up, and the old one goes on serving."
    yield f"ExecReload={_command([*program, 'reload', '--wait', *which])}"
    yield "# TERM is for the launcher alone, which drains; what is left at the end is killed."
    yield "KillMode=mixed"
    yield f"TimeoutStartSec={config.boot_timeout_s + START_MARGIN_S:.0f}"
    yield f"TimeoutStopSec={config.drain_delay_s + config.graceful_timeout_s + STOP_MARGIN_S:.0f}"
    yield f"WatchdogSec={WATCHDOG_S}"
    yield "Restart=on-failure"
    yield "# An option that is wrong stays wrong."
    yield "RestartPreventExitStatus=2"
    yield "# A worker that the kernel kills for memory is replaced; the others need not go down with it."
    yield "OOMPolicy=continue"
    yield f"LimitNOFILE={FDS}"
    yield "PrivateTmp=yes"
    yield ""
    yield "[Install]"
    yield "WantedBy=multi-user.target"


def _program() -> list[str]:
    """How this very zcluster is run: the script beside the interpreter, or the module."""
    script = Path(sys.executable).with_name("zcluster")
    return [str(script)] if os.access(script, os.X_OK) else [sys.executable, "-m", "zcluster"]


def _user(config: Config) -> str:
    """Who is to run it: whoever asks, or whose the state is; for root a user that exists while the service runs."""
    uid = os.getuid()
    if not uid and config.state and Path(config.state).exists():
        uid = Path(config.state).stat().st_uid
    if not uid:
        return "DynamicUser=yes"
    try:
        return f"User={pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"User={uid}"


def _words(sources: Sources, name: str) -> Iterator[str]:
    """The words of the command line again, and a name that the reload finds it by."""
    flags: Mapping[str, Any] = sources.flags
    if "app" in flags:
        yield flags["app"]
    if sources.file:
        yield from ("--config", str(Path(sources.folder, sources.file)))
    for option in options():
        if option.flags and option.field in flags:
            yield from _flag(option, flags[option.field])
    if "name" not in flags:
        yield from ("--name", name)


def _flag(option: Option, value: Any) -> Iterator[str]:
    if isinstance(value, bool):  # on | off | auto, or a switch; one that is not set is not among the flags
        yield option.flags[0] if value else option.flags[-1]
        return
    for one in value if option.multiple else (value,):
        yield from (option.flags[0], str(one))


# ---- systemd's quoting ---------------------------------------------------------------------------------------------
def _plain(text: str) -> str:
    """A value that is not split into words: only specifiers mean something in it (systemd.unit(5))."""
    return text.replace("%", "%%").replace("\n", " ")


def _quoted(text: str) -> str:
    """One word of a list, in double quotes where it needs them (systemd.syntax(7))."""
    text = text.replace("%", "%%")
    if shlex.quote(text) == text:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _command(words: list[str]) -> str:
    """A command line, in which a dollar means a variable as well (systemd.service(5))."""
    return " ".join(_quoted(word.replace("$", "$$")) for word in words)


systemd_command = click.Command(
    "systemd", callback=_systemd, params=run_parameters(), help=_systemd.__doc__, context_settings=SETTINGS
)

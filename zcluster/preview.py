"""What `zcluster run` would do, without doing it: `zcluster config` and `zcluster check`.

Invariant: both come to their configuration exactly as `run` does, from the same parameters and by the same function.
What `config` prints is itself a file that `run --config` takes.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import click

from zcluster.config import Config, options
from zcluster.errors import ClusterError
from zcluster.option import Option
from zcluster.parameters import SETTINGS, import_from, run_parameters, say, sources_of
from zcluster.resolution import NO_APP, Resolved, resolve
from zcluster.unix import identity, surroundings
from zcluster.unix.application import load
from zcluster.unix.forksafety import hazards
from zcluster.unix.hooked import find_hooks
from zcluster.unix.logs import complain

ORIGIN_COLUMN: Final = 46  # where the comments begin: only addresses and formats are longer


# ---- config --------------------------------------------------------------------------------------------------------
def _config(*, as_json: bool, **given: Any) -> None:
    """Show every option of `run` as it would be, and where its value comes from."""
    resolved = resolve(sources_of(given), needs_app=False)
    if as_json:
        say(json.dumps({option.name: _described(option, resolved) for option in options()}, indent=2))
    else:
        say("\n".join(_line(option, resolved) for option in options()))


def _described(option: Option, resolved: Resolved) -> dict[str, Any]:
    return {
        "value": _value(option, resolved.config),
        "origin": _origin(option, resolved),
        "over": resolved.hidden.get(option.field, ()),
        "reload": not option.fixed,
    }


def _value(option: Option, config: Config) -> Any:
    """Return a value as it stands in a file; None for an app that nobody has named."""
    value = getattr(config, option.field)
    if option.field == "app" and value == NO_APP:
        return None
    return "auto" if value == 0 and "auto" in option.metavar else value


def _origin(option: Option, resolved: Resolved) -> str:
    is_missing = option.default is None and resolved.origins[option.field] == "default"
    return "not given" if is_missing else resolved.origins[option.field]


def _line(option: Option, resolved: Resolved) -> str:
    value = _value(option, resolved.config)
    # TOML's strings are JSON's, but DEL is escaped, and characters beyond 16 bits are not made two.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    setting = f"{option.name} = {text}" if value is not None else f"# {option.name}"
    over = resolved.hidden.get(option.field)
    return f"{setting:<{ORIGIN_COLUMN}}  # {_origin(option, resolved)}" + (f" over {', '.join(over)}" if over else "")


# ---- check ---------------------------------------------------------------------------------------------------------
def _check(**given: Any) -> int:
    """Load configuration and app as `run` would, say what would be preloaded, and exit: 0, or with `run`'s codes."""
    code = 0
    try:
        sources = sources_of(given)
        resolved = resolve(sources)
        import_from(str(Path(sources.folder, resolved.config.chdir)))
        _try_out(resolved)
    except ClusterError as error:
        complain(f"zcluster: error: {error}")
        code = error.exit_code
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        # A worker would serve beside it. We have seen enough, and it would keep this process for as long as it likes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _try_out(resolved: Resolved) -> None:
    config = resolved.config
    given = [option.name for option in options() if resolved.origins[option.field] != "default"]
    say(f"configuration: good; given are {', '.join(given)} (`zcluster config` prints all)")
    if config.certfile:
        from zcluster.unix import certificate  # the ssl module is only for who speaks TLS

        certificate.load(config.certfile, config.keyfile)
        say(f"certificate: {config.certfile} is good")
    who = identity.wanted(config)
    if who is not None:
        say(f"user: {who}")
    surroundings.enter(config)
    known_fds = frozenset(int(fd) for fd in os.listdir("/proc/self/fd"))
    began = time.monotonic()
    load(config.app)
    if config.hooks:
        find_hooks(config.hooks)
        say(f"hooks: {config.hooks} loads")
    say(f"app: {config.app} loads, in {time.monotonic() - began:.1f} s")
    say(f"preload: {_preload(config, known_fds)}")


def _preload(config: Config, known_fds: frozenset[int]) -> str:
    """Say where the zygote would import the app, as it decides itself: see `bodies.zygote`."""
    if config.preload == "off":
        return "off, each worker imports the app"
    found = hazards(known_fds)
    if not found:
        return "the app is imported once, before the workers are forked"
    left = ", ".join(found)
    if config.preload == "on":
        return f"forced, although the app left {left}; every worker shares it"
    return f"not safe, each worker imports the app, because the import left {left}"


# ---- on the command line -------------------------------------------------------------------------------------------
config_command = click.Command(
    "config",
    callback=_config,
    params=[*run_parameters(), click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, for programs.")],
    help=_config.__doc__,
    context_settings=SETTINGS,
)
check_command = click.Command(
    "check", callback=_check, params=run_parameters(), help=_check.__doc__, context_settings=SETTINGS
)

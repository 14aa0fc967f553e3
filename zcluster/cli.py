"""The command line: `zcluster run`, `ps`, `stop`, `counters`.

Invariant: every end of a command is an exit code of `errors` and, when it is not 0, one line on stderr that begins
with "zcluster: error:". Only a bug of ours shows a traceback, and ends with 70.

The options of `run` are made from `Config`: none is declared here.
"""

import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from zcluster.config import Config, Option, make_config, options
from zcluster.errors import BusError, ClusterError, ConfigError, SpawnError
from zcluster.unix.logs import complain

ANSWER_TIMEOUT_S: Final = 5.0  # a master that lives answers in milliseconds; an operator gives up soon after this


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code of this process."""
    try:
        outcome = cli.main(list(arguments), prog_name="zcluster", standalone_mode=False)
    except click.exceptions.Abort:  # click's name for Ctrl-C and for an end of input
        return _complain("interrupted", 130)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except BusError as error:  # for an operator: the cluster is not there to be talked to
        return _complain(str(error), SpawnError.exit_code)
    except ClusterError as error:
        return _complain(str(error), error.exit_code)
    except Exception:  # nothing of ours is left that could deal with it: say everything and name it a bug
        complain(traceback.format_exc().rstrip())
        return _complain("this is a bug of zcluster; please report it with the lines above", 70)
    return outcome if isinstance(outcome, int) else 0


def _complain(text: str, code: int) -> int:
    complain(f"zcluster: error: {text}")
    return code


# On every command: click makes the help option once, with the names that the first context it meets has.
_SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}


@click.group(invoke_without_command=True, context_settings=_SETTINGS)
@click.version_option(package_name="zcluster", prog_name="zcluster")
@click.pass_context
def cli(context: click.Context) -> None:
    """One WSGI program on every core, one port, and processes that talk to each other."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


# ---- run ----------------------------------------------------------------------------------------------------------
def _run(**given: Any) -> int:
    """Run APP in the foreground until a signal ends it: TERM gracefully, INT or QUIT quickly.

    Prints one line to stdout when all workers are ready. Logs go to stderr.
    """
    config = read_options({name: value for name, value in given.items() if value not in (None, ())}, os.environ)
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise SpawnError("the working directory has been removed; start in one that exists") from None
    if here not in sys.path:  # as `python -m` has it: the app lies where the operator stands
        sys.path.insert(0, here)
    from zcluster.bodies import launcher

    return launcher.run(config)


def read_options(given: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
    """Return the configuration for what the command line gave, completed from the environment.

    Raises `ConfigError`, in the words of the command line.
    """
    values = dict(given)
    if isinstance(values.get("preload"), bool):
        values["preload"] = "on" if values["preload"] else "off"
    sources = {}
    for option in options():
        text = environ.get(option.env, "") if option.env else ""
        if option.field not in values and text:  # an empty variable is one that is not set
            values[option.field] = f":{text}" if option.env == "PORT" else text
            sources[option.field] = f"variable {option.env}"
    if "workers" in values and values["workers"] != "auto":
        number = str(values["workers"])
        if not re.fullmatch("[0-9]{1,9}", number) or int(number) == 0:
            spelled = sources.get("workers", "--workers")
            raise ConfigError(f"{spelled} is {number!r:.200}, but should be a number from 1 on, or 'auto'")
        values["workers"] = int(number)
    try:
        return make_config(**values)
    except ConfigError as error:
        raise ConfigError(_in_flags(str(error), sources)) from None


def _in_flags(text: str, sources: Mapping[str, str]) -> str:
    """Name options as they were given: "option 'keep_alive_s'" becomes "--keep-alive"."""
    for option in options():
        spelled = sources.get(option.field) or (option.flags[0] if option.flags else option.metavar)
        text = re.sub(f"(option )?'{option.field}'", spelled, text)
    return text


def _parameter(option: Option) -> click.Parameter:
    """Make click's parameter. No defaults: what is not given is left to `Config` and the environment."""
    if not option.flags:
        return click.Argument([option.field], metavar=option.metavar)
    text = option.help
    if option.env:
        text += f"  [env: {option.env}]"
    if option.default and not option.choices:
        shown = ", ".join(option.default) if option.multiple else str(option.default).removesuffix(".0")
        text += f"  [default: {shown}]"
    if option.choices and len(option.flags) == 2:  # on | off | auto: one flag for each of the first two
        return click.Option([option.field, "/".join(option.flags)], default=None, help=text)
    return click.Option(
        [*option.flags, option.field],
        type=click.Choice(option.choices) if option.choices else str if "auto" in option.metavar else option.type,
        multiple=option.multiple,
        metavar=option.metavar,
        help=text,
    )


cli.add_command(
    click.Command(
        "run",
        callback=_run,
        params=[_parameter(o) for o in options()],
        help=_run.__doc__,
        context_settings=_SETTINGS,
    )
)


# ---- commands to a running cluster ---------------------------------------------------------------------------------
def _which(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options that say which cluster is meant."""
    command = click.option(
        "--run-dir", default="", metavar="DIR", envvar="ZCLUSTER_RUN_DIR", help="As given to run."
    )(command)
    return click.option("--name", default="", metavar="NAME", help="Which cluster; default: the only one.")(command)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@cli.command(context_settings=_SETTINGS)
@_which
@_as_json
def ps(name: str, run_dir: str, as_json: bool) -> None:
    """Show a running cluster and its workers."""
    from zcluster.cluster import Cluster
    from zcluster.tables import cluster_table

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        seen = cluster.snapshot()
    click.echo(json.dumps(seen) if as_json else cluster_table(seen))


@cli.command(context_settings=_SETTINGS)
@_which
@_as_json
def counters(name: str, run_dir: str, as_json: bool) -> None:
    """Show the totals of a running cluster's counters."""
    from zcluster.cluster import Cluster
    from zcluster.tables import counters_table

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        totals = cluster.snapshot()["counters"]
    click.echo(json.dumps(totals) if as_json else counters_table(totals))


@cli.command(context_settings=_SETTINGS)
@_which
@click.option("--quick", is_flag=True, help="Do not wait for requests in flight longer than --quick-timeout.")
@click.option("--wait", is_flag=True, help="Return when the cluster has ended, not when it has been told.")
def stop(name: str, run_dir: str, quick: bool, wait: bool) -> int:
    """Stop a running cluster: no new connections, requests in flight are finished."""
    from zcluster.cluster import Cluster

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        cluster.request_stop(quick=quick)
        return cluster.wait() if wait else 0

"""The command line: `zcluster run` and what is made for it, and the commands to a cluster that runs.

Invariant: every end of a command is an exit code of `errors` and, when it is not 0, one line on stderr that begins
with "zcluster: error:". Only a bug of ours shows a traceback, and ends with 70.

The options of `run` are made from `Config`, in `parameters`: none is declared here.
"""

import re
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from zcluster.errors import BusError, ClusterError, Refusal, ReloadFailed, SpawnError
from zcluster.parameters import ANSWER_TIMEOUT_S, SETTINGS, import_from, run_parameters, say, sources_of
from zcluster.parameters import which as _which
from zcluster.resolution import resolve
from zcluster.unix.logs import complain

NOT_DONE: Final = ReloadFailed.exit_code  # the cluster runs, and has not done what it was told


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code of this process."""
    try:
        outcome = cli.main(list(arguments), prog_name="zcluster", standalone_mode=False)
    except click.exceptions.Abort:  # click's name for Ctrl-C and for an end of input
        return _complain("interrupted", 130)
    except click.ClickException as error:
        return _complain(error.format_message(), error.exit_code)
    except Refusal as refusal:
        return _complain(refusal.reason, NOT_DONE)
    except BusError as error:  # for an operator: the cluster is not there to be talked to
        return _complain(str(error), SpawnError.exit_code)
    except ClusterError as error:  # those of no kind: it did not happen in time, or the cluster ended first
        return _complain(str(error), NOT_DONE if type(error) is ClusterError else error.exit_code)
    except Exception:  # nothing of ours is left that could deal with it: say everything and name it a bug
        complain(traceback.format_exc().rstrip())
        return _complain("this is a bug of zcluster; please report it with the lines above", 70)
    return outcome if isinstance(outcome, int) else 0


def _complain(text: str, code: int) -> int:
    complain(f"zcluster: error: {text}")
    return code


# Where each command is that stands in a file of its own, as NAME_command.
_ELSEWHERE: Final = {
    **dict.fromkeys(("config", "check"), "preview"),
    **dict.fromkeys(("ps", "counters", "events"), "watching"),
    **dict.fromkeys(("restart", "kill", "send"), "operating"),
    **{"dump": "stacks", "logs": "logview", "systemd": "unit"},
}


class _Commands(click.Group):
    """Commands that are imported when they are asked for: a launcher lives for months, and needs `run` only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"zcluster.{_ELSEWHERE[cmd_name]}"), f"{cmd_name}_command")
        return found


def all_commands() -> dict[str, click.Command]:
    """Return every command by its name."""
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@click.group(cls=_Commands, invoke_without_command=True, context_settings=SETTINGS)
@click.version_option(package_name="zcluster", prog_name="zcluster")
@click.pass_context
def cli(context: click.Context) -> None:
    """One WSGI program on every core, one port, and processes that talk to each other."""
    if context.invoked_subcommand is None:
        say(context.get_help())


# ---- run ----------------------------------------------------------------------------------------------------------
def _run(**given: Any) -> int:
    """Run APP in the foreground until a signal ends it: TERM gracefully, INT or QUIT quickly.

    Prints one line to stdout when all workers are ready. Logs go to stderr. Every option may also stand in
    zcluster.toml (keep-alive = 5), in [tool.zcluster] of pyproject.toml, or in a variable (ZCLUSTER_KEEP_ALIVE=5);
    a variable is stronger than a file, a flag is the strongest.
    """
    sources = sources_of(given)
    config = resolve(sources).config
    import_from(str(Path(sources.folder, config.chdir)))
    from zcluster.bodies import launcher

    return launcher.run(config, sources=sources)


cli.add_command(
    click.Command("run", callback=_run, params=run_parameters(), help=_run.__doc__, context_settings=SETTINGS)
)


# ---- commands to a running cluster ---------------------------------------------------------------------------------


def _size(context: click.Context, parameter: click.Parameter, value: str) -> int | str:
    """Read what `Cluster.scale` takes. An option that does not exist comes here, too: -N looks like one."""
    if re.fullmatch("[+-]?[0-9]{1,9}", value):
        return value if value[0] in "+-" else int(value)
    if value.startswith("-"):
        raise click.NoSuchOption(value, ctx=context)
    text = f"{value!r} is no number of workers; give N, or a change as +N or -N"
    raise click.BadParameter(text, context, parameter)


@cli.command(context_settings={**SETTINGS, "ignore_unknown_options": True})
@_which
@click.argument("size", callback=_size, metavar="N|+N|-N")
@click.option("--wait", is_flag=True, help="Return when those who are wanted serve and all others are gone.")
def scale(name: str, run_dir: str, size: int | str, wait: bool) -> None:
    """Have N workers, or so many more or fewer: new ones fill the lowest slots, the highest are drained."""
    from zcluster.cluster import Cluster

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        wanted = cluster.scale(size, wait=wait)
        say(f"{cluster.name}: {wanted} {'worker' if wanted == 1 else 'workers'}")


@cli.command(context_settings=SETTINGS)
@_which
@click.option(
    "--wait", is_flag=True, help="Return when the new code serves and the old workers are gone, or why not."
)
def reload(name: str, run_dir: str, wait: bool) -> None:
    """Load the code anew and replace the workers one by one; code that does not start changes nothing."""
    from zcluster.cluster import Cluster

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        generation = cluster.reload(wait=wait)
        what = f"generation {generation} serves" if wait else "the reload is ordered; the log tells what comes of it"
        say(f"{cluster.name}: {what}")


@cli.command(context_settings=SETTINGS)
@_which
@click.option("--quick", is_flag=True, help="Do not wait for requests in flight longer than --quick-timeout.")
@click.option("--wait", is_flag=True, help="Return when the cluster has ended, not when it has been told.")
def stop(name: str, run_dir: str, quick: bool, wait: bool) -> int:
    """Stop a running cluster: no new connections, requests in flight are finished."""
    from zcluster.cluster import Cluster

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        cluster.request_stop(quick=quick)
        return cluster.wait() if wait else 0

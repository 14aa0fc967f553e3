"""The options of `zcluster run` on the command line: made from `Config`, read into `Sources`.

And of the commands to a running cluster: which one is meant.

Invariant: `run`, `config` and `check` take the same parameters and understand them alike, because all three have them
from here; none is declared twice.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from zcluster.config import options
from zcluster.configfile import OWN_FILE, PROJECT_FILE
from zcluster.errors import ConfigError, SpawnError
from zcluster.option import Option
from zcluster.resolution import FILE_VARIABLE, Sources, relevant, resolve
from zcluster.unix.logs import complain

# On every command: click makes the help option once, with the names that the first context it meets has.
SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
ANSWER_TIMEOUT_S: Final = 5.0  # a master that lives answers in milliseconds; an operator gives up soon after this

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def run_parameters() -> list[click.Parameter]:
    """Return the parameters of `run`: the file, and one for each field of `Config`."""
    text = f"TOML file with options, instead of {OWN_FILE} and [tool.zcluster] of {PROJECT_FILE}."
    file = click.Option(["--config", "-c", "file"], metavar="FILE", help=f"{text}  [env: {FILE_VARIABLE}]")
    return [*(_parameter(option) for option in options()), file]


def sources_of(given: Mapping[str, Any]) -> Sources:
    """Return what a configuration is to be made from: what the command line gave, and what stands around it.

    Raises `SpawnError` when there is no working directory.
    """
    try:
        here = str(Path.cwd())
    except FileNotFoundError:
        raise SpawnError("the working directory has been removed; start in one that exists") from None
    flags = {name: value for name, value in given.items() if value not in (None, ())}
    return Sources(flags, relevant(os.environ), here, flags.pop("file", ""))


def which(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Add the options that say which cluster is meant; what is not given is looked for where `run` would look."""
    return _which(command, is_sure=True)


def which_to_read(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """The same for a command that changes nothing: with a file that is wrong it takes the only cluster there is."""
    return _which(command, is_sure=False)


def _which(command: Callable[..., int | None], is_sure: bool) -> Callable[..., int | None]:
    @functools.wraps(command)
    def run(name: str | None, run_dir: str | None, **given: Any) -> int | None:
        meant = _meant({"name": name, "run_dir": run_dir}, is_sure)
        return command(name=meant[0], run_dir=meant[1], **given)

    run_dir = click.option("--run-dir", metavar="DIR", help="As given to run.")
    return click.option("--name", metavar="NAME", help="Which cluster; default: the only one.")(run_dir(run))


def _meant(given: Mapping[str, str | None], is_sure: bool) -> tuple[str, str]:
    """Return name and run directory. A file that is wrong must not keep anybody from stopping what runs.

    But neither may it have a command stop another cluster than the one whose name stands in it.
    """
    try:
        config = resolve(sources_of(given), needs_app=False).config
    except ConfigError as error:
        environ = {name: os.environ.get(f"ZCLUSTER_{name.upper()}", "") for name in given}
        meant = given["name"] or environ["name"], given["run_dir"] or environ["run_dir"]
        if is_sure and not any(meant):
            hint = "; say which cluster is meant with --name (`zcluster ps` names those that run)"
            raise ConfigError(f"{error}{hint}", *error.fields) from None
        complain(f"zcluster: warning: {error}; looking for the cluster without the configuration")
        return meant
    return config.name, config.run_dir


@contextmanager
def printing() -> Iterator[None]:
    """Whatever is printed to stdout within. Raises `click.ClickException` when it cannot be written.

    A reader that has gone is no error, and is left to the command: `BrokenPipeError` passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"stdout cannot be written: {error.strerror}") from None


def say(text: str = "") -> None:
    """Print a line to stdout, as `printing` has it."""
    with printing():
        click.echo(text)


def import_from(folder: str) -> None:
    """Have the app found where the operator stands, as `python -m` has it."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


class _MayStandAlone(click.types.FloatParamType):
    """A number after a flag that needs none; the word after it may have been meant for somebody else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(value)
        except ValueError:
            flag = param.opts[0] if param else ""
            self.fail(f"{value!r} is not a number; put {flag} behind it, or write {flag}=SECONDS", param, ctx)


def _parameter(option: Option) -> click.Parameter:
    """Make click's parameter. No defaults: what is not given is left to the environment, the files and `Config`."""
    if not option.flags:
        return click.Argument([option.field], metavar=f"[{option.metavar}]", required=False)  # a file may name it
    text = option.help
    if option.env:
        text += f"  [env: {option.env}]"
    if option.default and not option.choices:
        shown = ", ".join(option.default) if option.multiple else str(option.default).removesuffix(".0")
        text += f"  [default: {shown}]"
    if option.alone:
        text += f"  [no value: {option.alone}]"
    if option.choices and len(option.flags) == 2:  # on | off | auto: one flag for each of the first two
        return click.Option([option.field, "/".join(option.flags)], default=None, help=text)
    if option.type is bool:
        return click.Option([*option.flags, option.field], is_flag=True, default=None, help=text)
    optional: dict[str, Any] = {"is_flag": False, "flag_value": option.alone} if option.alone else {}
    return click.Option(
        [*option.flags, option.field],
        type=_type_of(option),
        multiple=option.multiple,
        metavar=f"[{option.metavar}]" if option.alone else option.metavar,
        help=text,
        **optional,
    )


def _type_of(option: Option) -> Any:
    if option.choices:
        return click.Choice(option.choices)
    if option.alone:
        return _MayStandAlone()
    return str if "auto" in option.metavar else option.type

"""The options of `zcluster run` on the command line: made from `Config`, read into `Sources`.

Invariant: `run`, `config` and `check` take the same parameters and understand them alike, because all three have them
from here; none is declared twice.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from zcluster.config import options
from zcluster.configfile import OWN_FILE, PROJECT_FILE
from zcluster.errors import SpawnError
from zcluster.option import Option
from zcluster.resolution import FILE_VARIABLE, Sources, relevant

# On every command: click makes the help option once, with the names that the first context it meets has.
SETTINGS: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}


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


def import_from(folder: str) -> None:
    """Have the app found where the operator stands, as `python -m` has it."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


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
    if option.choices and len(option.flags) == 2:  # on | off | auto: one flag for each of the first two
        return click.Option([option.field, "/".join(option.flags)], default=None, help=text)
    if option.type is bool:
        return click.Option([*option.flags, option.field], is_flag=True, default=None, help=text)
    return click.Option(
        [*option.flags, option.field],
        type=click.Choice(option.choices) if option.choices else str if "auto" in option.metavar else option.type,
        multiple=option.multiple,
        metavar=option.metavar,
        help=text,
    )

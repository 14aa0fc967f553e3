"""`zcluster.toml` and the table [tool.zcluster] of pyproject.toml: options with the lines they stand in.

Invariant: what is read is either understood or refused with file and line; a file that is there and cannot be read,
or is no TOML, ends the start. An option overlooked for a misspelt key would only show in production.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster.config import options
from zcluster.errors import ConfigError
from zcluster.option import nearest
from zcluster.tomllines import key_lines

OWN_FILE: Final = "zcluster.toml"
PROJECT_FILE: Final = "pyproject.toml"
FILE_MAX_BYTES: Final = 1 << 20  # every option with a long value is 4 KiB; who names a disk image is told at once

_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class Setting(msgspec.Struct, frozen=True):
    """A value that somebody gave to an option, and where."""

    field: str  # of `Config`
    value: Any
    called: str  # what the option is called there: `--workers`, `variable PORT`, `workers`
    origin: str  # `flag`, `variable PORT`, `zcluster.toml:3`
    in_file: bool = False


def read_files(folder: Path, named: str = "") -> list[Setting]:
    """Return what the files in `folder` set, the weaker file first, or what the `named` one sets instead of them.

    Values are as they stand there, not checked yet. Raises `ConfigError`.
    """
    if named:
        if named.endswith(".py"):
            raise ConfigError(f"{named} is a Python file; options stand in TOML here, one a line: workers = 4")
        text = _read(folder / named, named)
        if text is None:
            raise ConfigError(f"there is no configuration file {named!r} (working directory: {folder})")
        return list(_settings(text, named, is_required=True))
    found: list[Setting] = []
    for name in (OWN_FILE, PROJECT_FILE):
        text = _read(folder / name, name)
        if text is not None:
            found += _settings(text, name, is_required=False)
    return found


def _read(path: Path, shown: str) -> str | None:
    """Return the text of a file, None when there is none."""
    try:
        if path.is_fifo():  # the launcher, which must not wait for anybody, reads it too
            raise ConfigError(f"{shown} is a pipe; give a file: it is read again at a reload")
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        if path.is_symlink():
            raise ConfigError(f"{shown} is a symbolic link to a file that does not exist") from None
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {shown}: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"{shown!r:.200} names no file: {error}") from None
    if len(data) > FILE_MAX_BYTES:
        raise ConfigError(f"{shown} has more than {FILE_MAX_BYTES:,} bytes; that is no configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{shown}:{line}: TOML is UTF-8, but this line is not") from None


def _settings(text: str, shown: str, *, is_required: bool) -> Iterator[Setting]:
    """Yield what one file sets; `is_required`: a project file without our table was named by mistake."""
    try:
        table: Any = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{shown} is no configuration file: its brackets are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers of more digits than Python converts
        at = _AT_LINE.search(str(error))
        line = at[1] or str(text.rstrip().count("\n") + 1) if at else ""
        where = f"{shown}:{line}" if line else shown
        raise ConfigError(f"{where}: this is not TOML: {_AT_LINE.sub('', str(error))}") from None
    lines, prefix = key_lines(text), tuple[str, ...]()
    if Path(shown).name == PROJECT_FILE:
        tool = table.get("tool")
        table, prefix = tool.get("zcluster") if isinstance(tool, dict) else None, ("tool", "zcluster")
        if table is None:
            if is_required:
                raise ConfigError(f"{shown} has no table [tool.zcluster]")
            return
        if not isinstance(table, dict):
            where = _where(shown, lines.get(prefix))
            raise ConfigError(f"{where}: tool.zcluster is {table!r:.200}, but should be a table of options")
    yield from _options(table, shown, {path[-1]: at for path, at in lines.items() if path[:-1] == prefix})


def _options(table: Mapping[str, Any], shown: str, lines: Mapping[str, int]) -> Iterator[Setting]:
    fields = {option.name: option.field for option in options()}
    seen: dict[str, str] = {}
    for key, value in table.items():
        where = _where(shown, lines.get(key))
        name = key.replace("_", "-")  # as Python and gunicorn have them
        if name not in fields:
            raise ConfigError(f"{where}: {_unknown(key, value, shown, list(fields))}")
        if name in seen:
            raise ConfigError(f"{where}: {key} was given before, as {seen[name]}; give it once")
        seen[name] = f"{key} ({where})"
        yield Setting(fields[name], value, key, where, in_file=True)


def _unknown(key: str, value: Any, shown: str, names: list[str]) -> str:
    if isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict)):
        place = "in [tool.zcluster] itself" if Path(shown).name == PROJECT_FILE else "at the top, without a table"
        return f"unknown table [{key}]; options stand {place}"
    near = nearest(key.replace("_", "-"), names)
    hint = f"did you mean {near!r}?" if near else "`zcluster config` prints those that there are"
    return f"unknown option {key!r}; {hint}"


def _where(shown: str, line: int | None) -> str:
    return shown if line is None else f"{shown}:{line}"

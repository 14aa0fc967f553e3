"""What one option is, whoever sets it: its names, its default, what it may be, and how to say that it may not.

Invariant: an option has one name everywhere: `--keep-alive` is `keep-alive` in a file, `ZCLUSTER_KEEP_ALIVE` in the
environment. Only Python has names of its own, `keep_alive_s`, because a program wants the unit.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from zcluster.errors import ConfigError


class Option(msgspec.Struct, frozen=True):
    """One field of `Config` as the command line, the environment and a file need it."""

    field: str
    help: str
    flags: tuple[str, ...]  # empty: the positional argument
    metavar: str
    env: str  # a variable of the platform's that stands in; weaker than our own
    default: Any
    choices: tuple[str, ...]  # of a Literal; else empty
    type: type[str] | type[int] | type[float] | type[bool]
    multiple: bool
    least: float | None
    most: float | None
    fixed: str  # why a reload cannot change it; "": it can
    alone: str  # what the flag means when no value follows; "": one has to

    @property
    def name(self) -> str:
        """What it is called in a file: its long flag without the dashes."""
        return self.flags[0].removeprefix("--") if self.flags else self.field

    @property
    def variable(self) -> str:
        """Our variable that sets it."""
        return "ZCLUSTER_" + self.name.upper().replace("-", "_")

    @property
    def wanted(self) -> str:
        """What a value should be, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if "auto" in self.metavar:
            return "a number from 1 on, or 'auto'"
        if self.multiple:
            return f"a string or a list of strings{', one at least' if self.least else ''}"
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return "a string of 1 to 4096 characters" if self.least else "a string of at most 4096 characters"
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.least} to {self.most}"


def field_of(error: msgspec.ValidationError | UnicodeEncodeError, values: Mapping[str, Any]) -> str:
    """Return the field whose value msgspec has refused, or ""."""
    if isinstance(error, UnicodeEncodeError):  # of a choice; any other text is let through, and refused by `check`
        return next((field for field, value in values.items() if value == error.object), "")
    path = str(error).partition(" - at `$.")[2]
    return re.split(r"[\[`]", path, maxsplit=1)[0]


def nearest(word: str, names: Iterable[str]) -> str:
    """Return the name that was probably meant, or ""."""
    return next(iter(difflib.get_close_matches(word.lower(), names, n=1)), "")


# What a value is, for who expected something else: in the words of TOML, which JSON and Python share.
_KINDS: Final = {str: "a string", bool: "a boolean", dict: "a table", list: "a list", tuple: "a list"}


def misfit(option: Option, value: Any, *, is_text: bool = False) -> ConfigError:
    """Return the error that says what a value should have been; `is_text`: it could not be but a string."""
    near = nearest(value, option.choices) if isinstance(value, str) else ""
    hint = f"; did you mean {near!r}?" if near else ""
    right = (
        (str, list, tuple)
        if option.multiple
        else (str,)
        if option.type is str or "auto" in option.metavar
        else (bool,)
        if option.type is bool
        else ()
    )
    if type(value) in _KINDS and type(value) not in right and not is_text:
        hint = f", not {_KINDS[type(value)]}"
    return ConfigError(
        f"option {option.field!r} is {value!r:.200}, but should be {option.wanted}{hint}", option.field
    )

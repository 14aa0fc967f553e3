"""How an option is described where it is declared: its text, limits and flags, and whether a reload can change it.

Invariant: what these return is all that the command line, the variables, the files and the documentation know of it.
Every function takes `fixed`: why a reload cannot change the option, or "" when it can.
"""

from typing import Any

from msgspec import Meta


def _extra(flags: str | tuple[str, ...], metavar: str, env: str, fixed: str, alone: str = "") -> dict[str, Any]:
    """Say how the command line spells an option.

    `flags`: the long one first; `env`: a variable that stands in; `alone`: what the flag without a value means.
    """
    return {
        "flags": (flags,) if isinstance(flags, str) else flags,
        "metavar": metavar,
        "env": env,
        "fixed": fixed,
        "alone": alone,
    }


def seconds(
    flag: str | tuple[str, ...], least_s: float, most_s: float, text: str, fixed: str = "", alone: str = ""
) -> Meta:
    """Describe a time in seconds."""
    return Meta(description=text, ge=least_s, le=most_s, extra=_extra(flag, "SECONDS", "", fixed, alone))


def number(
    flags: str | tuple[str, ...], least: int, most: int, text: str, meta: str = "N", env: str = "", fixed: str = ""
) -> Meta:
    """Describe a whole number."""
    return Meta(description=text, ge=least, le=most, extra=_extra(flags, meta, env, fixed))


def text(flags: str | tuple[str, ...], text: str, meta: str, env: str = "", least: int = 0, fixed: str = "") -> Meta:
    """Describe a string of at least so many characters, or a list of at least so many strings."""
    return Meta(description=text, min_length=least, max_length=4096, extra=_extra(flags, meta, env, fixed))


def switch(flag: str, text: str, fixed: str = "") -> Meta:
    """Describe what is on or off."""
    return Meta(description=text, extra=_extra(flag, "", "", fixed))


def choice(flags: str | tuple[str, ...], text: str, meta: str = "", fixed: str = "") -> Meta:
    """Describe one of several words."""
    return Meta(description=text, extra=_extra(flags, meta, "", fixed))

"""The format of access log lines: gunicorn's atoms, parsed and checked.

Invariant: pure. A format that `parse_format` returned can be compiled and used without any further question; what it
makes of a request is for `http.access`.
"""

import re
from typing import Final, NamedTuple

from zcluster.errors import ConfigError

# What each atom stands for, as gunicorn has it; the texts go into the documentation and into the error message.
ATOMS: Final = {
    "h": "address of the client",
    "l": "'-'",
    "u": "user name of HTTP Basic authentication",
    "t": "date and time, [22/Nov/2026:14:05:09 +0000]",
    "r": "request line",
    "m": "method",
    "U": "path, without the query",
    "q": "query",
    "H": "protocol",
    "s": "status",
    "B": "length of the response body",
    "b": "the same, '-' when there is none",
    "f": "Referer",
    "a": "User-Agent",
    "T": "duration in seconds",
    "M": "duration in milliseconds",
    "D": "duration in microseconds",
    "L": "duration in seconds, with six decimals",
    "p": "process id, <1234>",
}
NAMED: Final = {"i": "request field", "o": "response field", "e": "environ variable"}
NUMBERS: Final = frozenset("BTMD")

_ATOM = re.compile(r"%(?:%|\(([^()]*)\)([-+ 0#]*[0-9]*(?:\.[0-9]+)?)([A-Za-z]))")
_NAMED = re.compile(r"\{([^{}]+)\}([ioe])")
_PADDED = re.compile(r"-?[0-9]{1,3}|-?[0-9]{0,3}\.[0-9]{1,3}")  # a width of 9,999,999 would be a line of 10 MB


class Piece(NamedTuple):
    """A literal, or an atom with the name in its braces and its padding ("-20", ".8")."""

    literal: str = ""
    atom: str = ""
    name: str = ""
    padding: str = ""
    conversion: str = "s"


def _json_pieces(*members: tuple[str, Piece, str]) -> tuple[Piece, ...]:
    pieces = []
    opening = "{"
    for key, piece, quote in members:
        pieces += [Piece(f'{opening}"{key}":{quote}'), piece]
        opening = quote + ","
    return (*pieces, Piece(opening[:-1] + "}"))


# One object per line. The keys are for whoever feeds a log store: names instead of letters, numbers as numbers.
JSON: Final = _json_pieces(
    ("time", Piece(atom="iso"), '"'),
    ("remote", Piece(atom="h"), '"'),
    ("user", Piece(atom="u"), '"'),
    ("host", Piece(atom="i", name="Host"), '"'),
    ("method", Piece(atom="m"), '"'),
    ("target", Piece(atom="e", name="RAW_URI"), '"'),
    ("protocol", Piece(atom="H"), '"'),
    ("status", Piece(atom="s"), ""),
    ("bytes", Piece(atom="B"), ""),
    ("duration_s", Piece(atom="L"), ""),
    ("referer", Piece(atom="f"), '"'),
    ("user_agent", Piece(atom="a"), '"'),
    ("pid", Piece(atom="pid"), ""),
)


def parse_format(text: str) -> tuple[Piece, ...]:
    """Return the pieces of a format, of 'json' `JSON`; raises `ConfigError` naming what is wrong and known."""
    if text == "json":
        return JSON
    if "\n" in text or "\r" in text:
        raise _bad_format(text, "it contains a line break; each line of the log ends by itself")
    pieces = []
    literal = ""
    at = 0
    while at < len(text):
        percent = text.find("%", at)
        if percent < 0:
            percent = len(text)
        literal += text[at:percent]
        if percent == len(text):
            break
        found = _ATOM.match(text, percent)
        if found is None:
            raise _bad_format(text, f"{text[percent : percent + 12]!r} is no atom; a percent sign is written %%")
        at = found.end()
        if found[1] is None:
            literal += "%"
            continue
        if literal:
            pieces.append(Piece(literal))
            literal = ""
        pieces.append(_atom(text, *found.groups()))
    return (*pieces, Piece(literal)) if literal else tuple(pieces)


def _atom(text: str, atom: str, padding: str, conversion: str) -> Piece:
    """One atom of `text`, checked."""
    named = _NAMED.fullmatch(atom)
    if atom not in ATOMS and named is None:
        known = ", ".join([*ATOMS, *(f"{{name}}{letter}" for letter in NAMED)])
        raise _bad_format(text, f"it has no atom {atom!r}; known are {known}")
    if conversion != "s" and not (conversion == "d" and atom in NUMBERS):
        raise _bad_format(text, f"%({atom}){conversion} is no text: write %({atom})s")
    if padding and not _PADDED.fullmatch(padding):
        raise _bad_format(text, f"{padding!r} in %({atom}){padding}{conversion} is no padding such as 10, -10 or .10")
    if named is None:
        return Piece(atom=atom, padding=padding, conversion=conversion)
    return Piece(atom=named[2], name=named[1], padding=padding)


def _bad_format(text: str, reason: str) -> ConfigError:
    return ConfigError(f"option 'access_logformat' is {text!r:.200}, but {reason}")

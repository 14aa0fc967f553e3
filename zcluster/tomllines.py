"""Where each key of a TOML text stands: `tomllib` gives values, but no lines.

Invariant: for text that `tomllib` accepts, a line that `key_lines` tells is the line of that key; what it cannot tell
it leaves out. Keys inside an inline table stand where the table stands, if that is one line.

Only as much of TOML is read as it takes to find the keys: a text that is valid needs no second grammar, just the ends
of strings and brackets. Keys themselves are given back to `tomllib`, which knows about quotes and escapes.
"""

import re
import tomllib
from typing import Final

Path = tuple[str, ...]

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_STRING: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2}(?!"))|' + r"'''.*?'''(?:'{0,2}(?!'))|" + r'"(?:\\.|[^"\\\n])*"|' + r"'[^'\n]*'",
    re.DOTALL,
)
_KEY_PIECE: Final = re.compile(r"[^\"'=\]]+")  # of a key up to its end, which is = or ]
_VALUE_PIECE: Final = re.compile(r"[^\"'\[\]{}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every key and table header of a valid TOML text, by its whole path.

    Of an array of tables it is the first header. A table that only an inline value makes has the line of that value.
    """
    text = text.replace("\r\n", "\n")
    lines: dict[Path, int] = {}
    table: Path = ()
    line, counted, at = 1, 0, _skip(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        if text[at] == "[":
            begin = at + (2 if text.startswith("[[", at) else 1)
            end = _end_of_key(text, begin)
            table = _path(text[begin:end])
            _note(lines, (), table, line)
            at = end + begin - at
        else:
            end = _end_of_key(text, at)
            path = _path(text[at:end])
            at = _end_of_value(text, end + 1)
            _note(lines, table, path, line)
            for inner in _inner_paths(text[end + 1 : at]):
                lines.setdefault((*table, *path, *inner), line)
        at = _skip(text, at)
    return lines


def _note(lines: dict[Path, int], table: Path, path: Path, line: int) -> None:
    """Note a key, and the tables that its dots make."""
    for length in range(1, len(path) + 1):
        lines.setdefault((*table, *path[:length]), line)


def _skip(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _end_of_key(text: str, at: int) -> int:
    """Return where the = or ] after a key stands."""
    while text[at] not in "=]":
        piece = _STRING.match(text, at) or _KEY_PIECE.match(text, at)
        at = piece.end() if piece else at + 1
    return at


def _end_of_value(text: str, at: int) -> int:
    """Return where the line break or comment after a value stands, or the end."""
    depth = 0
    while at < len(text) and (depth or text[at] not in "#\n"):
        piece = _STRING.match(text, at) or _VALUE_PIECE.match(text, at)
        if piece is None:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
        at = _skip(text, at) if text[at] in "#\n" else piece.end() if piece else at + 1
    return at


def _path(key: str) -> Path:
    """Return the parts of a dotted key."""
    parts = []
    found = tomllib.loads(f"{key.strip()} = 0")
    while isinstance(found, dict):
        parts.append(next(iter(found)))
        found = found[parts[-1]]
    return tuple(parts)


def _inner_paths(value: str) -> list[Path]:
    """Return the paths of the keys in an inline table of one line."""
    if "\n" in value or not value.lstrip().startswith("{"):
        return []
    paths: list[Path] = []
    waiting: list[tuple[Path, object]] = [((), tomllib.loads(f"v = {value}")["v"])]
    while waiting:
        path, found = waiting.pop()
        if isinstance(found, dict):
            waiting += [((*path, key), inner) for key, inner in found.items()]
        if path:
            paths.append(path)
    return paths

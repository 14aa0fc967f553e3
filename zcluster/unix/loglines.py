"""The lines of our log: what an event looks like as text and as JSON.

    [2026-01-31 12:00:00,123] INFO worker[2] gen=3 id=17 pid=4711: message
    {"time": "2026-01-31T12:00:00.123+01:00", "level": "info", "logger": "zcluster.worker", "process": "worker", ...}

Invariant: a line has at most LINE_MAX_BYTES, newline included. In JSON it is a whole object,
whatever had to be left out.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any, Final, Literal

LINE_MAX_BYTES: Final = 4096  # PIPE_BUF: what a pipe takes as a whole (pipe(7))
CUT: Final = " ..."  # ends a line that goes on, or that was cut
OUTPUT: Final = "output"  # level and logger of what an app has printed

Style = Literal["text", "json"]

_WHO = re.compile(r"(?P<process>\S+?)(?:\[(?P<slot>\d+)\])?(?: gen=(?P<generation>\d+))?(?: id=(?P<id>\d+))?")
_HEAD = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]{8,12}\] [A-Z]+ (.*?) pid=\d+: ")  # of a line of text: who says it
_FORMATTER = logging.Formatter()


def event(record: logging.LogRecord, who: str, pid: int, style: Style) -> list[bytes]:
    """Return the lines of one event: one, or as many as a traceback has. `who`: as it stands before `pid=`."""
    message = record.getMessage()
    trace = "" if record.exc_info is None else _FORMATTER.formatException(record.exc_info)
    if style == "json":
        return [_object(record.created, record.levelname.lower(), record.name, who, pid, message, trace)]
    text = f"[{_clock(record.created)}] {record.levelname} {who} pid={pid}: {message}"
    if not trace and "\n" not in message:
        return [_cut(text.encode(errors="backslashreplace"))]
    return list(_folded(f"{text}\n{trace}" if trace else text))


def printed(lines: list[bytes], who: str, pid: int, style: Style, now: float) -> list[bytes]:
    """Return the lines for what an application has printed, of which each may be of any length but the log's not."""
    if style == "json":
        most = LINE_MAX_BYTES // 2  # what is not ASCII takes more room, and what still does not fit is cut
        pieces = (piece.decode(errors="backslashreplace") for line in lines for piece in _split(line, most))
        return [_object(now, OUTPUT, OUTPUT, who, pid, piece, "") for piece in pieces]
    head = f"[{_clock(now)}] {OUTPUT.upper()} {who} pid={pid}: ".encode()
    most = LINE_MAX_BYTES - len(head) - len(CUT) - 1
    return [b"%b%b\n" % (head, piece) for line in lines for piece in _split(line, most)]


def speaker(line: str) -> str | None:
    """Return who says it: "worker[2] gen=3 id=17"; None for a line that goes on with what was said before."""
    if line.startswith("{"):
        try:
            said = json.loads(line)
            return f"{said['process']}[{said['slot']}] " if "slot" in said else f"{said['process']} "
        except (ValueError, KeyError, TypeError):
            return None
    found = _HEAD.match(line)
    return found[1] if found else None


def _clock(at: float) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))},{int(at * 1000) % 1000:03}"


def _cut(line: bytes) -> bytes:
    """One line, one write: its end is given up."""
    if len(line) < LINE_MAX_BYTES:
        return line + b"\n"
    return line[: LINE_MAX_BYTES - 1 - len(CUT)] + CUT.encode() + b"\n"


def _folded(text: str) -> Iterator[bytes]:
    """Every line of a traceback, none cut: its end is what the operator needs."""
    for line in text.split("\n"):
        for piece in _split(line.encode(errors="backslashreplace"), LINE_MAX_BYTES - 1 - len(CUT)):
            yield piece + b"\n"


def _split(line: bytes, most: int) -> Iterator[bytes]:
    """Pieces of at most `most` bytes, and the mark that there is more; no character is cut."""
    while len(line) > most:
        end = most
        while line[end] & 0xC0 == 0x80 and end > most - 3:  # UTF-8: it goes on here
            end -= 1
        yield line[:end] + CUT.encode()
        line = line[end:]
    yield line


def _object(at: float, level: str, logger: str, who: str, pid: int, message: str, trace: str) -> bytes:
    found = _WHO.fullmatch(who)
    names = found.groupdict() if found else {"process": who}
    said: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03}{_zone(at)}",
        "level": level,
        "logger": logger,
        "process": names["process"],
        **{name: int(names[name]) for name in ("slot", "generation", "id") if names.get(name)},
        "pid": pid,
        "message": message,
        **({"exc": trace} if trace else {}),
    }
    line = _encoded(said)
    if len(line) <= LINE_MAX_BYTES:
        return line
    shell = {**said, "truncated": True, "message": "", **({"exc": ""} if trace else {})}
    room = LINE_MAX_BYTES - len(_encoded(shell))
    # Of a message the beginning says most, of a traceback the end; a short one leaves its half to the other.
    said["message"] = _fitting(message, room if not trace else room // 2)
    room -= _length(said["message"])
    if trace:
        said["exc"] = _fitting(trace[::-1], room)[::-1]
    return _encoded({**said, "truncated": True})


def _fitting(text: str, room: int) -> str:
    """So many of its first characters as have room."""
    count = 0
    for char in text:
        room -= _length(char)
        if room < 0:
            break
        count += 1
    return text[:count]


def _length(text: str) -> int:
    return len(_encoded(text)) - 3  # without the quotes and the newline


def _encoded(said: dict[str, Any] | str) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _zone(at: float) -> str:
    minutes = time.localtime(at).tm_gmtoff // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"

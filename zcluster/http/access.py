"""The access log: one line per request, written by a thread of its own.

Invariant: no request ever waits for the log, and no client can write into it more than its own words on its own line:
whatever is not plain printable ASCII without quotes and backslashes is escaped.

Theory of operation. `note` renders the line with a function compiled from the format and appends it to a list; the
writer sleeps until there is a line, gathers for a tenth of a second or 64 KiB, and writes whole lines with one system
call. A file is opened for appending, so the lines of several workers never mix; a pipe takes up to PIPE_BUF bytes as
a whole, which is also the longest line. Descriptors never block where the kernel allows that, so a reader who has
stopped costs lines, which are counted and told, and never the end of the process.

The escaping costs one call. A JSON encoder in C makes exactly those characters longer that must not stand in a line;
so a line that grows by more than the format's own characters do has something in it, and only then is it rendered
again with care.
"""

import base64
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any, Final
from wsgiref.types import WSGIEnvironment

import msgspec

from zcluster.accessformat import JSON, NUMBERS, Piece, parse_format

from .head import environ_key
from .sink import LINE_MAX_BYTES, SLICE_S, Sink

# environ, its `get`, status line, response fields, body bytes, duration in seconds, the time, reader of credentials
Render = Callable[[WSGIEnvironment, Callable[..., Any], str, str, int, float, str, Callable[[object], str]], str]

GATHER_S: Final = 0.1  # how long a line may wait for others: not seen by who reads it, ten wake-ups a second
BATCH_BYTES: Final = 1 << 16  # some 400 lines: the cost of waking the writer is lost among them
# What may wait for a disk or a reader that has fallen behind: a second of a worker's full load (20,000 lines of 180
# bytes), which is longer than a disk's hiccup; the memory is little beside any application's.
WAITING_MAX_BYTES: Final = 5 << 20
STR_BYTES: Final = 64  # what a str costs beside its characters: the shortest lines must not cost the most memory
CLOSE_S: Final = 1.0  # the quick stop's whole time; a disk takes all that may wait in a tenth of it
TELL_S: Final = 1.0  # between two warnings about lost lines
# How much of a client's field is shown in a line that would otherwise be too long, from generous to certain to fit.
CUTS: Final = (1024, 256, 64)

_measure = msgspec.json.Encoder().encode  # '"', '\\', controls and what is not ASCII become longer
_ODD = re.compile(r"[^ !#-\[\]-~]")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # whatever the locale says  # noqa: SIM905


# ---- escaping ------------------------------------------------------------------------------------------------------
def _escape(text: str) -> str:
    r"""As Apache and nginx do: \" and \\, and \xhh for every other byte that is not printable ASCII."""
    return _ODD.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    char = found[0]
    if char in '"\\':
        return "\\" + char
    # Bytes of the client's come as one character each (PEP 3333); an application may have put others there.
    return "".join(f"\\x{byte:02x}" for byte in char.encode("latin-1" if char < "\u0100" else "utf-8", "replace"))


def _escape_json(text: str) -> str:
    """For the inside of a JSON string, in ASCII; bytes that are UTF-8 are read as that."""
    try:
        text = text.encode("latin-1").decode()
    except UnicodeError:
        pass  # no UTF-8, or no bytes: as it stands
    return encode_basestring_ascii(text)[1:-1].replace("\x7f", "\\u007f")


class _Tamer:
    """Escapes values, cut to so many characters."""

    def __init__(self, escape: Callable[[str], str], most: int) -> None:
        self._escape, self._most = escape, most

    def __call__(self, value: object) -> str:
        text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else "-"
        return self._escape(text if len(text) <= self._most else text[: self._most] + "...")

    def instead(self, value: str) -> Callable[[object], str]:
        """A function that gives this value for any other."""
        return lambda _: self(value)


def _user(credentials: object) -> str:
    """The user name of HTTP Basic authentication; empty when these are no such credentials."""
    if not isinstance(credentials, str) or credentials[:6].lower() != "basic ":
        return ""
    try:
        return base64.b64decode(credentials[6:].strip(), validate=True).decode("latin-1").partition(":")[0]
    except ValueError:  # no base64
        return ""


def _variable(environ: WSGIEnvironment, name: str, missing: str) -> str:
    value = environ.get(name)
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) else missing


# ---- the format, compiled ------------------------------------------------------------------------------------------
_EXPRESSIONS: Final = {
    "h": '(get("REMOTE_ADDR") or missing)',
    "l": '"-"',
    "u": '(user(get("HTTP_AUTHORIZATION")) or missing if "HTTP_AUTHORIZATION" in environ else missing)',
    "t": "when",
    "iso": "when",
    "r": 'get("REQUEST_METHOD", "-"), " ", get("RAW_URI", "-"), " ", get("SERVER_PROTOCOL", "-")',
    "m": 'get("REQUEST_METHOD", missing)',
    "U": 'get("PATH_INFO", missing)',
    "q": 'get("QUERY_STRING", "")',
    "H": 'get("SERVER_PROTOCOL", missing)',
    "s": "status_line[9:12]",
    "B": "sent",
    "b": '(str(sent) if sent else "-")',
    "f": 'get("HTTP_REFERER", missing)',
    "a": 'get("HTTP_USER_AGENT", missing)',
    "T": "int(duration_s)",
    "M": "int(duration_s * 1e3)",
    "D": "int(duration_s * 1e6)",
    "L": '"%.6f" % duration_s',
}
# What the expressions above take from the environ, beside what {name}i and {name}e name.
_KEYS: Final = (
    *("REMOTE_ADDR", "HTTP_AUTHORIZATION", "REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL", "PATH_INFO"),
    *("QUERY_STRING", "HTTP_REFERER", "HTTP_USER_AGENT"),
)


class _Format:
    """A format as a function; immutable once made."""

    def __init__(self, text: str) -> None:
        pieces = parse_format(text)
        self.is_json = pieces is JSON
        self.escape = _escape_json if self.is_json else _escape
        self.has_time = any(piece.atom in ("t", "iso") for piece in pieces)
        self.keys = dict.fromkeys(_KEYS)
        # An absent value is "" in JSON, where "-" would be a value.
        self._names: dict[str, object] = {"variable": _variable, "missing": "" if self.is_json else "-"}
        expressions = [*(self._expression(piece) for piece in pieces), repr("\n")]
        # The names are ours, and the format's texts stand in it as literals.
        arguments = "environ, get, status_line, fields, sent, duration_s, when, user"
        self.render: Render = eval(f'lambda {arguments}: "".join(({", ".join(expressions)},))', self._names)
        literals = "".join(piece.literal for piece in pieces) + "\n"
        self.growth = len(_measure(literals)) - len(literals)

    def _expression(self, piece: Piece) -> str:
        """Python for one piece, a str; TypeError at run time if the application put something else there."""
        if not piece.atom:
            return repr(piece.literal)
        match piece.atom:
            case "i":
                key = environ_key(piece.name)
                self.keys[key] = None
                expression = f"get({key!r}, missing)"
            case "e":
                self.keys[piece.name] = None
                expression = f"variable(environ, {piece.name!r}, missing)"
            case "o":
                field = f"field_{len(self._names)}"
                self._names[field] = re.compile(rf"(?im)^{re.escape(piece.name)}:[ \t]*([^\r\n]*)").findall
                expression = f'(", ".join({field}(fields)) or missing)'
            case "p" | "pid":
                expression = repr(f"<{os.getpid()}>" if piece.atom == "p" else f"{os.getpid()}")
            case atom:
                expression = _EXPRESSIONS[atom]
        if piece.padding:
            if piece.atom == "r":
                expression = f'"".join(({expression}))'
            return f'"%{piece.padding}{piece.conversion}" % ({expression},)'
        return f"str({expression})" if piece.atom in NUMBERS else expression


def _zone(at: time.struct_time, colon: str) -> str:
    minutes = at.tm_gmtoff // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{colon}{abs(minutes) % 60:02}"


# ---- the log -------------------------------------------------------------------------------------------------------
class AccessLog:
    """An access log of this process; make it after the fork, `start` it, `close` it.

    `target` is a path, or '-' for stdout; `format` is gunicorn's, or 'json' (`ConfigError` for what it cannot be).
    `note` may be called by any thread; the others by the thread that leads the process. `lost` counts the lines that
    never got into the log.
    """

    def __init__(self, target: str, format: str, *, log: logging.Logger | None = None) -> None:
        self.lost = 0
        self._format = _Format(format)
        self._render = self._format.render
        self._growth = self._format.growth
        self._log = log or logging.getLogger("zcluster.access")
        self._sink = Sink(target, self._log)
        self._second = -1.0 if self._format.has_time else float("-inf")  # the one that `_when` is for
        self._next_second = 0.0 if self._format.has_time else float("inf")
        self._when = ""
        self._lock = threading.Lock()  # held for some stores only, by whoever has it
        self._changed = threading.Condition(self._lock)
        self._lines: list[str] = []
        self._waiting = 0  # bytes noted and not yet written, in `_lines` and with the writer
        self._reopen = self._closing = False
        self._give_up_at = 0.0
        self._told = 0
        self._tell_at = 0.0
        # It runs nothing of the application's, and `close` sees it end: no daemon.
        self._thread = threading.Thread(target=self._write, name="zcluster-access-log")

    # ---- called for each request -----------------------------------------------------------------------------------
    def note(self, environ: WSGIEnvironment, line: str, fields: str, sent_bytes: int, duration_s: float, /) -> None:
        """Log one exchange: its environ, the status line and the fields of the response, both with their CR LF.

        Neither waits nor raises, whatever an application has put into its environ.
        """
        now = time.time()
        if not self._second <= now < self._next_second:
            self._tell_time(now)
        try:
            text = self._render(environ, environ.get, line, fields, sent_bytes, duration_s, self._when, _user)
            length = len(text)
            measured = len(_measure(text))
            fine = measured == length + self._growth and measured <= LINE_MAX_BYTES and "\x7f" not in text
        except (TypeError, UnicodeEncodeError):  # no str where one belongs, or half a character
            fine = False
        if not fine:
            text = self._careful(environ, line, fields, sent_bytes, duration_s)
            length = len(text)
        lock = self._lock
        lock.acquire()  # `with` costs twice as much
        try:
            before = self._waiting
            after = before + length + STR_BYTES
            if after > WAITING_MAX_BYTES or self._closing:
                self.lost += 1
                return
            self._lines.append(text)
            self._waiting = after
            if not before or before < BATCH_BYTES <= after:
                self._changed.notify()
        finally:
            lock.release()

    def _tell_time(self, now: float) -> None:
        """Format the time; once a second, for it costs as much as all the rest of a line."""
        second = int(now)
        at = time.localtime(second)
        clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
        if self._format.is_json:
            self._when = f"{at.tm_year}-{at.tm_mon:02}-{at.tm_mday:02}T{clock}{_zone(at, ':')}"
        else:
            self._when = f"[{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{clock} {_zone(at, '')}]"
        self._second, self._next_second = second, second + 1

    def _careful(self, environ: WSGIEnvironment, line: str, fields: str, sent: int, duration_s: float) -> str:
        """The same line with everything escaped, and cut where it would be too long."""
        escape = self._format.escape
        user = _user(environ.get("HTTP_AUTHORIZATION"))
        text = ""
        for most in CUTS:
            tame = _Tamer(escape, most)
            safe = {key: tame(environ.get(key)) for key in self._format.keys if key in environ}
            answer = "\r\n".join(tame(field) for field in fields.split("\r\n"))
            text = self._render(safe, safe.get, line, answer, sent, duration_s, self._when, tame.instead(user))
            if len(text.encode(errors="backslashreplace")) <= LINE_MAX_BYTES:
                return text
        # Only a format of many fields comes here, and no JSON: the end of the line is given up.
        return text.encode(errors="backslashreplace")[: LINE_MAX_BYTES - 5].decode(errors="ignore") + " ...\n"

    # ---- called by whoever leads the process -----------------------------------------------------------------------
    def start(self) -> None:
        """Open the log and start the writer. A log that cannot be opened is logged as an error, and tried again."""
        self._sink.open()
        self._thread.start()

    def reopen(self) -> None:
        """Soon write to the file that has the name then; for after log rotation. Does not wait."""
        with self._lock:
            self._reopen = True
            self._changed.notify()

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Write what is waiting, for at most this long, and end the writer. Idempotent."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._give_up_at = time.monotonic() + timeout_s
                self._changed.notify()
        if self._thread.ident is not None:
            # Ends by itself in time unless the kernel holds it in a write to a file (a dead network file system).
            self._thread.join(timeout_s + 10 * SLICE_S)
        if not self._thread.is_alive():
            self._sink.close()

    def close_in_child(self) -> None:
        """In a process forked by the application: it has no writer, so it writes nothing, and the parent all."""
        self._lock = threading.Lock()  # its holder may not exist here
        self._changed = threading.Condition(self._lock)
        self._lines = []
        self._closing = True
        self._sink.close()

    # ---- the writer ------------------------------------------------------------------------------------------------
    def _write(self) -> None:
        # A background job writes to the terminal although `stty tostop` forbids it, as daemons do (termios(3)).
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
        closing = False
        while not closing:
            with self._lock:
                self._changed.wait_for(lambda: self._lines or self._reopen or self._closing)
                self._changed.wait_for(self._is_enough, GATHER_S)
                lines, self._lines = self._lines, []
                reopen, self._reopen = self._reopen, False
                closing = self._closing
            if reopen:
                self._sink.reopen()
            lost = self._sink.write("".join(lines).encode(errors="backslashreplace"), self._go_on)
            with self._lock:
                self._waiting -= sum(map(len, lines)) + STR_BYTES * len(lines)
                self.lost += lost
            self._tell_lost(closing)

    def _is_enough(self) -> bool:
        return self._waiting >= BATCH_BYTES or self._reopen or self._closing

    def _go_on(self) -> bool:
        """Nobody reads: wait on, unless the log is being closed and its time is up."""
        self._tell_lost(False)
        return not self._closing or time.monotonic() < self._give_up_at

    def _tell_lost(self, now: bool) -> None:
        """One warning a second at most. While the log cannot be written at all, that has been said already."""
        at = time.monotonic()
        if self.lost > self._told and (now or (at >= self._tell_at and not self._sink.in_trouble)):
            self._log.warning("%d lines of the access log %s were lost", self.lost - self._told, self._sink.name)
            self._told = self.lost
            self._tell_at = at + TELL_S

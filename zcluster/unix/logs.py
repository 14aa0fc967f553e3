"""Our log: one line per event on stderr, each begun with who says it.

Invariant: a line is one write, so lines of several processes never mix (pipes take up to 4096 bytes in one piece,
PIPE_BUF of pipe(7); on files O_APPEND does it). Only the logger "zcluster" is configured; the app's logging is
its own.
"""

import logging
import os
import sys

LINE_MAX_BYTES = 4096


class _OneWrite(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = (self.format(record) + "\n").encode(errors="backslashreplace")
            if record.exc_info is None and len(data) > LINE_MAX_BYTES and b"\n" not in data[:-1]:
                data = data[: LINE_MAX_BYTES - 5] + b" ...\n"
            os.write(2, data)
        except OSError:  # stderr is closed or its reader is gone: there is nowhere to say so
            pass


def log_to_stderr(who: str, level: str) -> None:
    """Send the "zcluster" loggers of this process to stderr as `who`; call it again after a fork."""
    handler = _OneWrite()
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] %(levelname)s {who} pid={os.getpid()}: %(message)s"))
    ours = logging.getLogger("zcluster")
    ours.handlers[:] = [handler]
    ours.propagate = False
    ours.setLevel(level.upper())


def say(line: str) -> None:
    """One line on stdout, now. A stdout that is closed, or that nobody reads any more, is not our failure."""
    if sys.stdout is None:  # descriptor 1 was closed when the interpreter started
        return
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except ValueError:  # closed by somebody
        return
    except OSError:
        # The line is still buffered: the interpreter would try again at its end, fail, and exit with code 120.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

"""Small files that a process leaves in the run directory for its master: its stacks, or why it could not start.

Invariant: they lie on tmpfs, so whoever reads or writes one never waits for a disk.
"""

import faulthandler
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from .process import DUMP_SIGNAL

NOTE_MAX_CHARS: Final = 65_536  # it goes into the log in one piece; the newest stacks stand at the end


def dump_into(path: Path) -> int:
    """Have DUMP_SIGNAL write the stacks of all threads into this file; returns its descriptor, to be kept open."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    faulthandler.register(DUMP_SIGNAL, file=fd, all_threads=True)
    return fd


def read_note(path: Path) -> str:
    """The end of what was written, empty when nothing was."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")[-NOTE_MAX_CHARS:].rstrip()
    except FileNotFoundError:
        return ""


def empty_note(path: Path) -> None:
    """Have what is written from now on stand alone; its writer appends."""
    with suppress(FileNotFoundError):
        os.truncate(path, 0)

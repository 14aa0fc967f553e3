"""The stacks of workers and zygotes, asked for by a signal while they run, or hang, and read from their notes.

Invariant: asking changes nobody. A stopped process is not continued, and one whose handler does not stand yet is not
signalled, for that would end it.

Theory of operation. DUMP_SIGNAL makes faulthandler write all stacks (`notes`), in C and without the interpreter's
lock: also in a process that computes in C for ever. The end of what is written has no mark. But the kernel says when
the handler has returned: until then the signal is pending, or blocked in the thread that runs the handler. (Threads
in which it was blocked before, those of ZeroMQ, do not count.) So nobody has to guess how long to wait, and `Dumps`
never waits: whoever uses it looks again, some milliseconds later.

Who is there is read from the locks and the ledger: this needs no master, and finds those who are leaving, too.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcluster.core.ledger import Ledger
from zcluster.unix import lanes, process
from zcluster.unix.locks import NAMES_BYTE, ZYGOTE_BASE, LockFile
from zcluster.unix.notes import NOTE_MAX_CHARS

LOOK_AGAIN_S: Final = 0.01  # a dump of ten threads takes less than a millisecond of the process's time
# Then the process is not running at all: on a busy machine it may wait a second or two for a CPU.
LIMIT_S: Final = 5.0
NOTE_MAX_BYTES: Final = 1 << 20  # a note that has grown to this begins anew: a hundred dumps on tmpfs are enough
GENERATIONS_MAX: Final = NAMES_BYTE - ZYGOTE_BASE  # bytes of the lock file that belong to zygotes
# Root may ask for the stacks of another user's cluster, whose files can be links to root's, or pipes without an end.
_AS_IT_IS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BIT: Final = 1 << (process.DUMP_SIGNAL - 1)


@dataclass(frozen=True)
class Target:
    """A process that writes its stacks when it is told to."""

    label: str
    pid: int
    start: int
    path: Path
    slot: int | None = None  # of a worker


def targets(run_dir: Path, ledger: Ledger, locks: LockFile) -> list[Target]:
    """All workers by slot, then all zygotes. What dies meanwhile is found out when it is asked."""
    found = []
    for info in sorted(lanes.holders(ledger, locks).living, key=lambda info: (info.slot, info.id)):
        label = f"worker[{info.slot}] gen={info.generation} id={info.id} pid={info.pid}"
        found.append(Target(label, info.pid, info.start, run_dir / f"stacks-{info.id}", info.slot))
    for byte, pid in sorted(locks.owners(ZYGOTE_BASE, GENERATIONS_MAX).items()):
        generation = byte - ZYGOTE_BASE
        label = f"zygote gen={generation} pid={pid}"
        found.append(Target(label, pid, process.start_time(pid), run_dir / f"stacks-zygote-{generation}"))
    return found


class Dump:
    """The stacks of one process. `text` is theirs, or says why there are none (`ok` false); None: not yet."""

    def __init__(self, target: Target, now: float) -> None:
        self.target = target
        self.text: str | None = None
        self.ok = False
        self._until = now + LIMIT_S
        self._offset = 0
        self._blocked: frozenset[str] = frozenset()
        self._begin()

    def _begin(self) -> None:
        target = self.target
        found = process.stat(target.pid)
        if found is None or found.is_dead or found.start != target.start:
            self.text = "it has ended"
        elif found.state in "Tt":
            self.text = (
                f"stopped (state {found.state}): it can show its stacks when it goes on (kill -CONT {target.pid})"
            )
        elif not _status(f"/proc/{target.pid}/status").get("SigCgt", 0) & _BIT:
            self.text = "it has just begun and cannot show its stacks yet, or it is about to end"
        else:
            self._offset = _begin_anew(target.path)
            self._blocked = _threads(target.pid)[1]
            if not process.send_signal(target.pid, target.start, process.DUMP_SIGNAL):
                self.text = "it has ended"

    def look(self, now: float) -> None:
        """See whether it is through."""
        if self.text is not None:
            return
        pid = self.target.pid
        if self._is_complete():
            self.text, self.ok = _read(self.target.path, self._offset), True
        elif not process.is_alive(pid, self.target.start):
            self.text = "it has ended"
        elif now >= self._until:
            found = process.stat(pid)
            state = found.state if found is not None else "unknown"
            self.text = f"it did not show its stacks within {LIMIT_S:g} s: it does not run (state {state})"

    def _is_complete(self) -> bool:
        """Whether something was written, and the handler has returned.

        In this order: between taking a signal and blocking it the kernel shows neither, but nothing is written yet.
        """
        if not _read(self.target.path, self._offset):
            return False
        is_pending, blocked = _threads(self.target.pid)
        return not is_pending and blocked <= self._blocked


class Dumps:
    """Those that were asked for and are not complete. For one thread."""

    def __init__(self) -> None:
        self._open: list[Dump] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, asked: Iterable[Target], now: float) -> None:
        """Ask these processes, those excepted that were asked just now."""
        there = {dump.target for dump in self._open}
        self._open += [Dump(target, now) for target in asked if target not in there]

    def collect(self, now: float) -> list[Dump]:
        """Those that are complete by now, in the order in which they were asked for; each once."""
        for dump in self._open:
            dump.look(now)
        done = [dump for dump in self._open if dump.text is not None]
        self._open = [dump for dump in self._open if dump.text is None]
        return done


def _begin_anew(path: Path) -> int:
    """Where the next dump begins in this note, which is emptied when it has become too long."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | _AS_IT_IS), "wb", buffering=0) as note:
            size = os.fstat(note.fileno()).st_size
            if size > NOTE_MAX_BYTES:
                note.truncate(0)  # its writer appends
                return 0
    except OSError:  # gone with its process
        return 0
    return size


def _read(path: Path, offset: int) -> str:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _AS_IT_IS), "rb") as note:
            size = os.fstat(note.fileno()).st_size
            # Shorter than it was: somebody else has asked, and emptied it.
            note.seek(max(offset if offset <= size else 0, size - NOTE_MAX_CHARS))
            return note.read(NOTE_MAX_CHARS).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _threads(pid: int) -> tuple[bool, frozenset[str]]:
    """Whether DUMP_SIGNAL waits for this process, and the threads in which it is blocked."""
    is_pending, blocked = False, set()
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False, frozenset()
    for task in tasks:
        masks = _status(f"/proc/{pid}/task/{task}/status")
        is_pending = is_pending or bool((masks.get("SigPnd", 0) | masks.get("ShdPnd", 0)) & _BIT)
        if masks.get("SigBlk", 0) & _BIT:
            blocked.add(task)
    return is_pending, frozenset(blocked)


def _status(path: str) -> dict[str, int]:
    """The signal masks of proc(5) status; empty when the thread has ended."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines() if line.startswith(("Sig", "Shd")))
    return {name: int(value, 16) for name, _, value in pairs if name != "SigQ"}

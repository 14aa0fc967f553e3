"""The state directory (`--state DIR`): what lets the counters outlive the cluster and the machine's memory.

    lock          byte 0: the launcher that uses the directory; byte 1: the one process that writes checkpoints
    id            names the directory for ever
    checkpoint    the totals, written every second while they change; checkpoint.1 is the one before
    ledger        which shared-memory ledger counts on top, replaced only after that ledger is complete

Invariant: a start goes on from exactly one source. The left-over ledger, if it is the one that `ledger` names, of
this directory (not of a copy), complete and of this boot, holds everything; otherwise the checkpoint holds everything
known. They are never added. A name is replaced only by rename, after fsync of the content, before fsync of the
directory: at every instant each file is whole, the old one or the new.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from zcluster.core.checkpoint import SEALED_BYTES_MAX, Checkpoint, Damaged, Pointer, seal, unseal
from zcluster.core.ledger import Ledger, LedgerError
from zcluster.errors import SpawnError
from zcluster.unix.ledgerfile import LedgerFile, open_ledger
from zcluster.unix.locks import LANES_END, LockFile

STATE_LAUNCHER_BYTE: Final = 0
STATE_WRITER_BYTE: Final = 1
# The launcher has already waited for, or killed, what was left of the same name; this covers another name's rest.
WRITERS_WAIT_S: Final = 5.0
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EISDIR)
_FIFO_READ_BYTES: Final = 65_536  # the capacity of a pipe: one read empties it


@dataclass(frozen=True)
class Base:
    """What a new ledger goes on from."""

    totals: dict[str, int]
    source: str  # ledger | checkpoint | nothing
    note: str  # one line for the log: what was used, and why not the other


class State:
    """A state directory held by this launcher until `close`. One thread."""

    def __init__(self, path: Path, locks: LockFile, state_id: bytes) -> None:
        """Use `open_state`."""
        self.path = path
        self.id = state_id
        self._locks = locks
        self._home = _identity(locks)

    def base(self, boot_id: bytes, *, wait_s: float = WRITERS_WAIT_S) -> Base:
        """The totals to start from. SpawnError: processes still count for it, or every copy is damaged."""
        notes: list[str] = []
        checkpoint = self._load_checkpoint(notes)
        damaged = checkpoint is None and bool(notes)
        pointer = self._load_pointer(notes)
        if pointer is not None:
            self._wait_for_writers(pointer, wait_s)
            totals = self._left_over(pointer, boot_id, checkpoint, notes)
            if totals is not None:
                return Base(totals, "ledger", f"counters go on from the ledger {pointer.path}")
        if damaged:
            advice = "restore a backup, or move the directory away to start from zero"
            raise _unusable(self.path, f"{'; '.join(notes)}; {advice}")
        why = "".join(f" ({note})" for note in notes)
        if checkpoint is not None:
            text = f"counters go on from checkpoint {checkpoint.number} in {self.path}{why}"
            return Base(dict(checkpoint.totals), "checkpoint", text)
        return Base({}, "nothing", f"counters start at zero: {self.path} holds no checkpoint{why}")

    def adopt(self, ledger_path: str | Path, locks_path: str | Path, ledger_id: bytes) -> None:
        """From now on this complete ledger counts; call before anything can store into it. SpawnError."""
        pointer = Pointer(str(ledger_path), str(locks_path), ledger_id.hex(), self._home)
        try:
            _replace(self.path, "ledger", seal(pointer))
        except OSError as error:
            raise _unusable(self.path, f"cannot write: {error.strerror}") from error

    def covers(self, ledger: Ledger) -> bool:
        """Whether the newest checkpoint holds all that the ledger holds: only then may the ledger be removed."""
        try:
            saved = unseal(_read(self.path / "checkpoint"), Checkpoint)
        except (OSError, Damaged):
            return False
        return saved.ledger == ledger.ledger_id.hex() and saved.totals == ledger.totals()

    def close(self) -> None:
        """Let go of the directory."""
        self._locks.close()

    def _load_checkpoint(self, notes: list[str]) -> Checkpoint | None:
        """The newest undamaged checkpoint; what is wrong with a damaged one is noted."""
        for name in ("checkpoint", "checkpoint.1"):
            try:
                found = unseal(_read(self.path / name), Checkpoint)
                if found.state != self.id.hex():
                    raise Damaged("it was written for another state directory")
                return found
            except FileNotFoundError:
                continue
            except Damaged as error:
                notes.append(f"{name}: {error}")
            except OSError as error:
                raise _unusable(self.path, f"cannot read {name}: {error.strerror}") from error
        return None

    def _load_pointer(self, notes: list[str]) -> Pointer | None:
        try:
            pointer = unseal(_read(self.path / "ledger"), Pointer)
        except FileNotFoundError:
            return None
        except Damaged as error:
            notes.append(f"ledger: {error}")
            return None
        except OSError as error:
            raise _unusable(self.path, f"cannot read ledger: {error.strerror}") from error
        if pointer.home != self._home:
            notes.append("this is a copy or a restored backup: the original's ledger is not ours")
            return None
        return pointer

    def _left_over(
        self, pointer: Pointer, boot_id: bytes, checkpoint: Checkpoint | None, notes: list[str]
    ) -> dict[str, int] | None:
        """The totals of the left-over ledger, or None with the reason noted."""
        try:
            file = open_ledger(pointer.path, writable=False)
        except (FileNotFoundError, NotADirectoryError):
            notes.append("the last ledger is gone, as after a clean stop or a reboot")
            return None
        except LedgerError as error:
            notes.append(f"left-over ledger: {error}")
            return None
        except OSError as error:
            raise SpawnError(f"cannot read the left-over ledger {pointer.path}: {error.strerror}") from error
        try:
            return self._judge(file, pointer, boot_id, checkpoint, notes)
        finally:
            file.close()

    def _judge(
        self, file: LedgerFile, pointer: Pointer, boot_id: bytes, checkpoint: Checkpoint | None, notes: list[str]
    ) -> dict[str, int] | None:
        ledger = file.ledger
        if ledger.boot_id != boot_id:
            notes.append("the left-over ledger is of another boot")
            return None
        if ledger.ledger_id.hex() != pointer.ledger or ledger.state_id != self.id:
            notes.append("the file at the ledger's place is another ledger")
            return None
        try:
            totals = ledger.totals()
        except LedgerError as error:
            notes.append(f"left-over ledger: {error}")
            return None
        # A ledger only grows; less than its own checkpoint means somebody wrote over it.
        saved = checkpoint.totals if checkpoint is not None and checkpoint.ledger == pointer.ledger else {}
        if any(totals.get(name, 0) < total for name, total in saved.items()):
            notes.append("the left-over ledger holds less than its own checkpoint")
            return None
        return totals

    def _wait_for_writers(self, pointer: Pointer, wait_s: float) -> None:
        """A worker that outlived its launcher may still count into the ledger we are about to sum."""
        path = Path(pointer.locks)
        if not path.exists():
            return
        locks = LockFile(path)
        try:
            deadline_s = time.monotonic() + wait_s
            while pids := sorted(set(locks.owners(0, LANES_END).values())):
                if time.monotonic() >= deadline_s:
                    raise SpawnError(
                        f"processes {pids} of an earlier cluster still count for --state {self.path};"
                        " end them, then start again"
                    )
                time.sleep(0.01)
        finally:
            locks.close()


class CheckpointFile:
    """The writing end of the checkpoint, for the checkpoint service. One thread; a context manager."""

    def __init__(self, path: str | Path) -> None:
        """SpawnError when the directory is not a state directory."""
        self.path = Path(path)
        self.state_id = _read_id(self.path)
        self._locks = LockFile(self.path / "lock")
        self._worth_keeping = self._is_whole()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._locks.close()

    def try_turn(self) -> bool:
        """Become the one writer; False while another process is: it could replace our newer file by its older one."""
        return self._locks.try_lock(STATE_WRITER_BYTE)

    def write(self, ledger_id: bytes, number: int, totals: Mapping[str, int]) -> None:
        """Replace the checkpoint; on return it survives a power cut. OSError: it is the old one or the new."""
        checkpoint = Checkpoint(self.state_id.hex(), ledger_id.hex(), number, dict(totals))
        _replace(self.path, "checkpoint", seal(checkpoint), self._keep_previous)
        self._worth_keeping = True

    def _is_whole(self) -> bool:
        try:
            return unseal(_read(self.path / "checkpoint"), Checkpoint).state == self.state_id.hex()
        except (OSError, Damaged):
            return False

    def _keep_previous(self) -> None:
        """Make checkpoint.1 a second name of the present checkpoint, so that `checkpoint` exists at every instant.

        A damaged one is not kept: it would replace the good one before it.
        """
        if not self._worth_keeping:
            return
        present, previous = self.path / "checkpoint", self.path / "checkpoint.1"
        draft = self.path / "checkpoint.1.tmp"
        try:
            draft.unlink(missing_ok=True)
            os.link(present, draft, follow_symlinks=False)
            draft.rename(previous)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            present.rename(previous)  # FAT and some network filesystems
            self._worth_keeping = False  # until the next is in its place


def open_state(path: str | Path) -> State:
    """Take a state directory, made if missing (0700). SpawnError: unusable, or another cluster has it."""
    path = Path(path).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = (
            "it is not a directory" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        )
        raise _unusable(path, str(reason)) from error
    try:
        locks = LockFile(path / "lock")
    except SpawnError as error:
        raise _unusable(path, str(error)) from error
    try:
        if not locks.try_lock(STATE_LAUNCHER_BYTE):
            holder = locks.owner(STATE_LAUNCHER_BYTE)
            raise SpawnError(f"--state {path} is in use by another cluster (launcher {holder}); give each its own")
        return State(path, locks, _ensure_id(path))
    except BaseException:
        locks.close()
        raise


def open_fifo(path: str | Path) -> int:
    """The service's end of the poke FIFO, made if missing (0600): readable when somebody waits for a checkpoint.

    Opened for writing too, so that it never reports end of file when the last waiter has gone.
    """
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        pass  # a service before us made it
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)


def poke(path: str | Path) -> None:
    """Ask the service for a checkpoint now. Never blocks or raises: the waiter asks again, and the period comes."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # no service at this moment: a new one writes a checkpoint first thing
    try:
        os.write(fd, b"!")
    except OSError:
        pass  # full of pokes already, or the service has just gone
    finally:
        os.close(fd)


def drain_fifo(fd: int) -> None:
    """Take all pokes that have arrived: one checkpoint answers them all."""
    try:
        os.read(fd, _FIFO_READ_BYTES)
    except BlockingIOError:
        pass  # another reader was faster


def _unusable(path: Path, reason: str) -> SpawnError:
    return SpawnError(f"cannot use --state {path}: {reason}")


def _identity(locks: LockFile) -> tuple[int, int]:
    stat = os.fstat(locks.fd)
    return stat.st_dev, stat.st_ino


def _ensure_id(path: Path) -> bytes:
    try:
        if not (path / "id").exists():
            if (path / "checkpoint").exists() or (path / "checkpoint.1").exists():
                raise _unusable(path, "it has a checkpoint and no id; restore the file id of the same backup")
            _replace(path, "id", os.urandom(16).hex().encode() + b"\n")
    except OSError as error:
        raise _unusable(path, f"cannot write: {error.strerror}") from error
    return _read_id(path)


def _read_id(path: Path) -> bytes:
    try:
        state_id = bytes.fromhex(_read(path / "id").decode().strip())
    except OSError as error:
        raise _unusable(path, f"cannot read id: {error.strerror}") from error
    except (ValueError, Damaged):
        state_id = b""
    if len(state_id) != 16 or state_id == bytes(16):
        raise _unusable(path, "the file id is damaged; restore it from a backup")
    return state_id


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(SEALED_BYTES_MAX + 1)
    if len(raw) > SEALED_BYTES_MAX:
        raise Damaged(f"it is larger than {SEALED_BYTES_MAX} bytes")
    return raw


def _replace(folder: Path, name: str, content: bytes, before: Callable[[], None] = lambda: None) -> None:
    """Replace one file for good: write beside it, fsync, (`before`,) rename, fsync the directory."""
    draft = folder / f"{name}.tmp"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        before()
        draft.rename(folder / name)
    except OSError:
        draft.unlink(missing_ok=True)  # a half-written draft would keep what is left of a full disk
        raise
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

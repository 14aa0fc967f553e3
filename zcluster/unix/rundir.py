"""The run directory: where the processes of one cluster find each other.

```
<base>/zcluster-<uid>/            0700, ours; <base> is a tmpfs, /dev/shm by default
  <name>/lock                     byte 0 is locked by the living launcher of that name
  <name>/current                  the instance it runs
  <name>/<instance>/              ctl pub evt (sockets), ledger, locks, leash, stacks of hung workers
```
Invariant: who lives is told by POSIX locks alone, which the kernel releases with the process. A file is never proof.
"""

import os
import re
import secrets
import shutil
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from zcluster.core.ledger import LedgerError
from zcluster.errors import SpawnError
from zcluster.unix.ledgerfile import open_ledger, require_tmpfs
from zcluster.unix.locks import LockFile, first_lock
from zcluster.unix.process import is_alive, send_signal, start_time

NAME_BYTE = 0  # of the name's lock file
NAMES_MAX = 1000  # far more clusters than one user runs under one app name
ALL_BYTES = 1 << 22  # more than any byte of locks.py
DEFAULT_BASE = Path("/dev/shm")
RACES_MAX = 100  # tries to make and lock a name that others are removing; each needs another one to end just then
INSTANCE_BYTES = 4  # random; it only has to differ from the few that died under the same name
KILL_GRACE_S = 5.0  # SIGKILL takes milliseconds, but for a process that waits for a disk
OLDER_GRACE_S = 5.0  # what an older instance's processes get to leave: its orphan time-out and a margin
SOCKET_PATH_MAX_BYTES = 107  # unix(7) sun_path, less the NUL


@dataclass(frozen=True)
class Found:
    """A running cluster."""

    name: str
    path: Path  # of its instance
    launcher_pid: int


@dataclass
class RunDir:
    """A claimed name and its fresh instance directory; keep `lock` open for life."""

    name: str
    path: Path
    lock: LockFile
    older: tuple[Path, ...]

    def publish(self) -> None:
        """Let others find this instance under its name."""
        draft = self.path / "current.new"
        draft.write_text(self.path.name, encoding="ascii")
        draft.rename(self.path.parent / "current")

    def remove(self, *, keep_ledger: bool = False) -> None:
        """Remove this instance; with `keep_ledger` all of it but the ledger, for the next start to resume from.

        The last thing a launcher does: the name's lock file goes too, so hold its lock until here.
        """
        try:
            for entry in self.path.iterdir():
                if stat.S_ISDIR(entry.lstat().st_mode):  # temporary files of the app, where there is no other place
                    shutil.rmtree(entry, ignore_errors=True)
                elif not (keep_ledger and entry.name == "ledger"):
                    entry.unlink(missing_ok=True)
            if not keep_ledger:
                self._remove_folders()
        except FileNotFoundError:
            pass  # an operator, or logind (RemoveIPC), has removed it under us: what we wanted

    def _remove_folders(self) -> None:
        self.path.rmdir()
        folder = self.path.parent
        (folder / "current").unlink(missing_ok=True)
        _remove_name(folder)


def _remove_name(folder: Path) -> None:
    """Remove the folder of a name whose lock we hold, and its parent, if they are empty. Needs no descriptor."""
    (folder / "lock").unlink(missing_ok=True)  # whoever finds it gone makes another
    for empty in (folder, folder.parent):
        try:
            empty.rmdir()
        except OSError:  # an older instance's ledger is kept there, another cluster lives there, or is being started
            break


def root_of(base: Path | None) -> Path:
    """The directory of all of this user's clusters."""
    # Absolute: it is told to other processes, and an app may change its directory while it is imported.
    return (base or DEFAULT_BASE).absolute() / f"zcluster-{os.getuid()}"


def claim(base: Path | None, wanted: str, default: str) -> RunDir:
    """Take a name and make an instance directory. `wanted` is the operator's, "" takes `default`, `default`-2, ...

    Raises SpawnError: no writable tmpfs, a directory that is not safely ours, a path too long for a socket, or an
    explicit name that is taken (naming the launcher that holds it).
    """
    root = root_of(base)
    _check_base(root.parent)
    for number in range(1, NAMES_MAX):
        name = wanted or (default if number == 1 else f"{default}-{number}")
        lock = _lock_name(root, name)
        if isinstance(lock, LockFile):
            return _instance(name, root / name, lock)
        if wanted:
            raise SpawnError(
                f"a cluster named {name!r} is already running (launcher {lock}); stop it with "
                f"'zcluster stop --name {name}', or give another --name"
            )
    raise SpawnError(f"{NAMES_MAX} clusters named {default!r} are running; give a --name")


def _lock_name(root: Path, name: str) -> LockFile | int:
    """The locked lock file of a name, made if missing, or the pid of the launcher that holds it.

    The last owner of a name removes its lock file and directories: what is gone by then is made again.
    """
    _check_length(root / name)
    for attempt in range(RACES_MAX):
        try:
            _private_directory(root)
            _private_directory(root / name)
            lock = LockFile(root / name / "lock")
        except SpawnError:
            if attempt == RACES_MAX - 1:
                raise
            continue
        if not lock.try_lock(NAME_BYTE):
            holder = lock.owner(NAME_BYTE)
            if holder is not None:
                lock.close()
                return holder
        elif lock.is_current():
            return lock
        lock.close()  # its owner ended this very moment
    raise SpawnError(f"clusters named {name!r} are started and stopped all the time; give another --name")


def _check_length(folder: Path) -> None:
    longest = len(os.fsencode(folder)) + 1 + 2 * INSTANCE_BYTES + len("/ctl")
    if longest > SOCKET_PATH_MAX_BYTES:
        raise SpawnError(
            f"{folder} is too long for the path of a socket in it ({longest} bytes, the limit is "
            f"{SOCKET_PATH_MAX_BYTES}); give a shorter --run-dir or --name"
        )


def _instance(name: str, folder: Path, lock: LockFile) -> RunDir:
    path = folder / secrets.token_hex(INSTANCE_BYTES)
    try:
        older = tuple(entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.is_symlink())
        _private_directory(path)
    except (OSError, SpawnError):
        _remove_name(folder)
        lock.close()
        raise
    return RunDir(name, path, lock, older)


def _check_base(base: Path) -> None:
    if not os.access(base, os.W_OK | os.X_OK) or not base.is_dir():  # in this order: is_dir() raises without access
        raise SpawnError(f"{base} is not a writable directory; give one on a tmpfs with --run-dir DIR")
    require_tmpfs(base)


def _private_directory(path: Path) -> None:
    try:
        path.mkdir(0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SpawnError(f"cannot make {path}: {error.strerror}; give another place with --run-dir DIR") from error
    if not _is_private(path):
        raise SpawnError(
            f"{path} is not a private directory of uid {os.getuid()} (mode {stat.filemode(found.st_mode)}, "
            f"uid {found.st_uid}); remove it, or give another place with --run-dir DIR"
        )


def _is_private(path: Path, uid: int | None = None) -> bool:
    """Is this a directory (no symbolic link) that is ours, or this user's, and nobody else's?"""
    try:
        found = path.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == (os.getuid() if uid is None else uid)
        and not stat.S_IMODE(found.st_mode) & 0o077
    )


def _is_owned(root: Path) -> bool:
    """Is this the private directory of the user whose id is in its name?"""
    try:
        return _is_private(root, int(root.name.rpartition("-")[2]))
    except ValueError:
        return False


def await_older(rundir: RunDir, grace_s: float = OLDER_GRACE_S) -> int:
    """Wait for the processes of older instances of this name, then kill them; returns how many had to be killed.

    Their launcher is dead (we hold its lock), so they are leaving: but a worker stuck in C code keeps the port until
    it is killed. Raises SpawnError when one cannot be killed (another PID namespace, uninterruptible sleep).
    """
    seen: dict[int, int] = {}
    deadline = time.monotonic() + grace_s
    while (living := _not_gone(rundir.older, seen)) and time.monotonic() < deadline:
        time.sleep(0.02)
    starts = {pid: start_time(pid) for pid in living}
    living &= _living(rundir.older)  # who still holds a lock after its start was read is the one that `starts` names
    for pid in living:
        send_signal(pid, starts[pid], signal.SIGKILL)
    deadline = time.monotonic() + KILL_GRACE_S
    while left := _not_gone(rundir.older, seen):
        if time.monotonic() > deadline:
            raise SpawnError(
                f"processes of an older instance of {rundir.name!r} cannot be killed: {sorted(left)} "
                "(0 stands for one in another container); end them, or give another --name"
            )
        time.sleep(0.01)
    return len(living)


def _not_gone(instances: tuple[Path, ...], seen: dict[int, int]) -> set[int]:
    """Who holds a lock now, and who of `seen` (pid -> start, kept up to date) does not, but is not dead yet.

    A dying process loses its locks a moment before its sockets are closed (the kernel defers that to the end of its
    exit), and the port is what we wait for.
    """
    holders = _living(instances)
    seen.update({pid: start_time(pid) for pid in holders - seen.keys()})
    return holders | {pid for pid, start in seen.items() if start and is_alive(pid, start)}


def _living(instances: tuple[Path, ...]) -> set[int]:
    """Pids of all that hold a lock of one of these instances."""
    found: set[int] = set()
    for instance in instances:
        path = instance / "locks"
        if path.exists():
            lock = LockFile(path)
            try:
                found.update(lock.owners(0, ALL_BYTES).values())
            finally:
                lock.close()
    return found


def discard(instances: tuple[Path, ...], state_id: bytes) -> None:
    """Remove what dead instances left, but not a ledger that still counts for another state directory.

    What cannot be removed stays for the next start: a running cluster is worth more than a tidy directory.
    """
    for instance in instances:
        try:
            file = open_ledger(instance / "ledger", writable=False)
        except (OSError, LedgerError):
            shutil.rmtree(instance, ignore_errors=True)
            continue
        is_ours = file.ledger.state_id in (bytes(16), state_id)
        file.close()
        if is_ours:
            shutil.rmtree(instance, ignore_errors=True)
            continue
        for entry in instance.iterdir():
            if entry.name != "ledger" and not entry.is_dir():
                entry.unlink(missing_ok=True)


def clusters(base: Path | None) -> list[Found]:
    """The running clusters of this user, by name. Not for a launcher: closing a lock file would drop its lock."""
    found = []
    root = root_of(base)
    # Root sees those of everybody: `run --user` makes them, and systemctl reload asks for them.
    roots = [root] if os.getuid() else sorted(root.parent.glob("zcluster-*"))
    # Not a directory that another user has put in the place of ours: its "master" would be theirs.
    for current in (entry for each in roots if _is_owned(each) for entry in each.glob("*/current")):
        try:
            pid = _lock_owner(current.parent / "lock")
            instance = current.read_text(encoding="ascii") if stat.S_ISREG(current.lstat().st_mode) else ""
        except FileNotFoundError:  # it ended while we looked
            continue
        if pid and re.fullmatch("[0-9a-f]+", instance):  # we may be root, and another user may have written it
            found.append(Found(current.parent.name, current.parent / instance, pid))
    return sorted(found, key=lambda one: one.name)


def _lock_owner(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        lock = first_lock(fd, NAME_BYTE, NAME_BYTE + 1)
        return 0 if lock is None else lock[2]
    finally:
        os.close(fd)


def safe_name(app: str) -> str:
    """The default name of an app: its module, with what a file name should not hold replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", app.partition(":")[0])[:40].strip(".-") or "app"

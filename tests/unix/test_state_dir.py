"""The state directory: exactly one source at every start, whole files at every instant, one cluster at a time."""

import os
import resource
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, checkpoint, forever, in_child, kill, start_ready

from zcluster.core.checkpoint import Checkpoint, seal, unseal
from zcluster.counter import Counter
from zcluster.errors import SpawnError
from zcluster.unix.ledgerfile import create, open_ledger
from zcluster.unix.locks import LockFile
from zcluster.unix.state import open_state


@pytest.fixture
def run_dir():
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def state(tmp_path):
    found = open_state(tmp_path / "state")
    yield found
    found.close()


def new_ledger(run_dir, state, base=None, name="ledger", boot=BOOT, ledger_id=b"L" * 16):
    """What the launcher does: make a ledger of these totals and adopt it. Returns the mapped file."""
    file = create(
        run_dir / name, ledger_id=ledger_id, boot_id=boot, state_id=state.id, base=base, lanes=4, counters=8
    )
    file.ledger.use_lane(0)
    state.adopt(run_dir / name, run_dir / "locks", ledger_id)
    return file


def test_a_new_directory_starts_at_zero_and_keeps_its_id(tmp_path):
    """It is made private, with an id that stays; nothing else is invented."""
    first = open_state(tmp_path / "a" / "b")
    base = first.base(BOOT)
    assert (base.totals, base.source) == ({}, "nothing")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    first.close()
    again = open_state(tmp_path / "a" / "b")
    assert again.id == first.id
    assert len(first.id) == 16
    again.close()


def test_the_checkpoint_is_the_base_when_the_ledger_is_gone(run_dir, state):
    """After a reboot the totals of the last checkpoint are the start."""
    new_ledger(run_dir, state).close()
    checkpoint(state, {"requests": 41})
    (run_dir / "ledger").unlink()
    base = state.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 41}, "checkpoint")
    assert "ledger is gone" in base.note


def test_the_left_over_ledger_wins_and_is_not_added_to_the_checkpoint(run_dir, state):
    """All killed at once: the ledger holds everything, the checkpoint is older; over three starts nothing is
    counted twice or lost."""
    file = new_ledger(run_dir, state, {"requests": 40})
    file.ledger.lane(0).cells[0] = 5
    checkpoint(state, {"requests": 42})
    file.close()
    base = state.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 45}, "ledger")

    second = new_ledger(run_dir, state, base.totals, "ledger2", ledger_id=b"M" * 16)
    second.ledger.lane(0).cells[0] = 1
    second.close()
    assert state.base(BOOT).totals == {"requests": 46}
    checkpoint(state, {"requests": 46}, b"M" * 16)
    (run_dir / "ledger2").unlink()  # the older ledger is still there, and is not read
    assert state.base(BOOT).totals == {"requests": 46}


def test_a_start_that_dies_before_adopting_changes_nothing(run_dir, state):
    """A new ledger that was made and never adopted is not a source."""
    file = new_ledger(run_dir, state, {"requests": 40})
    file.ledger.lane(0).cells[0] = 2
    file.close()
    create(
        run_dir / "never", ledger_id=b"N" * 16, boot_id=BOOT, state_id=state.id, base=state.base(BOOT).totals
    ).close()
    assert state.base(BOOT).totals == {"requests": 42}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"boot": b"another boot id!"}, "another boot"),
        ({"ledger_id": b"another ledger!!"}, "another ledger"),
        ({"state_id": b"another state !!"}, "another ledger"),
    ],
)
def test_a_ledger_that_is_not_ours_is_not_used(run_dir, state, change, note):
    """Another boot, another ledger in its place, another state directory's: the checkpoint counts."""
    new_ledger(run_dir, state, {"requests": 50}).close()
    checkpoint(state, {"requests": 50})
    (run_dir / "ledger").unlink()
    create(
        run_dir / "ledger",
        ledger_id=change.get("ledger_id", b"L" * 16),
        boot_id=change.get("boot", BOOT),
        state_id=change.get("state_id", state.id),
        base={"requests": 99},
    ).close()
    base = state.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 50}, "checkpoint")
    assert note in base.note


@pytest.mark.parametrize("damage", ["cut", "incomplete", "foreign", "lowered", "name", "empty"])
def test_a_damaged_ledger_is_not_used(run_dir, state, damage):
    """Cut, never completed, overwritten: the checkpoint counts, and the note says why."""
    file = new_ledger(run_dir, state, {"requests": 50})
    file.close()
    checkpoint(state, {"requests": 50})
    path = run_dir / "ledger"
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        del raw[-4096:]
    elif damage == "incomplete":
        raw[:8] = bytes(8)
    elif damage == "foreign":
        raw[:8] = b"notours!"
    elif damage == "lowered":
        raw[raw.index((50).to_bytes(8, "little"))] = 49
    elif damage == "name":
        raw[4096:4104] = b"\xff" * 8
    else:
        raw.clear()
    path.write_bytes(raw)
    base = state.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 50}, "checkpoint")
    assert "ledger" in base.note


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_dir, state):
    """Torn at any length, the previous generation is used; with both damaged the start is refused, not zero."""
    checkpoint(state, {"requests": 41}, number=1)
    checkpoint(state, {"requests": 42}, number=2)
    newest, previous = state.path / "checkpoint", state.path / "checkpoint.1"
    raw = newest.read_bytes()
    assert unseal(previous.read_bytes(), Checkpoint).totals == {"requests": 41}
    for size in range(0, len(raw), 7):
        newest.write_bytes(raw[:size])
        base = state.base(BOOT)
        assert base.totals == {"requests": 41}
        assert "checkpoint: " in base.note
    newest.unlink()
    assert state.base(BOOT).totals == {"requests": 41}
    newest.write_bytes(raw[:-1])
    previous.write_bytes(b"")
    with pytest.raises(SpawnError, match="restore a backup"):
        state.base(BOOT)


def test_a_whole_ledger_makes_up_for_damaged_checkpoints(run_dir, state):
    """Both checkpoints damaged, the left-over ledger complete: everything is there, so it starts."""
    new_ledger(run_dir, state, {"requests": 50}).close()
    (state.path / "checkpoint").write_bytes(b"garbage")
    base = state.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 50}, "ledger")


def test_a_damaged_pointer_leaves_the_checkpoint(run_dir, state):
    """Without knowing which ledger counted, the checkpoint does."""
    new_ledger(run_dir, state, {"requests": 50}).close()
    checkpoint(state, {"requests": 50})
    (state.path / "ledger").write_bytes(b"garbage")
    assert state.base(BOOT).source == "checkpoint"


def test_another_directorys_checkpoint_is_refused(tmp_path, state):
    """A checkpoint copied in from another state directory is not ours."""
    (state.path / "checkpoint").write_bytes(seal(Checkpoint("00" * 16, "", 1, {"requests": 9})))
    with pytest.raises(SpawnError, match="another state directory"):
        state.base(BOOT)


def test_a_copy_of_the_directory_does_not_claim_the_originals_ledger(tmp_path, run_dir, state):
    """A backup started beside the original goes on from its checkpoint, whatever the original counts."""
    file = new_ledger(run_dir, state, {"requests": 50})
    checkpoint(state, {"requests": 50})
    file.ledger.lane(0).cells[0] = 9
    shutil.copytree(state.path, tmp_path / "copy")
    copy = open_state(tmp_path / "copy")
    base = copy.base(BOOT)
    assert (base.totals, base.source) == ({"requests": 50}, "checkpoint")
    assert "copy" in base.note
    assert state.base(BOOT).totals == {"requests": 59}
    copy.close()
    file.close()


def test_a_second_cluster_on_the_same_directory_is_refused(tmp_path):
    """It names the launcher that has it; when that dies the directory is free."""

    def first(ready):
        open_state(tmp_path / "state")
        ready()
        forever()

    pid = start_ready(first)
    with pytest.raises(SpawnError, match=f"in use by another cluster .launcher {pid}"):
        open_state(tmp_path / "state")
    kill(pid)
    open_state(tmp_path / "state").close()


def test_processes_that_still_count_are_waited_for(run_dir, state):
    """A worker that outlived its launcher blocks the start; once it has gone, all it counted is in the base."""
    new_ledger(run_dir, state).close()

    def worker(ready):
        be_worker(run_dir)
        requests = Counter("requests")
        requests.incr()
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
        ready()
        while True:
            requests.incr()

    pid = start_ready(worker)
    with pytest.raises(SpawnError, match=rf"processes \[{pid}\] of an earlier cluster still count"):
        state.base(BOOT, wait_s=0.1)
    leave = threading.Timer(0.2, os.kill, (pid, signal.SIGUSR1))
    leave.start()
    base = state.base(BOOT, wait_s=20)
    leave.join()
    os.waitpid(pid, 0)
    file = open_ledger(run_dir / "ledger", writable=False)
    assert base.source == "ledger"
    assert base.totals == file.ledger.totals()
    assert base.totals["requests"] > 0
    file.close()


def test_unusable_directories_are_the_machines_fault(tmp_path):
    """A file in its place, a place below a file, a damaged or missing id: SpawnError that names --state."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(SpawnError, match=r"--state .*file: it is not a directory"):
        open_state(tmp_path / "file")
    with pytest.raises(SpawnError, match="it is not a directory"):
        open_state(tmp_path / "file" / "below")
    with pytest.raises(SpawnError, match="--state /proc/zcluster"):
        open_state("/proc/zcluster")
    for content in (b"", b"zz" * 16, b"00" * 16, b"aa" * 15, b"\xff"):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        open_state(tmp_path / "s").close()
        (tmp_path / "s" / "id").write_bytes(content)
        with pytest.raises(SpawnError, match="id is damaged"):
            open_state(tmp_path / "s")
    (tmp_path / "s" / "id").unlink()
    (tmp_path / "s" / "checkpoint").write_bytes(b"x")
    with pytest.raises(SpawnError, match="a checkpoint and no id"):
        open_state(tmp_path / "s")
    assert not LockFile(tmp_path / "s" / "lock").close()  # nothing was left open


@pytest.mark.parametrize("name", ["checkpoint", "ledger", "id"])
def test_an_unreadable_file_is_no_empty_one(tmp_path, name):
    """A directory where a file should be (standing for any read error) refuses the start: zero would be a lie."""
    open_state(tmp_path / "s").close()
    (tmp_path / "s" / name).unlink(missing_ok=True)
    (tmp_path / "s" / name).mkdir()
    with pytest.raises(SpawnError, match=f"cannot read {name}"):
        _open_and_close(tmp_path / "s")


def _open_and_close(path):
    state = open_state(path)
    try:
        state.base(BOOT)
    finally:
        state.close()


def test_an_enormous_file_is_damage(state):
    """Reading is bounded."""
    with (state.path / "checkpoint").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(SpawnError, match="larger than"):
        state.base(BOOT)


def test_a_full_disk_at_the_start_is_refused(run_dir, state):
    """adopt must reach the disk, or the cluster does not start."""

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with pytest.raises(SpawnError, match=r"--state .* cannot write: File too large"):
            state.adopt(run_dir / "ledger", run_dir / "locks", b"L" * 16)
        return sorted(os.listdir(state.path))

    assert in_child(body) == ["id", "lock"]


def test_covers_says_whether_the_ledger_may_go(run_dir, state):
    """Only a checkpoint of this ledger with these totals covers it."""
    file = new_ledger(run_dir, state, {"requests": 40})
    assert not state.covers(file.ledger)
    checkpoint(state, {"requests": 40})
    assert state.covers(file.ledger)
    file.ledger.lane(0).cells[0] = 1
    assert not state.covers(file.ledger)
    checkpoint(state, {"requests": 41}, b"M" * 16)
    assert not state.covers(file.ledger)
    (state.path / "checkpoint").write_bytes(b"")
    assert not state.covers(file.ledger)
    file.close()

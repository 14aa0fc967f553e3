"""The writing end of the checkpoint: the previous one is kept, there is one writer, and pokes never block."""

import os

import pytest
from ledger_support import BOOT, checkpoint, disinherit, forever, in_child, kill, start_ready, until

from zcluster.core.checkpoint import Checkpoint, unseal
from zcluster.unix.state import CheckpointFile, drain_fifo, open_fifo, open_state, poke


@pytest.fixture
def state(tmp_path):
    found = open_state(tmp_path / "state")
    yield found
    found.close()


def test_without_hard_links_the_previous_checkpoint_is_kept_all_the_same(state):
    """A directory in the way stands for a filesystem without hard links: renaming is the second choice."""
    (state.path / "checkpoint.1.tmp").mkdir()
    checkpoint(state, {"requests": 1})
    checkpoint(state, {"requests": 2}, number=2)
    assert unseal((state.path / "checkpoint.1").read_bytes(), Checkpoint).totals == {"requests": 1}
    assert state.base(BOOT).totals == {"requests": 2}


def test_a_damaged_checkpoint_is_not_kept_as_the_previous_one(state):
    """Writing over a torn checkpoint leaves the good one before it alone."""
    checkpoint(state, {"requests": 1})
    checkpoint(state, {"requests": 2}, number=2)
    (state.path / "checkpoint").write_bytes(b"torn")
    checkpoint(state, {"requests": 3}, number=3)
    assert unseal((state.path / "checkpoint.1").read_bytes(), Checkpoint).totals == {"requests": 1}
    assert state.base(BOOT).totals == {"requests": 3}


def test_other_errors_while_keeping_the_previous_checkpoint_are_not_hidden(tmp_path, state):
    """A directory that vanished is an error of the write."""

    def body():
        disinherit(state._locks)
        with CheckpointFile(state.path) as file:
            (state.path / "checkpoint.1").mkdir()
            file.write(b"L" * 16, 1, {})
            with pytest.raises(OSError, match="directory"):
                file.write(b"L" * 16, 2, {})

    in_child(body)


def test_there_is_one_writer(state):
    """A second writer does not get its turn while the first lives."""

    def first(ready):
        disinherit(state._locks)
        with CheckpointFile(state.path) as file:
            assert file.try_turn()
            ready()
            forever()

    def second():
        disinherit(state._locks)
        with CheckpointFile(state.path) as file:
            return file.try_turn()

    pid = start_ready(first)
    assert not in_child(second)
    kill(pid)
    assert in_child(second)


def test_poking(tmp_path):
    """Pokes without a reader are no error, with one they arrive, too many do not block, one drain takes them all."""
    path = tmp_path / "checkpoint"
    poke(path)
    fd = open_fifo(path)
    again = open_fifo(path)
    drain_fifo(fd)
    for _ in range(70_000):
        poke(path)
    drain_fifo(again)
    with pytest.raises(BlockingIOError):
        os.read(fd, 1)
    os.close(fd)
    os.close(again)
    poke(path)
    assert until(lambda: path.is_fifo(), "the FIFO stays")

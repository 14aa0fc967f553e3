"""A state directory that is copied while it is written, as a backup does, and restored."""

import mmap
import os
import random
import shutil
import signal

import pytest
from ledger_support import BOOT, disinherit, kill, start_ready, until

from zcluster.core.checkpoint import Checkpoint, unseal
from zcluster.errors import SpawnError
from zcluster.unix.state import CheckpointFile, open_state

COPIES = 200
NAMES = ("checkpoint", "checkpoint.1", "checkpoint.tmp", "checkpoint.1.tmp", "id")
COUNTERS = 40  # a file of a kilobyte: long enough to be cut anywhere


@pytest.fixture
def state(tmp_path):
    found = open_state(tmp_path / "state")
    yield found
    found.close()


@pytest.fixture
def progress():
    """Shared words: the number of the last checkpoint that was begun, and of the last that is on disk for good."""
    with mmap.mmap(-1, 4096) as block, memoryview(block).cast("Q") as words:
        yield words


def totals_of(number):
    """What checkpoint `number` says; no other number says the same, and all of it is needed."""
    return {f"counter-{index}": number * 1000 + index for index in range(COUNTERS)}


def write_for_ever(ready, state, progress):
    """The checkpoint service at full speed."""
    disinherit(state._locks)
    signal.alarm(110)
    with CheckpointFile(state.path) as file:
        assert file.try_turn()
        number = 0
        while True:
            number += 1
            progress[0] = number
            file.write(b"L" * 16, number, totals_of(number))
            progress[1] = number
            if number == 2:
                ready()


def copy(source, target, chance):
    """File by file in any order, each in pieces: what `cp -r` or a backup program sees."""
    target.mkdir()
    names = list(NAMES)
    chance.shuffle(names)
    for name in names:
        try:
            fd = os.open(source / name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        content = b""
        while piece := os.read(fd, chance.choice((64, 700, 65_536))):
            content += piece
        os.close(fd)
        (target / name).write_bytes(content)


def restored(path):
    """The number of the checkpoint from which a start on this directory goes on; or why it is refused."""
    found = open_state(path)
    try:
        base = found.base(BOOT)
    except SpawnError as error:
        return str(error)
    finally:
        found.close()
    number = base.totals["counter-0"] // 1000
    assert base.source == "checkpoint"
    assert base.totals == totals_of(number), "something was invented"
    return number


def damage(path, chance):
    """What a disk or an interrupted copy does to a file: cut short, bytes altered, put in, put behind."""
    raw = bytearray(path.read_bytes())
    place = chance.randrange(len(raw))
    match chance.randrange(5):
        case 0:
            del raw[place:]
        case 1:
            raw[place] ^= 1 << chance.randrange(8)
        case 2:
            stretch = raw[place : place + chance.randrange(1, 300)]
            raw[place : place + len(stretch)] = bytes(byte ^ 0xFF for byte in stretch)
        case 3:
            raw += b"\0" * 512
        case _:
            raw[place:place] = b"9"
    path.write_bytes(raw)


def test_copies_at_random_instants(tmp_path, state, progress):
    """What was on disk before a copy began is in it; with its newest file damaged, the one before that counts."""
    chance = random.Random(6)
    pid = start_ready(write_for_ever, state, progress)
    try:
        for index in range(COPIES):
            goal = progress[0] + chance.randrange(3)
            until(lambda goal=goal: progress[0] >= goal, "progress")
            for _ in range(chance.randrange(3000)):  # and anywhere in the writing of one
                pass
            target = tmp_path / f"copy-{index}"
            durable = progress[1]
            copy(state.path, target, chance)
            begun = progress[0]
            number = restored(target)
            assert durable <= number <= begun
            falls_back(target, begun, chance)
            shutil.rmtree(target)
    finally:
        kill(pid)
    assert progress[1] > COPIES


def falls_back(target, begun, chance):
    """Damage the newest file: the one before it counts. Damage that too: nobody starts from zero."""
    # A copy that takes longer than a write may well have a newer one in checkpoint.1.
    before = unseal((target / "checkpoint.1").read_bytes(), Checkpoint).number
    damage(target / "checkpoint", chance)
    assert restored(target) == before <= begun
    damage(target / "checkpoint.1", chance)
    assert "restore a backup" in restored(target)

"""The journal: what several processes append to one file that only grows, and that takes no more memory."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from ledger_support import in_child, reap, start

from zcluster.unix import journal
from zcluster.unix.journal import KEPT_BYTES, STEP_BYTES, Journal, Reader, told_by

LINE = b"%07d " + 1000 * b"x" + b"\n"
LINES = (KEPT_BYTES + 3 * STEP_BYTES) // len(LINE % 0)


@pytest.fixture
def run_dir():
    folder = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    journal.make(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def reader(run_dir):
    made = Reader(run_dir)
    yield made
    made.close()


def numbers(lines):
    """The numbers of whole lines."""
    assert all(len(line) == len(LINE % 0) - 1 for line in lines)
    return [int(line[:7]) for line in lines]


def fill(run_dir, first, count):
    writer = Journal(run_dir)
    for number in range(first, first + count):
        writer.write(LINE % number)
    writer.close()


def test_processes_append_whole_lines(run_dir, reader):
    """Four write at once, also where memory is freed: nobody's line is torn or lost that is kept."""
    pids = [start(fill, run_dir, 10_000 * number, LINES // 4) for number in range(4)]
    assert [reap(pid) for pid in pids] == [0] * 4
    seen = numbers(list(reader.lines()))
    assert len(seen) * len(LINE % 0) >= KEPT_BYTES - STEP_BYTES
    for process in range(4):
        own = [number % 10_000 for number in seen if number // 10_000 == process]
        assert own == list(range(own[0], LINES // 4)) if own else True


def test_its_memory_is_bounded_and_its_end_is_kept(run_dir, reader):
    """The last 4 MiB, begun with a whole line; what is older has been given back."""
    fill(run_dir, 0, LINES)
    taken = (run_dir / "log").stat().st_blocks * 512
    assert taken <= KEPT_BYTES + STEP_BYTES + 4096
    seen = numbers(list(reader.lines()))
    assert seen == list(range(seen[0], LINES))
    assert len(seen) * len(LINE % 0) >= KEPT_BYTES - len(LINE % 0)


def test_a_reader_goes_on_where_it_was(run_dir, reader):
    """Each line once; after falling behind by more than is kept it goes on with the oldest line there is."""
    fill(run_dir, 0, 3)
    assert numbers(list(reader.lines())) == [0, 1, 2]
    assert list(reader.lines()) == []
    fill(run_dir, 3, LINES)
    seen = numbers(list(reader.lines()))
    assert 3 < seen[0] < seen[-1] == LINES + 2
    assert seen == list(range(seen[0], LINES + 3))
    fill(run_dir, 0, 1)
    assert numbers(list(reader.lines())) == [0]


def test_a_kernel_that_cannot_free(run_dir, reader):
    """Where memory cannot be given back from the front, the file begins again, and the reader with it."""
    fill(run_dir, 0, 10)
    assert len(list(reader.lines())) == 10
    os.truncate(run_dir / "log", 0)
    fill(run_dir, 10, 2)
    assert numbers(list(reader.lines())) == [10, 11]


def test_half_a_line_is_waited_for(run_dir, reader):
    """What has no end yet is not shown."""
    writer = Journal(run_dir)
    writer.write(b"one\ntw")
    assert list(reader.lines()) == ["one"]
    writer.write(b"o\nthr\0ee\n")
    assert list(reader.lines()) == ["two", "thr\\x00ee"]
    writer.close()


def test_a_descriptor_that_is_not_ours_any_more(run_dir, tmp_path):
    """An application has closed it, and another file has its number: nothing of ours goes there."""

    def body():
        writer = Journal(run_dir)
        number = writer.fd
        os.dup2(os.open(tmp_path / "own", os.O_WRONLY | os.O_CREAT), number)
        writer.write(b"ours\n")
        writer.close()
        return os.path.samestat(os.fstat(number), os.stat(tmp_path / "own"))

    assert in_child(body)
    assert (tmp_path / "own").read_bytes() == b""


def test_without_a_run_directory(tmp_path):
    """It has ended, or has been removed: nothing is written, nothing raised."""
    writer = Journal(tmp_path)
    writer.write(b"into the void\n")
    writer.close()
    with pytest.raises(FileNotFoundError):
        Reader(tmp_path)


def test_the_lines_of_one_worker():
    """Those of its slot, with all that goes on with them; of everybody without a slot."""
    head = "[2026-01-31 12:00:00,123] ERROR %s pid=1: "
    lines = [
        "the end of something",
        head % "worker[1] gen=1 id=1" + "a",
        "Traceback",
        head % "worker[11] gen=1 id=2" + "b",
        "Traceback",
        '{"process": "worker", "slot": 1}',
        '{"process": "worker", "slot": 2}',
        '{"process": "master"}',
        head % "worker[1] gen=2 id=9" + "c",
    ]
    assert list(filter(told_by(1), lines)) == [lines[1], lines[2], lines[5], lines[8]]
    assert list(filter(told_by(None), lines)) == lines

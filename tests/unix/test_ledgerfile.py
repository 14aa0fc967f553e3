"""The ledger's file: whole, private, in memory, and not in the application's children."""

import gc
import mmap
import os
import resource
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest
from ledger_support import BOOT, be_worker, in_child

from zcluster import current
from zcluster.core.ledger import Ledger, LedgerError
from zcluster.errors import SpawnError
from zcluster.unix.ledgerfile import boot_id, create, filesystem_of, open_ledger, require_tmpfs

IDS = {"ledger_id": b"L" * 16, "boot_id": BOOT}


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def test_a_new_ledger_is_whole_and_private(folder):
    """Mode 0600, every page allocated, totals of the base readable by a second opener."""
    file = create(folder / "ledger", base={"a": 5}, **IDS)
    stat = (folder / "ledger").stat()
    assert stat.st_mode & 0o777 == 0o600
    assert stat.st_size == Ledger.size_bytes()
    assert stat.st_blocks * 512 >= stat.st_size
    other = open_ledger(folder / "ledger", writable=False)
    assert other.ledger.totals() == {"a": 5}
    file.ledger.use_lane(0)
    file.ledger.lane(0).cells[0] = 2
    assert other.ledger.totals() == {"a": 7}
    with pytest.raises(TypeError):
        other.ledger.epoch = 1
    other.close()
    file.close()


def test_an_existing_file_is_never_touched(folder):
    """create refuses a path that exists and leaves it alone."""
    create(folder / "ledger", base={"a": 5}, **IDS).close()
    with pytest.raises(SpawnError, match="cannot create the ledger"):
        create(folder / "ledger", **IDS)
    file = open_ledger(folder / "ledger")
    assert file.ledger.totals() == {"a": 5}
    file.close()


def test_no_room_names_what_to_give_and_leaves_nothing(folder):
    """When the filesystem cannot hold the ledger the error says how much is needed and which options help."""

    def body():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        with pytest.raises(SpawnError, match=r"no room for the ledger.*--run-dir.*--lanes"):
            create(folder / "ledger", **IDS)

    in_child(body)
    assert not list(folder.iterdir())


def test_a_ledger_that_cannot_be_formatted_leaves_nothing(folder):
    """So does a base that does not fit."""
    with pytest.raises(LedgerError):
        create(folder / "ledger", counters=1, base={"a": 1, "b": 2}, **IDS)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"hello", bytes(8192), b"\0" * 4095])
def test_other_files_are_refused(folder, content):
    """Empty, foreign and never completed files are LedgerErrors, and no descriptor stays."""
    (folder / "ledger").write_bytes(content)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(LedgerError):
        open_ledger(folder / "ledger")
    gc.collect()  # the mapping lives as long as the traceback that knows it
    assert os.listdir("/proc/self/fd") == before


def test_a_missing_file_is_an_oserror(folder):
    """The caller decides what a missing ledger means."""
    with pytest.raises(FileNotFoundError):
        open_ledger(folder / "ledger")


def test_close_gives_descriptors_and_memory_back(folder):
    """After close neither the mapping nor a descriptor is left."""
    before = os.listdir("/proc/self/fd")
    file = create(folder / "ledger", **IDS)
    assert len(os.listdir("/proc/self/fd")) == len(before) + len(file.fds)
    file.close()
    assert os.listdir("/proc/self/fd") == before
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_close_with_a_view_alive_keeps_the_view_valid(folder):
    """A view of the cells outlives close: reading it afterwards is no crash."""
    file = create(folder / "ledger", **IDS)
    cells = file.ledger.lane(0).cells
    cells[0] = 3
    file.close()
    assert cells[0] == 3


def test_a_child_of_the_application_has_neither_mapping_nor_descriptor(folder):
    """After keep_for_life and guard_forks a forked child is unbound, has no page of the ledger and none of its fds,
    and ends normally."""
    create(folder / "ledger", base={"a": 5}, **IDS).close()

    def worker():
        ledger = be_worker(folder)
        current.guard_forks()
        current.guard_forks()

        def application():
            assert str(folder) not in Path("/proc/self/maps").read_text()
            assert not [fd for fd in os.listdir("/proc/self/fd") if _points_into(fd, folder)]
            assert (current.role, current.ledger, current.locks, current.lane) == ("forked", None, None, -1)
            mapping = mmap.mmap(-1, 64 * 2**20)  # may lie where the ledger was: nothing may unmap it
            mapping[0] = mapping[-1] = 1
            return "fine"

        assert in_child(application) == "fine"
        assert current.role == "worker"
        return ledger.totals()

    assert in_child(worker) == {"a": 5}


def _points_into(fd, folder):
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
    except OSError:
        return False


def test_a_kept_mapping_is_not_closed(folder):
    """keep_for_life wins over close."""

    def body():
        file = create(folder / "ledger", **IDS)
        file.keep_for_life()
        file.keep_for_life()
        file.close()
        return file.ledger.totals()

    assert in_child(body) == {}


def test_boot_id():
    """The kernel's boot id as 16 bytes."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert boot_id() == uuid.UUID(text).bytes


def test_only_memory_filesystems_will_do():
    """/dev/shm is accepted; others are refused by name with the option to give."""
    require_tmpfs("/dev/shm")
    assert filesystem_of("/proc") == "proc"
    with pytest.raises(SpawnError, match=r"/proc lies on proc.*--run-dir"):
        require_tmpfs("/proc")
    with pytest.raises(SpawnError, match=r"cannot look at /no/where.*--run-dir"):
        require_tmpfs("/no/where")

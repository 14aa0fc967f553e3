"""The pid file: who is refused, what is taken over, and what is left."""

import os
import subprocess
import sys

import pytest
from family import drop_privileges
from ledger_support import in_child

from zcluster.errors import SpawnError
from zcluster.unix.pidfile import PidFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "shop.pid"


def test_it_names_us_and_goes(path):
    """Written whole, readable for others whatever the umask, and removed."""

    def body():
        os.umask(0o077)
        file = PidFile(str(path))
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o644
        assert [entry.name for entry in path.parent.iterdir()] == ["shop.pid"]
        file.remove()
        file.remove()
        assert not path.exists()

    in_child(body)


def test_a_living_process_is_refused_by_name(path):
    """It was there when the file was written: the text names both."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        path.write_text(f"{other.pid}\n")
        with pytest.raises(SpawnError, match=rf"{path} names process {other.pid}, which runs; .*--pid"):
            PidFile(str(path))
        assert path.read_text() == f"{other.pid}\n"
        # The same number, but in a file that is older than the process: it was somebody else's.
        os.utime(path, (1.0, 1.0))
        PidFile(str(path)).remove()
        other.communicate(b"\n")
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "garbage", "0", "-1", "4194305", "99999999999999999999", "\xff"])
def test_what_is_stale_is_taken_over(path, text):
    """Nothing that names a living process stands in the way."""
    path.write_text(text)
    PidFile(str(path)).remove()
    assert not path.exists()


def test_our_own_number_is_stale(path):
    """A container that was killed and started again has the same numbers in a file that was kept."""
    path.write_text(str(os.getpid()))
    PidFile(str(path)).remove()
    assert not path.exists()


def test_a_file_that_names_another_by_now_stays(path):
    """At the end only what is ours is removed."""
    file = PidFile(str(path))
    path.write_text("1\n")
    file.remove()
    assert path.read_text() == "1\n"


def test_a_directory_that_is_not_there(tmp_path):
    """The text names the file and the reason; nothing is left."""
    with pytest.raises(SpawnError, match=rf"cannot write the pid file {tmp_path}/x/y: No such file"):
        PidFile(f"{tmp_path}/x/y")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_no_longer_ours_to_change(tmp_path):
    """Root wrote it, and has become somebody else: it is emptied, which is stale for the next start."""
    folder = tmp_path / "run"
    folder.mkdir(0o755)

    def body():
        file = PidFile(f"{folder}/pid")
        if os.getuid():
            folder.chmod(0o555)
        else:
            tmp_path.chmod(0o711)
            file.give_to(65534, 65534)
        # The directories above belong to whoever runs the tests: work from inside.
        os.chdir(folder)
        file.path = file.path.relative_to(folder)
        drop_privileges()
        file.remove()
        assert (os.stat("pid").st_size, os.listdir()) == (0, ["pid"])

    in_child(body)
    folder.chmod(0o755)


def test_what_is_no_file_is_not_replaced(path):
    """As root one would replace /dev/null by a file; and nobody waits for the writer of a named pipe."""
    os.mkfifo(path)
    with pytest.raises(SpawnError, match="is there and is no regular file; give another with --pid"):
        PidFile(str(path))
    assert path.is_fifo()

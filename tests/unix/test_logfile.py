"""A log's path is judged when the cluster starts."""

import os

import pytest

from zcluster.errors import ConfigError
from zcluster.unix.logfile import settle


@pytest.mark.parametrize("target", ["", "-", "/dev/stdout", "/dev/stderr"])
def test_streams_stay_what_they_are(target):
    """They are open already, and no file."""
    assert settle(target) == target


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    """Every process means the same file, also when its application has changed the directory."""
    monkeypatch.chdir(tmp_path)
    assert settle("access.log") == str(tmp_path / "access.log")
    assert (tmp_path / "access.log").read_bytes() == b""


def test_what_a_log_holds_stays(tmp_path):
    """Looking at it neither empties it nor changes who may read it."""
    path = tmp_path / "access.log"
    path.write_text("before\n")
    path.chmod(0o600)
    settle(str(path))
    assert path.read_text() == "before\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_pipe_may_wait_for_its_reader(tmp_path):
    """A named pipe without a reader is no mistake: it may come later."""
    os.mkfifo(tmp_path / "fifo")
    assert settle(str(tmp_path / "fifo")) == str(tmp_path / "fifo")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/access.log", "No such file or directory"), (".", "Is a directory"), ("file/log", "Not a directory")],
)
def test_a_path_that_cannot_be_is_explained(tmp_path, name, reason):
    """The option, the path and the reason, before anything is started."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"'access_logfile'.*cannot be written: {reason}; give a file"):
        settle(str(tmp_path / name))

"""What every test here starts from."""

import gc
import shutil
import tempfile
from pathlib import Path

import pytest
from family import open_fds

from zcluster import counter


@pytest.fixture(autouse=True)
def no_counters(monkeypatch):
    """No counter is declared yet: other tests of the same process may have imported apps that do."""
    monkeypatch.setattr(counter, "_registry", {})


@pytest.fixture
def no_descriptor_leaks():
    """As many descriptors are open afterwards as before."""
    gc.collect()  # what an earlier test has left to it goes now, and not in the middle of this one
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def base():
    """A directory on tmpfs, to be a --run-dir."""
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)

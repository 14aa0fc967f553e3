"""What every test here starts from."""

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
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def base():
    """A directory on tmpfs, to be a --run-dir."""
    path = Path(tempfile.mkdtemp(prefix="zc-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)

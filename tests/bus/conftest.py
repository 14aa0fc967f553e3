"""Fixtures of the bus tests: a short run directory on tmpfs, links that are always closed."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from postal import Town

from zcluster.bus.link import Link
from zcluster.core.messages import Hello


@pytest.fixture
def run_dir():
    """A private directory whose path is short enough for unix sockets."""
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="zc-bus-", dir=base))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def connect(run_dir):
    """Make links to the run directory; all are closed at the end."""
    links = []

    def make(**options):
        options.setdefault("heartbeat_s", 1.0)
        link = Link(str(run_dir), lambda name: Hello(name, "worker", os.getpid()), **options)
        links.append(link)
        return link

    yield make
    for link in links:
        link.close(0)


@pytest.fixture
def collect():
    """Poll a link until `done(everything delivered so far)`, and return everything; fail after a deadline."""

    def run(link, done, timeout_s=20.0):
        seen, end = [], time.monotonic() + timeout_s
        while not done(seen):
            assert time.monotonic() < end, f"not within {timeout_s} s: joined={link.joined} {seen[-5:]}"
            seen += link.poll(0.02)[0]
        return seen

    return run


@pytest.fixture
def joined(collect):
    """Poll a link until it has joined."""
    return lambda link, timeout_s=20.0: collect(link, lambda _: link.joined, timeout_s)


@pytest.fixture
def town(run_dir):
    """A master that carries mail; peers are added by the test."""
    town = Town(run_dir)
    yield town
    town.close()

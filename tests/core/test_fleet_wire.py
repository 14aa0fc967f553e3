"""Between messages and the fleet: each thing that is said is one event, each command one message."""

import pytest

from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet_wire import for_launcher, of_launcher, of_worker, of_zygote

INFO = m.WorkerInfo(7, 2, 1, 3)
BEAT = m.Beat(1, 0, 0, 1, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (m.Ready(), f.Ready(7)),
        (BEAT, f.Heard(7, BEAT)),
        (m.Leaving("SIGTERM"), f.Leaving(7, "SIGTERM")),
        (m.Ask(1, "snapshot"), f.Heard(7)),
    ],
)
def test_what_a_worker_says(message, event):
    """Whatever it is, it is a sign of life of this worker."""
    assert of_worker(7, message) == event


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (m.Size((0, 2), {2: {"A": "b"}}), f.Sized((0, 2), {2: {"A": "b"}})),
        (m.Commit(3), f.Committed(3)),
        (m.Reload(("a", "b")), f.Unfinished(("a", "b"))),
        (m.Stop(quick=True, why="SIGINT", delayed=True), f.Stop(True, "SIGINT", True)),
    ],
)
def test_what_a_launcher_says(message, event):
    """What it has kept for a master, and what it passes on."""
    assert of_launcher(message) == event


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (m.Imported(4, False, ("a thread",)), f.Imported(4, ("a thread",))),
        (m.ImportFailed(4, "SyntaxError"), f.ImportFailed(4, "SyntaxError")),
        (m.Forked(INFO), f.Forked(INFO)),
        (m.ForkFailed(7, "EAGAIN"), f.ForkFailed(7, "EAGAIN")),
        (m.Synced(2, imported=True, forks=(INFO,)), f.Synced((INFO,), True)),
        (m.Synced(1, imported=True, forks=(INFO,)), None),
    ],
)
def test_what_a_zygote_says(message, event):
    """Of generation 4, to the master of epoch 2: what was meant for the one before is nothing."""
    assert of_zygote(4, message, 2) == event


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f.StartZygote(4), m.StartZygote(4)),
        (f.EndZygote(4), m.EndZygote(4)),
        (f.Commit(4), m.Commit(4)),
        (f.KeepReload(("a", "b")), m.Reload(("a", "b"))),
        (f.Running(3), m.Running(3)),
    ],
)
def test_what_a_launcher_is_told(command, message):
    """The same in the other direction."""
    assert for_launcher(command) == message

"""What is asked of a fleet is bounded: whoever asks for more is told so, and what was promised before is kept."""

import pytest
from fleet_stories import Story

from zcluster.core import fleet, fleet_reload, fleet_slots
from zcluster.core import fleet_events as f
from zcluster.core.fleet_size import ENV_MAX_BYTES


def replies(commands):
    return [(c.asker, c.error) for c in commands if isinstance(c, f.Reply)]


@pytest.fixture
def story():
    """Two workers that are ready."""
    made = Story(workers=2)
    made.run_up()
    return made


def test_questions_before_the_start(monkeypatch):
    """A master that is just starting keeps some; those are answered in their order when it knows what there is."""
    monkeypatch.setattr(fleet, "EARLY_MAX", 2)
    story = Story(workers=2)
    for number in (1, 2):
        assert replies(story.step(f.Scale((1, 1, number), 3), 0.0)) == []
    ((asker, error),) = replies(story.step(f.Scale((1, 1, 3), 3), 0.0))
    assert (asker, error) == ((1, 1, 3), "the master is just starting; ask again")
    assert replies(story.step(f.Started(), 0.1)) == [((1, 1, 1), ""), ((1, 1, 2), "")]


def test_reloads_that_wait(monkeypatch, story):
    """One more is refused; without anyone to answer it is what those that wait want, too."""
    monkeypatch.setattr(fleet_reload, "TOKENS_MAX", 2)
    for number in (1, 2, 3):  # the first begins, the others wait
        assert replies(story.step(f.Reload((1, 1, number), f"token {number}"), 1.0)) == []
    ((asker, error),) = replies(story.step(f.Reload((1, 1, 4), "token 4"), 1.0))
    assert (asker, error) == ((1, 1, 4), "2 reloads are asked for already; wait for one to end")
    assert story.step(f.Unfinished(("token 5",)), 1.0) == []
    assert replies(story.step(f.Reload((1, 1, 5), "token 3"), 1.0)) == []  # it joins one that waits


def test_commands_that_wait_for_one_restart(monkeypatch, story):
    """One more is refused; the others are answered when the new worker is ready."""
    monkeypatch.setattr(fleet_slots, "WAITING_MAX", 2)
    for number in (1, 2):
        assert replies(story.step(f.Restart((1, 1, number), 0), 1.0)) == []
    ((asker, error),) = replies(story.step(f.Restart((1, 1, 3), 0), 1.0))
    assert (asker, error) == ((1, 1, 3), "2 commands wait for the restart of slot 0 already")


def test_environments(story):
    """All of them together travel in one message."""
    ((_, error),) = replies(story.step(f.Open((1, 1, 1), {"A": "x" * ENV_MAX_BYTES}), 1.0))
    assert error.startswith(
        f"the environments of all workers together may have {ENV_MAX_BYTES} bytes, and would have"
    )
    assert replies(story.step(f.Open((1, 1, 2), {"A": "x"}), 1.0)) == [((1, 1, 2), "")]

"""What is asked of a fleet is bounded: whoever asks for more is told so, and what was promised before is kept."""

import pytest
from fleet_stories import Story, worker

from zcluster.core import fleet, fleet_reload, fleet_slots
from zcluster.core import fleet_events as f
from zcluster.core.fleet_size import ENTRY_BYTES, ENV_MAX_BYTES


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


@pytest.mark.parametrize(
    ("slots", "text"), [([], ""), ([3], "3"), ([1, 0], "0-1"), ([7, 3, 0, 2, 1], "0-3, 7"), ([1, 3, 5], "1, 3, 5")]
)
def test_spans(slots, text):
    """Numbers in a row are a span."""
    assert fleet_slots.spans(slots) == text


def test_environments_outlive_a_master():
    """Each slot's worker has its own, also the next one."""
    story = Story(workers=2)
    story.step(f.Sized((0, 1), {1: {"A": "b"}}), 0.0)
    story.step(f.Started(), 0.0)
    story.step(f.ZygoteUp(1), 0.0)
    forks = [one for one in story.step(f.Imported(1), 0.0) if isinstance(one, f.Fork)]
    assert [(one.worker.slot, dict(one.env)) for one in forks] == [(0, {}), (1, {"A": "b"})]


def test_environments_of_exactly_as_many_bytes_as_may_be(story):
    """One more is too many."""
    most = ENV_MAX_BYTES - ENTRY_BYTES - len("A")
    ((_, error),) = replies(story.step(f.Open((1, 1, 1), {"A": "x" * (most + 1)}), 1.0))
    assert f"would have {ENV_MAX_BYTES + 1}" in error
    assert replies(story.step(f.Open((1, 1, 2), {"A": "x" * most}), 1.0)) == [((1, 1, 2), "")]


@pytest.mark.parametrize(("generation", "zygotes"), [(4, (1, 3)), (1, (1, 4)), (3, (4,))])
def test_a_generation_is_never_used_again(generation, zygotes):
    """A new master's next one is higher than that of any worker or zygote that it finds."""
    story = Story(workers=1)
    story.step(f.Started((worker(5, 0, generation=generation, state="ready"),), frozenset(), zygotes), 0.0)
    commands = story.step(f.Reload((1, 1, 1), "a"), 1.0)
    assert max(one.generation for one in commands if isinstance(one, f.StartZygote)) == 5


def test_each_step_is_noticed(story):
    """Who waits for the next deadline looks again."""
    story.fleet.stepped = False
    story.step(f.Heard(1), 1.0)
    assert story.fleet.stepped

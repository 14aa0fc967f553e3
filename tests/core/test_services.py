"""When a missing service is asked for."""

from zcluster.config import make_config
from zcluster.core.services import ANSWER_S, PAUSE_MAX_S, SETTLED_S, Services, kinds


def services():
    return Services(("checkpoint",), lambda: 0.0)


def test_a_service_is_asked_for_at_once_and_once():
    """One order; no second one while the launcher has time to answer, none once it is up."""
    wanted = services()
    assert wanted.due(0.0) == ["checkpoint"]
    assert wanted.due(0.1) == []
    wanted.up("checkpoint", 7, 0.2)
    assert wanted.due(1000.0) == []


def test_an_order_without_an_answer_is_repeated():
    """The launcher says nothing when the machine had no process for it."""
    wanted = services()
    wanted.due(0.0)
    assert wanted.due(ANSWER_S) == ["checkpoint"]


def test_deaths_in_a_row_are_repaired_ever_more_slowly():
    """The first at once, then with pauses up to the cap, and at the cap for ever."""
    wanted, now, waits = services(), 0.0, []
    wanted.due(now)
    for pid in range(1, 12):
        wanted.up("checkpoint", pid, now)
        assert "checkpoint" in wanted.died(pid, now)
        begun = now
        while not wanted.due(now):
            now += 0.05
        waits.append(now - begun)
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert PAUSE_MAX_S <= waits[-1] < PAUSE_MAX_S + 0.1


def test_a_settled_life_starts_the_pauses_anew():
    """A service that is killed once a day is replaced at once each time."""
    wanted, now = services(), 0.0
    wanted.due(now)
    for pid in range(1, 5):
        wanted.up("checkpoint", pid, now)
        now += SETTLED_S
        wanted.died(pid, now)
        assert wanted.due(now) == ["checkpoint"]


def test_the_death_of_another_process_is_no_business_of_ours():
    """Workers and strangers die, too; and nothing is wanted where there is no state."""
    wanted = services()
    wanted.due(0.0)
    wanted.up("checkpoint", 7, 0.0)
    assert wanted.died(8, 1.0) == ""
    assert Services((), lambda: 0.0).due(1.0) == []


def test_which_are_wanted():
    """What the options ask for."""
    assert kinds(make_config(app="a")) == ()
    assert kinds(make_config(app="a", state="s", reload=True)) == ("checkpoint", "watcher")
    assert kinds(make_config(app="a", capture_output=True, hooks="a:B")) == ("output", "hooks")


def test_a_service_that_was_never_wanted_or_is_known_changes_nothing():
    """The launcher tells a new master of all it has; its age counts from when it was told first."""
    wanted = services()
    wanted.up("dashboard", 5, 0.0)
    assert wanted.died(5, 1.0) == ""
    wanted.up("checkpoint", 7, 0.0)
    wanted.died(7, 0.1)
    wanted.up("checkpoint", 8, 1.0)
    wanted.up("checkpoint", 8, SETTLED_S)
    assert "in 0.0 s" in wanted.died(8, 1.0 + SETTLED_S)

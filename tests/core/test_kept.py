"""What a launcher tells the next master, and how messages become the fleet's events."""

from msgspec import Raw

from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.fleet_wire import for_launcher, of_launcher, of_zygote
from zcluster.core.kept import UNACKNOWLEDGED_MAX, Kept
from zcluster.core.verbs import NO_RELOAD

RAW = Raw(b"\xc0")


def test_a_new_master_is_told_what_stands():
    """The last of each kind, then the deaths in order, then the wish to stop; of what is over, nothing."""
    kept = Kept()
    assert kept.told() == []
    first, second = kept.died(10, 1, 0, None), kept.died(11, 1, None, 9)
    assert (first, second) == (m.Died(1, 10, 1, 0, None), m.Died(2, 11, 1, None, 9))
    kept.take(m.Received(99))
    for message in (m.Size((0,)), m.Commit(2), m.Reload(("a",)), m.Size((0, 1)), m.Commit(3), m.Received(1)):
        kept.take(message)
    kept.stop = m.Stop(quick=False)
    assert kept.told() == [m.Size((0, 1)), m.Commit(3), m.Reload(("a",)), second, kept.stop]
    kept.take(m.Reload(()))
    assert m.Reload not in map(type, kept.told())


def test_a_stop_that_is_announced():
    """It is told to the next master as well, and nothing is changed any more, but it has not begun."""
    kept = Kept()
    assert not kept.is_stopping
    kept.stop = m.Stop(quick=False, delayed=True)
    assert not kept.is_stopping
    assert kept.told() == [kept.stop]
    assert kept.wish("SIGTTIN", can_reload=True) == ("too late, the cluster is stopping", None)
    kept.stop = m.Stop(quick=False)
    assert kept.is_stopping


def test_the_operators_sizes_are_kept_until_decided():
    """Repeated to every master, in order with the deaths; until Received, or until a size has it in it."""
    kept = Kept()
    more, fewer = (kept.wish(name, can_reload=True)[1] for name in ("SIGTTIN", "SIGTTOU"))
    assert (more, fewer) == (m.ScaleBy(1, 1), m.ScaleBy(2, -1))
    death = kept.died(10, 1, 0, None)
    assert kept.told() == [more, fewer, death]
    size = m.Size((0, 1, 2), answered=((7, 7, 2, RAW), (*f.LAUNCHER, 1, RAW)))
    kept.take(size)
    assert kept.told() == [size, fewer, death]
    kept.take(m.Received(2))
    kept.take(size)
    assert kept.told() == [size, death]


def test_the_operators_reload_is_kept_until_a_master_has_it():
    """The last is all that those before had asked for; a reload that ended was none of it."""
    kept = Kept()
    text, first = kept.wish("SIGHUP", can_reload=True)
    assert kept.is_reloading
    second = kept.wish("SIGHUP", can_reload=True)[1]
    assert text == "a reload"
    assert first != second
    kept.take(m.Reload(("a",)))
    kept.take(m.Reload(()))  # it was said before it was heard
    kept.take(m.Reload(("b",)))
    both = m.Reload(("b", *second.tokens))
    assert kept.told() == [both]
    assert kept.told() == [both]  # that master died, too, before it said anything
    kept.take(m.Reload(()))
    assert kept.told() == []
    third = kept.wish("SIGHUP", can_reload=True)[1]
    kept.take(third)
    kept.take(m.Reload(()))
    assert kept.told() == []


def test_wishes_that_cannot_be():
    """Nothing is kept of them, and it is said why."""
    kept = Kept()
    assert kept.wish("SIGHUP", can_reload=False) == (NO_RELOAD, None)
    assert kept.wish("SIGUSR2", can_reload=True) == ("does nothing in this release", None)
    kept.stop = m.Stop(quick=False)
    for name in ("SIGHUP", "SIGTTIN", "SIGTTOU"):
        assert kept.wish(name, can_reload=True) == ("too late, the cluster is stopping", None)
    assert kept.told() == [kept.stop]


def test_deaths_nobody_acknowledges_are_bounded():
    """The oldest are forgotten."""
    kept = Kept()
    for pid in range(UNACKNOWLEDGED_MAX + 3):
        kept.died(pid, 1, 0, None)
    told = kept.told()
    assert len(told) == UNACKNOWLEDGED_MAX
    assert told[0].number == 4


def test_a_reload_is_under_way_from_the_wish_to_the_end():
    """Also before a master knows of it, and while the end of another one is told."""
    kept = Kept()
    assert not kept.is_reloading
    _, wish = kept.wish("SIGHUP", can_reload=True)
    assert kept.is_reloading
    kept.take(m.Reload(()))  # of one before
    assert kept.is_reloading
    kept.take(wish)
    assert kept.is_reloading
    kept.take(m.Reload(()))
    assert not kept.is_reloading


def test_every_decision_has_its_message():
    """What the fleet wants of a launcher, word by word."""
    assert for_launcher(f.StartZygote(2)) == m.StartZygote(2)
    assert for_launcher(f.EndZygote(2)) == m.EndZygote(2)
    assert for_launcher(f.Commit(2)) == m.Commit(2)
    assert for_launcher(f.KeepReload(("a", "b"))) == m.Reload(("a", "b"))
    assert for_launcher(f.Running(3)) == m.Running(3)


def test_every_message_has_its_event():
    """What launcher and zygotes say; an answer to the master before is nobody's."""
    assert of_launcher(m.Size((1,), {1: {"A": "b"}})) == f.Sized((1,), {1: {"A": "b"}})
    assert of_launcher(m.Commit(4)) == f.Committed(4)
    assert of_launcher(m.Reload(("a",))) == f.Unfinished(("a",))
    assert of_launcher(m.Stop(True, "why")) == f.Stop(True, "why")
    assert of_launcher(m.Stop(False, "why", True)) == f.Stop(False, "why", delayed=True)
    info = m.WorkerInfo(1, 0, 0, 2)
    assert of_zygote(2, m.Imported(2, True, ("a thread",)), 5) == f.Imported(2, ("a thread",))
    assert of_zygote(2, m.ImportFailed(2, "no"), 5) == f.ImportFailed(2, "no")
    assert of_zygote(2, m.Forked(info), 5) == f.Forked(info)
    assert of_zygote(2, m.ForkFailed(1, "EAGAIN"), 5) == f.ForkFailed(1, "EAGAIN")
    assert of_zygote(2, m.Synced(5, True, (info,)), 5) == f.Synced((info,), True)
    assert of_zygote(2, m.Synced(4, True, (info,)), 5) is None
    assert of_zygote(2, m.Proceed(), 5) is None


def test_another_number_in_the_configuration_is_kept_like_any_wish():
    """Until a master has acknowledged it."""
    kept = Kept()
    wish = kept.scale_to(5)
    assert wish == m.ScaleBy(1, 0, 5)
    assert kept.told() == [wish]
    kept.take(m.Received(1))
    assert kept.told() == []


def test_a_reload_that_is_the_first_thing_kept():
    """Nothing is known of reloads but the wish."""
    kept = Kept()
    wish = kept.wish("SIGHUP", can_reload=True)[1]
    assert kept.told() == kept.told() == [wish]

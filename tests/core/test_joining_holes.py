"""What a peer does about holes in what the master publishes, about a link that is new, and when it looks again."""

from math import inf

from test_joining import LINK, joined, texts, welcome

from zcluster.core.joining import TICKS_MISSED, Deliver, Joined, Joining, Missed, Parted, SendResync, Watch
from zcluster.core.mail import TOPICS
from zcluster.core.messages import EVENTS, TOTALS, Answer, Event, Probe, Tick, Totals


def events(*numbers):
    return [Event(1, n, "online", None, str(n)) for n in numbers]


def joined_again(machine, epoch, heads=None, recent=()):
    """Give the link up, open another one, and join; returns what that leads to."""
    machine.master_gone(1.0)
    machine.opened(b"2", 1.0)
    machine.pub(Probe(b"2"), 1.0)
    return machine.ctl(welcome(epoch, heads=heads, recent=recent), 1.0)


def test_before_the_first_link_nothing_is_known_and_nothing_is_waited_for():
    """Not joined, no totals, no time at which to look again."""
    machine = Joining()
    assert (machine.joined, machine.epoch, machine.totals, machine.deadline) == (False, 0, {}, inf)
    assert not machine.blocked_at_hello
    assert machine.tick(1.0) == []


def test_after_the_link_is_lost_nothing_is_heard():
    """Neither what is published nor what is of no concern; and it is not joined any more."""
    machine = joined()
    assert machine.pub(Answer(1), 0.5) == []
    assert machine.master_gone(1.0) == [Parted("the master has ended")]
    assert not machine.joined
    assert machine.pub(Totals(1, 1, {"a": 1}), 1.0) == []
    assert machine.totals == {}


def test_a_new_link_to_the_same_master_repeats_nothing():
    """What was delivered stays delivered; what came meanwhile is news."""
    machine = joined()
    assert texts(machine.pub(events(1)[0], 0.5)) == ["1"]
    assert texts(joined_again(machine, 1, {EVENTS: 2}, events(1, 2))) == ["2"]


def test_a_new_master_counts_from_the_beginning():
    """Its first total is news, whatever the one before had published."""
    machine = joined()
    machine.pub(Totals(1, 1, {"a": 1}), 0.5)
    joined_again(machine, 2)
    assert machine.pub(Totals(2, 1, {"a": 2}), 1.0) == [Deliver(Totals(2, 1, {"a": 2}))]


def test_a_hole_among_what_came_while_joining_is_asked_for_at_once():
    """Its number says so as soon as the snapshot is there."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    machine.pub(Totals(1, 3, {"a": 3}), 0.0)
    machine.pub(Probe(LINK), 0.0)
    actions = machine.ctl(welcome(heads={TOTALS: 1}), 0.0)
    assert [type(action) for action in actions] == [Watch, Joined, Deliver, SendResync]


def test_numbers_of_topics_are_not_confused():
    """An event that waits behind a hole does not make a total of the same number a repetition."""
    machine = joined()
    assert machine.pub(events(3)[0], 0.0) == [SendResync()]
    assert machine.pub(events(3)[0], 0.0) == []
    assert machine.stale == 1
    assert machine.pub(Totals(1, 3, {"a": 1}), 0.1) == [Deliver(Totals(1, 3, {"a": 1}))]
    assert machine.stale == 1


def test_what_waits_behind_a_hole_is_not_missing():
    """A tick that names it says nothing new: when the hole is closed nothing is asked for."""
    machine = joined()
    assert machine.pub(events(2)[0], 0.0) == [SendResync()]
    assert machine.pub(Tick(1, 1, {EVENTS: 2}), 0.1) == []
    assert texts(machine.ctl(welcome(heads={EVENTS: 1}, recent=events(1)), 0.2)) == ["1", "2"]
    assert machine.tick(1.5) == []


def test_all_that_waits_behind_a_hole_comes_when_it_is_closed():
    """In order, also what is newer than the snapshot that closes it."""
    machine = joined()
    for event in events(2, 3, 4, 6):
        machine.pub(event, 0.0)
    assert texts(machine.ctl(welcome(heads={EVENTS: 1}, recent=events(1)), 0.2)) == ["1", "2", "3", "4"]
    assert texts(machine.ctl(welcome(heads={EVENTS: 5}, recent=events(4, 5)), 0.3)) == ["5", "6"]


def test_a_hole_is_asked_for_until_a_snapshot_reaches_over_it():
    """Not until one that is older comes; and later news of less make it no smaller."""
    for publish in (
        lambda machine: machine.pub(events(9)[0], 0.0) + machine.pub(events(5)[0], 0.0),
        lambda machine: machine.pub(Tick(1, 1, {EVENTS: 8}), 0.0) + machine.pub(Tick(1, 2, {EVENTS: 4}), 0.0),
    ):
        machine = joined()
        assert publish(machine) == [SendResync()]
        machine.ctl(welcome(heads={EVENTS: 7}, recent=events(*range(1, 8))), 0.1)
        assert machine.tick(1.0) == [SendResync()]
        machine.ctl(welcome(heads={EVENTS: 8}, recent=events(*range(1, 9))), 1.1)
        assert machine.tick(2.5) == []


def test_a_snapshot_that_does_not_know_of_a_topic_closes_no_hole():
    """It was made before the first of its messages."""
    machine = joined()
    assert machine.pub(events(2)[0], 0.0) == [SendResync()]
    machine.ctl(welcome(), 0.1)
    assert machine.tick(1.0) == [SendResync()]


def test_a_hole_of_one_is_a_hole():
    """It is reported as missed like any other."""
    machine = joined()
    machine.pub(Tick(1, 1, {EVENTS: 3}), 0.0)
    first, third = events(1, 3)
    actions = machine.ctl(welcome(heads={EVENTS: 3}, recent=[first, third]), 0.1)
    assert actions[1:] == [Deliver(first), Missed(2, 2), Deliver(third)]


def test_a_tick_that_names_what_is_known_asks_for_nothing():
    """Neither what was published and came, nor what came with a snapshot."""
    machine = joined()
    machine.pub(Totals(1, 1, {"a": 1}), 0.0)
    assert machine.pub(Tick(1, 1, {TOTALS: 1}), 0.5) == []
    assert machine.pub(Tick(1, 2, {TOTALS: 2}), 1.0) == [SendResync()]
    machine.ctl(welcome(counters={"a": 2}, heads={TOTALS: 2}), 1.1)
    assert machine.pub(Tick(1, 3, {TOTALS: 2}), 3.0) == []
    assert machine.tick(3.1) == []


def test_holes_in_what_is_published_are_for_those_who_read_it():
    """Ticks are passed on to them; a snapshot could not fill a hole there."""
    tick = Tick(1, 1, {TOPICS: 5})
    assert joined(topics=(TOTALS, TOPICS)).pub(tick, 0.0) == [Deliver(tick)]
    assert joined(topics=(TOTALS,)).pub(tick, 0.0) == []


def test_when_it_looks_again():
    """Once per heartbeat, earlier when the master is taken for dead then, or when a question is to be repeated."""
    machine = joined(now=10.0)
    assert machine.deadline == 11.0
    assert machine.pub(Totals(1, 2, {"a": 1}), 10.25) == [Deliver(Totals(1, 2, {"a": 1})), SendResync()]
    machine.tick(10.5)
    assert machine.deadline == 11.25
    machine.ctl(welcome(heads={TOTALS: 2}), 10.5)
    assert machine.deadline == 11.5
    assert joined(now=10.0, tick_timeout_s=0.75).deadline == 10.75


def test_how_long_a_silence_may_be():
    """What was asked for, otherwise some heartbeats."""
    machine = joined(tick_timeout_s=2.0)
    assert machine.tick(1.0) == machine.tick(1.9) == []
    assert machine.tick(2.0) == [Parted("nothing heard from the master for 2.0 s")]
    machine, now = joined(heartbeat_s=0.5), 0.0
    while now < TICKS_MISSED * 0.5 - 0.5:
        now += 0.5
        assert machine.tick(now) == []
    assert machine.tick(now + 0.5) == [Parted("nothing heard from the master for 2.5 s")]

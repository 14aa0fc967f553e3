"""The joining of one peer, as histories of inputs and expected actions."""

from itertools import pairwise
from math import inf

import pytest

from zcluster.core.joining import (
    HELLO_FIRST_S,
    HELLO_MAX_S,
    REOPEN_MIN_S,
    WAITING_MAX,
    Deliver,
    Joined,
    Joining,
    Missed,
    Parted,
    Refreshed,
    SendHello,
    SendResync,
    Watch,
)
from zcluster.core.mail import MEMBERS, TOPICS, Members, Publication
from zcluster.core.messages import (
    EVENTS,
    TOTALS,
    Answer,
    Drain,
    Event,
    Probe,
    Snapshot,
    Tick,
    Totals,
    Welcome,
)

LINK = b"\x01" * 16


def snapshot(epoch=1, counters=None, heads=None, recent=()):
    return Snapshot("t", (), epoch, 1, "running", 1, 2, 3, counters or {}, (), heads or {}, {}, tuple(recent))


def welcome(epoch=1, counters=None, heads=None, recent=(), pid=2):
    return Welcome(pid, 20, snapshot(epoch, counters, heads, recent))


def joined(epoch=1, now=0.0, **options):
    """A machine that has joined."""
    machine = Joining(**options)
    machine.opened(LINK, now)
    machine.pub(Probe(LINK), now)
    machine.ctl(welcome(epoch), now)
    assert machine.joined
    return machine


def texts(actions):
    return [a.message.text for a in actions if isinstance(a, Deliver) and isinstance(a.message, Event)]


def test_both_halves_are_needed_in_either_order():
    """Neither the Welcome nor the Probe alone makes a peer joined, and another link's Probe is nobody's."""
    for probe_first in (True, False):
        machine = Joining()
        assert machine.opened(LINK, 0.0) == [SendHello()]
        assert machine.pub(Probe(b"other"), 0.0) == []
        if probe_first:
            assert machine.pub(Probe(LINK), 0.0) == []
            assert not machine.joined
            actions = machine.ctl(welcome(counters={"a": 1}), 0.0)
        else:
            assert machine.ctl(welcome(counters={"a": 1}), 0.0) == [Watch(2, 20)]
            assert not machine.joined
            actions = [Watch(2, 20), *machine.pub(Probe(LINK), 0.0)]
        assert actions == [Watch(2, 20), Joined(snapshot(counters={"a": 1}), again=False)]
        assert machine.joined
        assert machine.totals == {"a": 1}


def test_hello_is_repeated_ever_more_slowly_and_never_more_than_ten_times_a_second():
    """2, 4, 8 ... 100 ms: quick for a race, cheap for a wait."""
    machine, now, at = Joining(), 0.0, []
    machine.opened(LINK, now)
    while now < 2.0:
        now = machine.deadline
        assert machine.tick(now) == [SendHello()]
        at.append(now)
    gaps = [round(b - a, 6) for a, b in pairwise(at)]
    assert at[0] == pytest.approx(HELLO_FIRST_S)
    assert gaps[:4] == pytest.approx([HELLO_FIRST_S * factor for factor in (2, 4, 8, 16)])
    assert gaps == sorted(gaps)
    assert max(gaps) == HELLO_MAX_S
    assert len(at) < 30


def test_without_a_connection_nothing_is_repeated_until_there_is_one():
    """A blocked Hello waits for the socket, not for time, and starts again from the short interval."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    assert not machine.blocked_at_hello
    machine.blocked()
    assert machine.deadline == inf
    assert machine.blocked_at_hello
    assert machine.tick(1000.0) == []
    assert machine.writable(1000.0) == [SendHello()]
    assert machine.writable(1000.0) == []
    assert machine.deadline == pytest.approx(1000.0 + HELLO_FIRST_S)


def test_updates_that_come_while_joining_are_applied_when_newer_than_the_snapshot():
    """What the snapshot already holds is dropped, what came after it is delivered, in order."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    for number in (1, 2, 3):
        assert machine.pub(Totals(1, number, {"a": number}), 0.0) == []
        assert machine.pub(Event(1, number, "online", None, str(number)), 0.0) == []
    machine.pub(Probe(LINK), 0.0)
    actions = machine.ctl(welcome(counters={"a": 2}, heads={TOTALS: 2, EVENTS: 2}), 0.0)
    assert [type(a) for a in actions] == [Watch, Joined, Deliver, Deliver]
    assert [a.message for a in actions[2:]] == [Totals(1, 3, {"a": 3}), Event(1, 3, "online", None, "3")]


def test_too_many_early_updates_cost_a_resync_and_nothing_else():
    """The waiting room is bounded; what did not fit is found missing by its number."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    for number in range(1, WAITING_MAX + 101):
        machine.pub(Totals(1, number, {"a": number}), 0.0)
    machine.pub(Probe(LINK), 0.0)
    machine.ctl(welcome(), 0.0)
    assert machine.totals == {"a": WAITING_MAX}
    assert machine.pub(Tick(1, 1, {TOTALS: WAITING_MAX + 100}), 0.0) == [SendResync()]
    actions = machine.ctl(welcome(counters={"a": WAITING_MAX + 100}, heads={TOTALS: WAITING_MAX + 100}), 0.0)
    assert actions[0] == Refreshed(snapshot(1, {"a": WAITING_MAX + 100}, {TOTALS: WAITING_MAX + 100}))
    assert machine.totals == {"a": WAITING_MAX + 100}


def test_stale_repeated_and_reordered_totals_are_dropped():
    """A number not above the last one says nothing new, whatever it carries."""
    machine = joined()
    assert machine.pub(Totals(1, 1, {"a": 5}), 0.0) == [Deliver(Totals(1, 1, {"a": 5}))]
    assert machine.pub(Totals(1, 1, {"a": 9}), 0.0) == []
    assert machine.pub(Totals(1, 2, {"a": 4, "b": 1}), 0.0) == [Deliver(Totals(1, 2, {"b": 1}))]
    assert machine.pub(Totals(1, 2, {"a": 6}), 0.0) == []
    assert machine.stale == 2
    assert machine.totals == {"a": 5, "b": 1}


def test_a_gap_in_totals_delivers_at_once_and_asks_once_per_heartbeat():
    """Absolute values need no waiting; the request for the snapshot is rate-limited and repeated until it comes."""
    machine = joined()
    assert machine.pub(Totals(1, 3, {"a": 5}), 10.0) == [Deliver(Totals(1, 3, {"a": 5})), SendResync()]
    assert machine.pub(Totals(1, 9, {"a": 6}), 10.1) == [Deliver(Totals(1, 9, {"a": 6}))]
    assert machine.tick(10.2) == []
    assert machine.deadline <= 11.0
    assert machine.tick(11.0) == [SendResync()]
    old = machine.ctl(welcome(counters={"a": 5}, heads={TOTALS: 4}), 11.1)
    assert [type(a) for a in old] == [Refreshed]
    assert machine.pub(Tick(1, 5, {TOTALS: 9}), 12.0) == [SendResync()]
    new = machine.ctl(welcome(counters={"a": 6, "lost": 1}, heads={TOTALS: 9}), 12.1)
    assert new[1:] == [Deliver(Totals(1, 9, {"lost": 1}))]
    assert machine.tick(13.1) == []
    assert machine.ctl(welcome(counters={"a": 4}, heads={TOTALS: 4}), 14.0)[1:] == []
    assert machine.pub(Totals(1, 10, {"a": 7}), 15.0) == [Deliver(Totals(1, 10, {"a": 7}))]


def test_a_tick_that_names_a_later_head_is_a_gap():
    """The loss of the last message of a topic shows in no other way; topics not subscribed to do not count."""
    machine = joined(topics=(TOTALS,))
    assert machine.pub(Tick(1, 1, {TOTALS: 0, EVENTS: 7}), 1.0) == []
    assert machine.pub(Tick(1, 2, {TOTALS: 1, EVENTS: 7}), 1.0) == [SendResync()]


def test_events_behind_a_hole_wait_and_come_in_order_once():
    """The snapshot's recent events fill the hole; repeated ones are not delivered again."""
    events = [Event(1, n, "online", None, str(n)) for n in range(6)]
    machine = joined()
    assert texts(machine.pub(events[1], 0.0)) == ["1"]
    assert machine.pub(events[3], 0.0) == [SendResync()]
    assert machine.pub(events[3], 0.0) == []
    assert machine.pub(events[4], 0.0) == []
    actions = machine.ctl(welcome(heads={EVENTS: 3}, recent=events[1:4]), 0.1)
    assert texts(actions) == ["2", "3", "4"]
    assert texts(machine.ctl(welcome(heads={EVENTS: 3}, recent=events[1:4]), 0.1)) == []
    assert texts(machine.pub(events[5], 0.2)) == ["5"]


def test_events_that_nobody_has_any_more_are_reported_as_missed():
    """A hole that `recent` does not reach is closed with an honest report, and the stream goes on."""
    machine = joined()
    recent = [Event(1, n, "online", None, str(n)) for n in (7, 8)]
    assert machine.pub(Tick(1, 1, {EVENTS: 9}), 0.0) == [SendResync()]
    actions = machine.ctl(welcome(heads={EVENTS: 9}, recent=recent), 0.1)
    assert actions[1:] == [Missed(1, 6), Deliver(recent[0]), Deliver(recent[1]), Missed(9, 9)]
    assert texts(machine.pub(Event(1, 10, "online", None, "10"), 0.2)) == ["10"]


def test_the_first_join_replays_no_events_but_a_rejoin_does():
    """What happened before our time is state; what happened while we were away is news, of the new epoch too."""
    recent = [Event(1, n, "online", None, str(n)) for n in (1, 2)]
    machine = Joining()
    machine.opened(LINK, 0.0)
    machine.pub(Probe(LINK), 0.0)
    assert texts(machine.ctl(welcome(heads={EVENTS: 2}, recent=recent), 0.0)) == []
    machine.master_gone(1.0)
    machine.opened(b"2", 1.0)
    machine.pub(Probe(b"2"), 1.0)
    again = [Event(2, n, "exit", None, f"new {n}") for n in (1, 2)]
    actions = machine.ctl(welcome(2, {"a": 3}, {EVENTS: 2}, [*again, *recent]), 1.0)
    assert actions[1] == Joined(snapshot(2, {"a": 3}, {EVENTS: 2}, [*again, *recent]), again=True)
    assert texts(actions) == ["new 1", "new 2"]
    assert Deliver(Totals(2, 0, {"a": 3})) in actions
    assert machine.totals == {"a": 3}


def test_a_lower_epoch_is_ignored_and_a_higher_one_parts():
    """Fencing: a master of the past is not heard; one of the future must be joined from the start."""
    machine = joined(epoch=5)
    for message in (Totals(4, 99, {"a": 9}), Event(4, 99, "exit"), Tick(4, 99, {TOTALS: 99})):
        assert machine.pub(message, 0.0) == []
    assert machine.ctl(welcome(epoch=4, counters={"a": 9}), 0.0) == []
    assert machine.stale == 4
    for later in (Totals(6, 1, {"a": 1}), Event(6, 1, "exit"), Tick(6, 1, {})):
        actions = joined(epoch=5, now=0.0).pub(later, 1.0)
        assert actions == [Parted("a master of epoch 6 publishes")]
    assert joined(epoch=5).ctl(welcome(epoch=6), 1.0) == [Parted("a master of epoch 6 answers")]


def test_a_welcome_older_than_what_pub_says_is_not_believed():
    """The master was replaced between the two halves: the next Hello asks the new one."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    machine.pub(Probe(LINK), 0.0)
    machine.pub(Tick(3, 1, {}), 0.0)
    assert machine.ctl(welcome(epoch=2), 0.0) == [Watch(2, 20)]
    assert not machine.joined
    assert machine.tick(1.0) == [SendHello()]
    assert [type(a) for a in machine.ctl(welcome(epoch=3), 1.0)] == [Watch, Joined]


def test_silence_of_a_living_master_parts_but_our_own_sleep_does_not():
    """Five heartbeats without anything on pub; time in which we did not run ourselves is added to the deadline."""
    machine = joined(heartbeat_s=1.0)
    for now in (1.0, 2.0, 3.0, 4.0, 4.9):
        assert machine.tick(now) == []
    assert machine.tick(5.0) == [Parted("nothing heard from the master for 5.0 s")]
    assert not machine.joined
    machine = joined(heartbeat_s=1.0)
    assert machine.tick(60.0) == []
    machine.pub(Tick(1, 1, {}), 60.1)
    for now in (61.0, 62.0, 63.0, 64.0, 65.0):
        assert machine.tick(now) == []
    assert [type(a) for a in machine.tick(65.2)] == [Parted]


def test_new_sockets_are_limited_in_rate_and_asked_for_once():
    """A Welcome that names a dead master, again and again, makes twenty attempts a second and no more."""
    machine, now, opened = Joining(), 0.0, 0
    machine.opened(LINK, now)
    while now < 1.0:
        machine.ctl(welcome(), now)
        actions = machine.master_gone(now)
        if not actions:
            assert machine.master_gone(now) == []
            assert machine.ctl(welcome(), now) == []
            assert machine.ctl(Answer(1), now) == [Deliver(Answer(1))]
            now = machine.deadline
            actions = machine.tick(now)
        assert actions == [Parted("the master has ended")]
        assert machine.tick(now) == []
        machine.opened(LINK, now)
        opened += 1
    assert opened <= 1.0 / REOPEN_MIN_S + 1


def test_commands_are_delivered_in_every_state():
    """Refused and Drain come before or after joining; they do not wait."""
    machine = Joining()
    machine.opened(LINK, 0.0)
    assert machine.ctl(Drain(1.0, False), 0.0) == [Deliver(Drain(1.0, False))]
    assert joined().ctl(Drain(1.0, True), 0.0) == [Deliver(Drain(1.0, True))]


def test_held_events_are_bounded():
    """A hole with thousands of events behind it costs a fixed amount of memory, and they come with the snapshot."""
    machine = joined()
    last = WAITING_MAX + 500
    events = [Event(1, n, "online", None, str(n)) for n in range(1, last + 1)]
    for event in events[1:]:
        machine.pub(event, 0.0)
    assert len(machine._held) == WAITING_MAX
    delivered = texts(machine.ctl(welcome(heads={EVENTS: last}, recent=events), 1.0))
    assert delivered == [str(n) for n in range(1, last + 1)]
    assert not machine._held


def test_who_is_there_and_what_is_published_are_delivered():
    """Members are absolute: a later list says all of an earlier one; who reads publications counts them."""
    machine = joined(topics=(TOTALS, MEMBERS, TOPICS))
    later, earlier = (Members(1, number, {1: (0, True)}, {}, 2) for number in (2, 1))
    assert machine.pub(later, 1.0) == [Deliver(later), SendResync()]  # the first one has not come
    assert machine.pub(earlier, 1.0) == []
    published = Publication(1, 7, "worker:1", 1, "t", b"x")
    assert machine.pub(published, 1.0) == [Deliver(published)]
    assert texts(machine.ctl(welcome(heads={EVENTS: 1}, recent=[Event(1, 1, "fork")]), 1.0)) == []


def test_what_comes_without_a_link_is_not_kept():
    """It will be in the snapshot of the next Welcome."""
    machine = Joining()
    assert machine.pub(Totals(1, 1, {"a": 1}), 0.0) == []
    machine.opened(LINK, 1.0)
    machine.pub(Probe(LINK), 1.0)
    assert [type(action) for action in machine.ctl(welcome(), 1.0)] == [Watch, Joined]

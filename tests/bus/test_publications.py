"""Publications on a real bus: one copy each, in order, over stopped subscribers, full inboxes and dead masters."""

import threading

import pytest
from postal import WAIT_S
from serving import until

from zcluster.bus import mailbox as mailbox_module
from zcluster.bus import reception
from zcluster.core.mail import PIECE_BYTES
from zcluster.errors import BusError


def test_each_subscriber_gets_one_copy_of_each_in_the_order_of_publication(town):
    """The publisher too; two publishers, large ones between small ones; who does not subscribe gets nothing."""
    one, two, deaf = town.workers(3)
    for station in (one, two):
        station.listen("t")
    publish_until_heard(one, "t", [one, two])
    futures = []
    for number in range(100):
        for station in (one, two):
            futures.append(
                station.mailbox.publish("t", [station.name, number, b"x" * (number % 7 * PIECE_BYTES // 3)])
            )
    for future in futures:
        future.result(WAIT_S)
    until(lambda: len(one.got) == len(two.got) == 200)
    assert one.got == two.got
    for station in (one, two):
        assert [number for name, number, _body in one.got if name == station.name] == list(range(100))
    assert deaf.got == []
    for wrong in ("", "x" * 256, "\udc80", None):
        with pytest.raises(BusError, match="a topic is text of 1 to 255 bytes"):
            one.mailbox.publish(wrong, 1)


def publish_until_heard(publisher, topic, stations):
    """Publish until everybody follows the topic, then forget what has come."""

    def heard():
        publisher.mailbox.publish(topic, "hello").result(WAIT_S)
        return all("hello" in station.got for station in stations)

    until(heard)
    publisher.mailbox.publish(topic, "last").result(WAIT_S)
    until(lambda: all("last" in station.got for station in stations))
    for station in stations:
        station.got.clear()


def test_who_subscribes_later_gets_nothing_old_and_once_more_after_it_had_stopped(town):
    """Whatever is remembered; and a link that was opened anew while nothing was subscribed follows all the same."""
    one, two = town.workers(2, listens=False)
    for number in range(20):
        one.mailbox.publish("t", number, reliable=True).result(WAIT_S)
    two.listen("t")
    publish_until_heard(one, "t", [two])
    assert two.mailbox._reception.subscriber.lost == 0
    functions = two.on.of_topic("t")
    for function in functions:
        two.on.unsubscribe("t", function)
    joins = town.office.hellos
    two.do(lambda: two.link.reopen())
    until(lambda: town.office.hellos > joins and two.link.joined)
    two.listen("t")
    publish_until_heard(one, "t", [two])


def test_reliable_ones_are_replayed_and_others_reported_to_who_was_stopped(town, monkeypatch):
    """Three thousand publications while it is stopped: PUB keeps one thousand, the rest is in the master's memory."""
    one, two = town.workers(2)
    town.office.do(lambda: setattr(town.office.relay, "_joining_until", 0.0))
    two.listen("t")
    publish_until_heard(one, "t", [two])
    two.stop()
    for number in range(3000):
        one.mailbox.publish("t", number, reliable=number % 3 == 0)
    one.mailbox.flush().result(WAIT_S)
    two.go_on()
    one.mailbox.publish("t", 3000, reliable=True)

    def lost():
        return sum(item[1] for item in two.got if isinstance(item, list | tuple))

    def numbers():
        return [item for item in two.got if isinstance(item, int)]

    # A loss is told by the last word of a replay, which may come after what was published meanwhile.
    until(lambda: 3000 in two.got and len(numbers()) + lost() == 3001)
    assert numbers() == sorted(set(numbers()))
    assert set(range(0, 3001, 3)) <= set(numbers())
    assert two.mailbox._reception.subscriber.lost == lost()


def test_a_slow_subscriber_gets_all_that_is_reliable(town, monkeypatch):
    """Its inbox is full most of the time, and its link's thread does not spin meanwhile."""
    monkeypatch.setattr(reception, "INBOX_MAX", 20)
    one, two = town.workers(2, listens=False)
    gate = threading.Event()
    two.on.subscribe("t", lambda payload: (gate.wait(WAIT_S), two.got.append(payload)))
    until(lambda: two.mailbox._follows and two.link.joined)
    one.mailbox.publish("t", "first").result(WAIT_S)
    for number in range(1000):
        one.mailbox.publish("t", number, reliable=True)
    one.mailbox.flush().result(WAIT_S)
    turns = two.turns
    assert not threading.Event().wait(0.1)
    assert two.turns - turns < 50, "it spins while its inbox is full"
    gate.set()
    until(lambda: 999 in two.got)
    numbers = [item for item in two.got if isinstance(item, int)]
    assert numbers == list(range(1000))


def test_what_is_published_reliably_right_before_the_master_is_killed_comes_once(town):
    """The next master is told again; the subscriber tells repetitions by the serial."""
    stations = town.workers(3)
    for station in stations:
        station.listen("t")
    publish_until_heard(stations[0], "t", stations)
    for round_ in range(3):
        for number in range(100):
            stations[0].mailbox.publish("t", [round_, number], reliable=True)
        town.replace_office()
    stations[0].mailbox.publish("t", "end", reliable=True)
    until(lambda: all("end" in station.got for station in stations))
    expected = [[round_, number] for round_ in range(3) for number in range(100)]
    for station in stations:
        assert station.got == [*expected, "end"]


def test_nobody_spins_while_there_is_no_master(town):
    """Holes are known, mail waits, deadlines pass: the link's thread sleeps."""
    one, two = town.workers(2)
    two.listen("t")
    publish_until_heard(one, "t", [two])
    town.end_office()
    one.mailbox.send("worker:2", 1)
    one.mailbox.publish("t", 1)
    two.do(lambda: two.mailbox._reception.subscriber.heads(1, 1 << 20))
    until(lambda: two.mailbox._reception.subscriber._head == 1 << 20)
    one.do(lambda: one.link.reopen())
    two.do(lambda: two.link.reopen())
    until(lambda: not two.link.joined and not one.link.joined)
    turns = one.turns + two.turns
    assert not threading.Event().wait(0.3)
    assert one.turns + two.turns - turns < 40
    town.begin_office()
    until(lambda: two.got == [1, 1])


def test_more_than_one_turns_worth_is_sent_without_another_wake_up(town, monkeypatch):
    """The rest of a turn is not left until somebody answers."""
    monkeypatch.setattr(mailbox_module, "PIECES_PER_PUMP", 3)
    one, two = town.workers(2)
    for number in range(30):
        one.mailbox.send("worker:2", number)
    one.mailbox.flush().result(WAIT_S)
    until(lambda: two.got == list(range(30)))

"""A zygote remembers its living children, and not for ever the dead."""

import pytest

from zcluster.core.births import ROOM, Births
from zcluster.core.messages import WorkerInfo


def child(number):
    return WorkerInfo(id=number, slot=0, lane=0, pid=number, start=1, generation=1)


def test_the_dead_are_forgotten():
    """Thousands of workers that die one after the other take no more room than a few."""
    births = Births()
    for number in range(1, 20 * ROOM):
        births.add(child(number), lambda one, last=number - 1: one.pid == last)
        assert len(births) <= ROOM
        assert births.newest.pid == number


@pytest.mark.parametrize("many", [1, ROOM - 1, ROOM, 5 * ROOM])
def test_the_living_are_remembered(many):
    """However many live, each is named, in order, and the dead among them are not."""
    births = Births()
    for number in range(1, many + 1):
        births.add(child(number), lambda one: True)
    assert [one.pid for one in births.living(lambda one: True)] == list(range(1, many + 1))
    assert [one.pid for one in births.living(lambda one: one.pid % 2)] == list(range(1, many + 1, 2))
    assert len(births) == (many + 1) // 2


def test_looking_is_rare():
    """With many that live, the room doubles: a fork looks at two of them on average, not at all."""
    looks = 0

    def is_alive(_one):
        nonlocal looks
        looks += 1
        return True

    births = Births()
    for number in range(1, 40 * ROOM):
        births.add(child(number), is_alive)
    assert looks <= 2 * 40 * ROOM


def test_none_was_born():
    """Asked for the newest of none, it says so."""
    assert len(Births()) == 0
    with pytest.raises(IndexError):
        _ = Births().newest


def test_the_dead_are_at_most_as_many_as_lived():
    """After a look at many that live, as many again may be born and die before the next."""
    births = Births()
    for number in range(1, 20 * ROOM):
        births.add(child(number), lambda one: one.pid <= 5 * ROOM)
        assert len(births) <= max(ROOM, 2 * min(number, 5 * ROOM + 1))

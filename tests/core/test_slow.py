"""Slow requests: the oldest are told, and never more than fits."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.core import slow as module
from zcluster.core.codec import decode, encode
from zcluster.core.messages import Beat, SlowRequest, Snapshot, WorkerInfo
from zcluster.core.slow import SLOW_MAX, SNAPSHOT_MAX, slow_requests, slowest


def test_a_beat_names_the_oldest():
    """Oldest first, not more than its share, ages in milliseconds."""
    found = [("GET", f"/{number}", float(number)) for number in (3, 1, 2)]
    assert slow_requests(found) == tuple(SlowRequest("GET", f"/{n}", float(n)) for n in (3, 2, 1))
    assert slow_requests([("GET", "/", 1.23456)])[0].age_s == 1.235
    many = slow_requests(("GET", "/", float(age)) for age in range(100))
    assert [request.age_s for request in many] == [99.0 - number for number in range(SLOW_MAX)]
    assert slow_requests([]) == ()


def test_long_words_are_shortened():
    """What is cut says so; what just fits is whole."""
    fits = "/" + "x" * (module.PATH_MAX_CHARS - 1)
    (whole, cut) = slow_requests([("M" * module.METHOD_MAX_CHARS, fits, 2.0), ("M" * 99, fits + "y", 1.0)])
    assert (whole.method, whole.path) == ("M" * module.METHOD_MAX_CHARS, fits)
    assert cut.method == "M" * (module.METHOD_MAX_CHARS - 3) + "..."
    assert cut.path == fits[:-3] + "..."


@pytest.mark.parametrize(
    ("path", "told"),
    [("/caf\xc3\xa9", "/café"), ("/caf\xe9", "/caf\xe9"), ("/日本", "/日本"), ("/\udcff", "/\\udcff")],
)
def test_a_path_is_told_in_its_own_letters(path, told):
    """PATH_INFO is UTF-8 in the guise of Latin-1, or whatever a client or an app made of it."""
    assert slow_requests([("GET", path, 1.0)])[0].path == told


@given(st.text(), st.text())
def test_whatever_a_client_sent_can_be_told(method, path):
    """Lone surrogates, NULs, anything: the beat arrives."""
    beat = Beat(0, 0, 0, 0, 0, 0.0, 0.0, slow_requests([(method, path, 1.0)]))
    assert decode(encode(beat)) == beat


def requests(*ages):
    return tuple(SlowRequest("GET", "/", float(age)) for age in ages)


def test_a_snapshot_leaves_out_workers_with_none():
    """All there are, when they are few."""
    assert slowest({1: requests(3, 2), 2: (), 3: requests(1)}) == {1: requests(3, 2), 3: requests(1)}


@pytest.mark.parametrize(
    "age", [lambda worker, n: 10.0, lambda worker, n: 10.0 * worker - n, lambda worker, n: 9.0 - n]
)
def test_a_snapshot_of_many_shows_the_oldest_of_all(age):
    """As many as there is room for, whether their ages differ or not, and none younger than one left out."""
    told = {worker: requests(*(age(worker, n) for n in range(SLOW_MAX))) for worker in range(2048)}
    shown = slowest(told)
    ages = sorted((r.age_s for some in shown.values() for r in some), reverse=True)
    assert ages == sorted((r.age_s for some in told.values() for r in some), reverse=True)[:SNAPSHOT_MAX]


def test_a_snapshot_of_a_large_cluster_stays_small():
    """2,048 workers that are all busy with long paths: the slow requests add less than 128 KiB."""
    told = {worker: slow_requests([("OPTIONS", "/" * 300, 1e6)] * 9) for worker in range(2048)}
    workers = tuple(WorkerInfo(worker, worker, worker, 1) for worker in told)
    empty = Snapshot("app", (), 1, 1, "running", 1, 2, 3, {}, workers)
    full = msgspec.structs.replace(empty, slow=slowest(told))
    assert len(msgspec.msgpack.encode(full)) - len(msgspec.msgpack.encode(empty)) < 128 * 1024


def test_a_request_in_words_fits_into_a_line_of_any_terminal():
    """Letters of other alphabets and control characters are spelled out, long ones cut."""
    assert module.named("GET", "/caf\xc3\xa9\n") == "GET /caf\\xe9\\n"
    assert module.named("GET", "/a b\\c~\x7f") == "GET /a b\\c~\\x7f"
    assert module.named("M" * 99, "/").startswith("M" * (module.METHOD_MAX_CHARS - 3) + "... ")

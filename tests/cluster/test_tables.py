"""What people read: the tables of `ps` and `counters`."""

import pytest

from zcluster.core.messages import Event, SlowRequest, Snapshot, WorkerInfo
from zcluster.roster import ps_form
from zcluster.tables import _span, cluster_table, counters_table, event_form, event_line


def test_the_table_of_ps():
    """Head, counters, one line per worker in the order of slots, columns aligned."""
    workers = (
        WorkerInfo(12, 1, 1, 1, 4712, 1, "ready", 3, 1234567, 0, 8, 2, 30 << 20, 61.0, 0.0),
        WorkerInfo(1, 0, 0, 1, 4711, 1, "suspect", 0, 5, 1, 1, 2, 0, 0.25, 12.34),
    )
    seen = Snapshot(
        "app", ("http://127.0.0.1:8000", "unix:/a"), 2, 1, "running", 10, 11, 0, {"b": 1, "a": 12000}, workers
    )
    assert cluster_table(ps_form(seen)).splitlines() == [
        "app  running  http://127.0.0.1:8000  unix:/a",
        "epoch 2  generation 1  launcher 10  master 11  zygote -",
        "",
        "a  12,000",
        "b       1",
        "",
        "ID  SLOT  PID   STATE    GEN   REQUESTS  IN FLIGHT  CONNS  THREADS     RSS  UPTIME  RESTARTS  OLDEST",
        "1   0     4711  suspect  1            5          1      1        2       -    0.2s         0   12.3s",
        "12  1     4712  ready    1    1,234,567          0      8        2  30 MiB   1m 1s         3       -",
    ]


def test_slow_requests_stand_below_their_worker():
    """Age, method and path, oldest first; nothing a client sent reaches the terminal as it came."""
    workers = (
        WorkerInfo(1, 0, 0, 1, 4711, 1, "ready", 0, 5, 3, 3, 4, 0, 90.0, 61.0),
        WorkerInfo(2, 1, 1, 1, 4712, 1, "ready", 0, 5, 0, 1, 2, 0, 90.0, 0.0),
    )
    slow = {
        1: (
            SlowRequest("GET", "/report", 61.0),
            SlowRequest("POST", "/a\x1b]0;owned\x07\x9b2J\r\n\x7fb", 2.04),
            SlowRequest("GET", "/caf\xe9 \u202egnp.\U0001f600\0", 1.0),
        )
    }
    seen = Snapshot("app", ("http://a:1",), 1, 1, "running", 10, 11, 12, {}, workers, slow=slow)
    table = cluster_table(ps_form(seen))
    assert table.splitlines()[3:] == [
        "ID  SLOT  PID   STATE  GEN  REQUESTS  IN FLIGHT  CONNS  THREADS  RSS  UPTIME  RESTARTS  OLDEST",
        "1   0     4711  ready  1           5          3      3        4    -  1m 30s         0   1m 1s",
        "    1m 1s  GET /report",
        r"     2.0s  POST /a\x1b]0;owned\x07\x9b2J\r\n\x7fb",
        r"     1.0s  GET /caf\xe9 \u202egnp.\U0001f600\x00",
        "2   1     4712  ready  1           5          0      1        2    -  1m 30s         0       -",
    ]
    assert all(" " <= char <= "~" or char == "\n" for char in table)


def test_what_ails_a_worker_stands_at_the_end_of_its_line():
    """A column that is there only when somebody has something."""
    workers = (
        WorkerInfo(1, 0, 0, 1, 4711, 1, "ready"),
        WorkerInfo(2, 1, 1, 1, 4712, 1, "suspect", note="GIL held"),
    )
    form = ps_form(Snapshot("app", ("http://a:1",), 1, 1, "running", 10, 11, 12, {}, workers))
    assert cluster_table(form).splitlines()[3:] == [
        "ID  SLOT  PID   STATE    GEN  REQUESTS  IN FLIGHT  CONNS  THREADS  RSS  UPTIME  RESTARTS  OLDEST  NOTE",
        "1   0     4711  ready    1           0          0      0        0    -    0.0s         0       -",
        "2   1     4712  suspect  1           0          0      0        0    -    0.0s         0       -  GIL held",
    ]
    assert [worker["note"] for worker in form["workers"]] == ["", "GIL held"]


def test_no_counters_is_said():
    """An empty table is not an empty line."""
    assert counters_table({}) == "no counters"


@pytest.mark.parametrize(
    ("span_s", "text"),
    [
        (0, "0.0s"),
        (59.9, "59.9s"),
        (60, "1m 0s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86400 * 9 + 4 * 3600, "9d 4h"),
    ],
)
def test_times_are_shown_with_two_units(span_s, text):
    """Short enough for a column, precise enough to act on."""
    assert _span(span_s) == text


def test_a_terminal_that_is_too_narrow():
    """Columns that matter least are left out, one after the other, until it fits; the most important ones stay."""
    workers = (WorkerInfo(1, 0, 0, 1, 4711, 1, "ready", 0, 5, 0, 1, 2, 90 << 20, 90.0, 0.0),)
    seen = ps_form(Snapshot("app", ("http://a:1",), 1, 1, "running", 10, 11, 12, {}, workers))
    heads = {width: cluster_table(seen, width).splitlines()[3].split() for width in (200, 90, 80, 40)}
    assert heads[200] == cluster_table(seen).splitlines()[3].split()
    assert set(heads[200]) - set(heads[90]) == {"RESTARTS"}
    assert set(heads[90]) - set(heads[80]) == {"THREADS"}
    assert heads[40] == ["ID", "SLOT", "PID", "STATE", "REQUESTS", "IN", "FLIGHT", "UPTIME"]
    assert max(map(len, cluster_table(seen, 80).splitlines())) <= 80


def test_a_slot_without_a_worker():
    """It has a line that says what it waits for, below those that have one."""
    seen = Snapshot("app", ("http://a:1",), 1, 1, "degraded", 10, 11, 12, {}, (), slots=(0, 1), vacant={1: "a pause"})
    assert cluster_table(ps_form(seen)).splitlines()[-1] == "slot 1 has no worker: a pause"


def test_an_event_is_one_line():
    """Time, kind, who, what; of a traceback what was done and the error; nothing reaches the terminal as it came."""
    worker = WorkerInfo(17, 2, 0, 3, 4711)
    line = event_line(Event(1, 1, "exit", worker, "left as it was told", 1.5))
    assert line[10:] == " " + line[11:19] + ".500  exit        worker[2] gen=3 id=17 pid=4711: left as it was told"
    text = "generation 2 is not taken:\nTraceback ...\n  RuntimeError: \x1b[31mfire\n"
    said = event_line(Event(1, 1, "error", None, text, 1.5))
    assert said.endswith(r"  error       generation 2 is not taken: ... RuntimeError: \x1b[31mfire")
    assert event_line(Event(1, 1, "running")).endswith(".000  running")
    assert event_form(Event(1, 2, "fork", worker))["worker"]["id"] == 17
    assert event_form(Event(1, 2, "running"))["worker"] is None

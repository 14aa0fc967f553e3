"""Lines of the log: their prefix, their length, and the same in JSON."""

import json
import logging
import sys

import pytest

from zcluster.unix.loglines import LINE_MAX_BYTES, event, printed, speaker

WHO = "worker[2] gen=3 id=17"


def record(text, *args, level=logging.ERROR, error=None):
    """An event as the standard library makes it."""
    exc_info = None
    if error is not None:
        try:
            raise error
        except Exception:
            exc_info = sys.exc_info()
    return logging.LogRecord("zcluster.worker", level, "", 0, text, args, exc_info)


def as_json(made, who=WHO):
    (line,) = event(made, who, 4711, "json")
    assert len(line) <= LINE_MAX_BYTES
    return json.loads(line)


@pytest.mark.parametrize(
    ("who", "names"),
    [
        (WHO, {"process": "worker", "slot": 2, "generation": 3, "id": 17}),
        ("zygote gen=1", {"process": "zygote", "generation": 1}),
        ("master", {"process": "master"}),
    ],
)
def test_json_has_what_the_prefix_has(who, names):
    """Time, level, logger, process, slot, generation, id, pid and message; what a process has not is not there."""
    seen = as_json(record("it %s", "failed"), who)
    assert seen.pop("time")[10] == "T"
    assert seen == {"level": "error", "logger": "zcluster.worker", **names, "pid": 4711, "message": "it failed"}


def test_json_is_one_line_with_its_traceback():
    """An exception is one field; text that is not UTF-8 is shown escaped."""
    seen = as_json(record("cannot read %s", "caf\udce9\n\0", error=ValueError("no")))
    assert seen["message"] == "cannot read caf\udce9\n\0"
    assert seen["exc"].startswith("Traceback")
    assert seen["exc"].endswith("ValueError: no")


@pytest.mark.parametrize("char", ["x", "\xe9", "\n", "\udce9", "\U0001f600", '"'])
@pytest.mark.parametrize("message", [10, 10_000])
def test_json_that_is_too_long_is_cut_and_says_so(char, message):
    """Still an object, still one write; of a traceback its end is kept, of a message its beginning."""
    seen = as_json(record("m" + char * message, error=ValueError(char * 10_000 + "the end")))
    assert seen["truncated"] is True
    assert seen["message"].startswith("m" + char * 10)
    assert message > 10 or seen["exc"].endswith("the end")


def test_lines_of_a_traceback_are_no_longer_than_one_write():
    """A line that is too long goes on in the next; no character is cut or left out."""
    lines = event(record("it failed", error=ValueError("\xa7" * 10_000 + " the end")), WHO, 1, "text")
    assert max(map(len, lines)) <= LINE_MAX_BYTES
    assert lines[-1].endswith(b"the end\n")
    assert b"".join(lines).decode().count("\xa7") == 10_000


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_was_printed_has_the_prefix_on_every_line(style):
    """Empty lines too; one that is too long is several, all but the last marked."""
    lines = printed([b"a", b"", b"\xff", b"x" * 10_000], WHO, 7, style, 0.0)
    assert max(map(len, lines)) <= LINE_MAX_BYTES
    assert {speaker(line.decode(errors="replace")).startswith("worker[2] ") for line in lines} == {True}
    assert len(lines) > 5
    assert [b" ..." in line for line in lines] == [False] * 3 + [True] * (len(lines) - 4) + [False]
    assert b"".join(lines).count(b"x") >= 10_000


def test_who_says_a_line():
    """The lines of all kinds of processes are told from those that go on with them."""
    (text,) = event(record("it %s", "failed"), WHO, 1, "text")
    assert speaker(text.decode()) == WHO
    (line,) = event(record("it"), "master", 1, "json")
    assert speaker(line.decode()) == "master "
    for other in ("Traceback (most recent call last):", '  File "a.py"', "{", '{"a": 1}', "[1] x pid=1: ", ""):
        assert speaker(other) is None

"""Slow requests: which of them a heartbeat names, and which of all a snapshot shows.

Invariant: what is told is bounded whatever clients ask for, in a beat and in a snapshot, and can be sent as UTF-8.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from zcluster.core.messages import SlowRequest

SLOW_AFTER_S: Final = 1.0  # younger ones are nobody's concern, and are over before a person has read the line
SLOW_MAX: Final = 8  # of one worker, the default of --threads: more of them tell nothing that these do not
METHOD_MAX_CHARS: Final = 20  # the longest registered one has 17
PATH_MAX_CHARS: Final = 200  # tells any route from any other
# Of the whole cluster: all of 64 workers, or the oldest of 2,048; some 120 KiB, as much as their other figures.
SNAPSHOT_MAX: Final = 512


def slow_requests(found: Iterable[tuple[str, str, float]]) -> tuple[SlowRequest, ...]:
    """Return what a beat says of these requests (method, path, age in seconds): the oldest ones, oldest first."""
    oldest = sorted(found, key=lambda request: -request[2])[:SLOW_MAX]
    return tuple(
        SlowRequest(_cut(method, METHOD_MAX_CHARS), _cut(_decoded(path), PATH_MAX_CHARS), round(age_s, 3))
        for method, path, age_s in oldest
    )


def slowest(by_worker: Mapping[int, tuple[SlowRequest, ...]]) -> dict[int, tuple[SlowRequest, ...]]:
    """Return the slow requests of a snapshot by worker id: all, or the oldest of the whole cluster when too many."""
    there = {id_: requests for id_, requests in by_worker.items() if requests}
    ages = sorted((request.age_s for requests in there.values() for request in requests), reverse=True)
    if len(ages) <= SNAPSHOT_MAX:
        return there
    youngest_s, room, shown = ages[SNAPSHOT_MAX - 1], SNAPSHOT_MAX, {}
    for id_, requests in there.items():
        older = tuple(request for request in requests if request.age_s >= youngest_s)[:room]
        room -= len(older)
        if older:
            shown[id_] = older
    return shown


def named(method: str, path: str) -> str:
    """Return a request in words that may stand in a log."""
    return f"{printable(_cut(method, METHOD_MAX_CHARS))} {printable(_cut(_decoded(path), PATH_MAX_CHARS))}"


def printable(text: str) -> str:
    """Return a client's words as any terminal may show them: what is no visible ASCII character is spelled out."""
    return "".join(char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text)


def _decoded(path: str) -> str:
    """Return what a PATH_INFO means: WSGI carries its UTF-8 as Latin-1. Others are left as they are."""
    try:
        return path.encode("latin-1").decode()
    except UnicodeError:
        return path


def _cut(text: str, most: int) -> str:
    """Shorten, and spell out lone surrogates: they come from bytes that are no UTF-8 and cannot be sent."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else text[: most - 3] + "..."

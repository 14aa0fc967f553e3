"""Text for people: what `ps`, `counters` and `events` print. Programs use --json.

Invariant: pure text from what is known; a column is as wide as its widest cell, numbers stand to the right. Nothing
that a client or an app has said reaches the terminal as it came.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from zcluster.core.messages import Event
from zcluster.core.slow import printable

_NUMERIC_FROM = 5  # of the columns below: counts stand to the right, names to the left
_COLUMNS = (
    *("ID", "SLOT", "PID", "STATE", "GEN"),
    *("REQUESTS", "IN FLIGHT", "CONNS", "THREADS", "RSS", "UPTIME", "RESTARTS", "OLDEST"),
)


# What a terminal that is too narrow goes without, the first one first: it is in --json, and in a wider one.
_DISPENSABLE = ("RESTARTS", "THREADS", "OLDEST", "CONNS", "GEN", "RSS")


def cluster_table(seen: Mapping[str, Any], width: int = 0) -> str:
    """Return the text of `ps` for a snapshot in the form of `ps --json`; `width` in characters, 0: no limit."""
    lines = [
        f"{seen['name']}  {seen['state']}  {'  '.join(seen['urls'])}",
        f"epoch {seen['epoch']}  generation {seen['generation']}  launcher {seen['launcher_pid']}  "
        f"master {seen['master_pid']}  zygote {seen['zygote_pid'] or '-'}",
    ]
    if seen["counters"]:
        lines += ["", counters_table(seen["counters"])]
    workers = sorted(seen["workers"], key=lambda worker: (worker["slot"], worker["id"]))
    rows = [
        (
            *(str(worker[key]) for key in ("id", "slot", "pid", "state", "generation")),
            *(f"{worker[key]:,}" for key in ("requests", "inflight", "connections", "threads")),
            _size(worker["rss_bytes"]),
            _span(worker["uptime_s"]),
            f"{worker['restarts']:,}",
            _span(worker["oldest_request_s"]) if worker["inflight"] else "-",
        )
        for worker in workers
    ]
    head, *table = _fitting([_COLUMNS, *rows], width)
    lines += ["", f"{head}  NOTE" if any(worker["note"] for worker in workers) else head]
    for worker, line in zip(workers, table, strict=True):
        lines += [f"{line}  {worker['note']}".rstrip(), *_slow_lines(worker["slow"])]
    lines += [f"slot {slot} has no worker: {why}" for slot, why in seen["vacant"].items()]
    if seen["refused"]:
        often = sorted(seen["refused"].items(), key=lambda one: (-one[1], one[0]))
        lines += ["", "refused: " + ", ".join(f"{number:,} {reason}" for reason, number in often)]
    return "\n".join(lines)


def counters_table(totals: Mapping[str, int]) -> str:
    """Return one line per counter, in the order of names."""
    rows = [(name, f"{total:,}") for name, total in sorted(totals.items())]
    return "\n".join(_aligned(rows, numeric_from=1)) if rows else "no counters"


def _aligned(rows: Sequence[Sequence[str]], numeric_from: int = _NUMERIC_FROM) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number >= numeric_from else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _fitting(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return the table without as many columns as make it fit, if that can be."""
    kept = list(range(len(_COLUMNS)))
    for name in ("", *_DISPENSABLE):
        kept = [number for number in kept if _COLUMNS[number] != name]
        lines = _aligned([[row[number] for number in kept] for row in rows], sum(n < _NUMERIC_FROM for n in kept))
        if not width or max(map(len, lines)) <= width:
            break
    return lines


def _slow_lines(requests: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a worker is busy with, one request per line, to stand below the worker's own."""
    ages = [_span(request["age_s"]) for request in requests]
    width = max(map(len, ages), default=0)
    return [
        f"    {age.rjust(width)}  {printable(request['method'])} {printable(request['path'])}"
        for age, request in zip(ages, requests, strict=True)
    ]


def _size(size_bytes: int) -> str:
    """Return a size in MiB, which is what workers are measured in."""
    return f"{size_bytes / (1 << 20):,.0f} MiB" if size_bytes else "-"


def _span(span_s: float) -> str:
    """Return a time with its two largest units: "1.2s", "3m 5s", "2h 0m", "9d 4h"."""
    if span_s < 60:
        return f"{span_s:.1f}s"
    minutes, seconds = divmod(int(span_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {seconds}s"


def event_line(event: Event) -> str:
    """Return an event as `events` prints it: time, kind, who, and what there is to say; always one line."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_s))
    worker = event.worker
    who = (
        f"worker[{worker.slot}] gen={worker.generation} id={worker.id} pid={worker.pid}" if worker is not None else ""
    )
    first, *rest = event.text.splitlines() or [""]
    text = f"{first} ... {rest[-1].strip()}" if rest else first  # of a traceback: what was done, and the error
    said = ": ".join(filter(None, (who, printable(text))))
    return f"{at}.{int(event.time_s * 1000) % 1000:03}  {event.kind:<10}  {said}".rstrip()


def event_form(event: Event) -> dict[str, Any]:
    """Return an event as `events --json` prints it."""
    return {**msgspec.structs.asdict(event), "worker": event.worker and msgspec.structs.asdict(event.worker)}

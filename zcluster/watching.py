"""Looking at a running cluster, once or for as long as one likes: `zcluster ps`, `counters`, `events`.

Invariant: what is printed for ever ends quietly: with 130 at Ctrl-C, with 0 when the cluster has ended, and as soon
as nobody reads it any more. A terminal is drawn over; anything else gets a line (or a table) per change.
"""

import json
import queue
import select
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from zcluster.core.joining import Joined, Missed
from zcluster.core.messages import Event, Snapshot
from zcluster.errors import BusError, SpawnError
from zcluster.follower import Follower
from zcluster.launched import Launched
from zcluster.parameters import ANSWER_TIMEOUT_S, SETTINGS, as_json, say, which_to_read
from zcluster.tables import cluster_table, counters_table, event_form, event_line

INTERRUPTED: Final = 130  # 128 + SIGINT, as a shell has it
LOOK_S: Final = 0.5  # how long it takes to notice that nobody reads any more
HEARTBEAT_S: Final = 1.0
_CLEAR: Final = "\x1b[H\x1b[J"  # home, and erase what is below: less flicker than erasing all first

_watch = click.option(
    "--watch", "watch_s", type=click.FloatRange(0.05, 3600), is_flag=False, flag_value=1.0, metavar="[SECONDS]",
    help="Go on, and look so often; a terminal is drawn over, anything else is told of changes only.",
)  # fmt: skip


@click.command("ps", context_settings=SETTINGS)
@which_to_read
@as_json
@_watch
def ps_command(name: str, run_dir: str, as_json: bool, watch_s: float | None) -> int:
    """Show a running cluster and its workers."""

    def shown(seen: dict[str, Any]) -> str:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        return json.dumps(seen) if as_json else cluster_table(seen, width)

    return _show(name, run_dir, shown, watch_s)


@click.command("counters", context_settings=SETTINGS)
@which_to_read
@as_json
@_watch
def counters_command(name: str, run_dir: str, as_json: bool, watch_s: float | None) -> int:
    """Show the totals of a running cluster's counters."""

    def shown(seen: dict[str, Any]) -> str:
        return json.dumps(seen["counters"]) if as_json else counters_table(seen["counters"])

    return _show(name, run_dir, shown, watch_s)


def _show(name: str, run_dir: str, shown: Callable[[dict[str, Any]], str], watch_s: float | None) -> int:
    """Print what a snapshot looks like, once or at every change."""
    from zcluster.cluster import Cluster

    with _quietly(), Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        last = None
        while True:
            try:
                text = shown(cluster.snapshot())
            except BusError:
                if last is not None and cluster._has_ended():
                    return 0
                raise
            if watch_s is None:
                say(text)
            elif sys.stdout.isatty():
                say(_CLEAR + _cut(text))
            elif text != last:
                say(text)
            last = text
            if watch_s is None or not _is_worth_it(watch_s, cluster._has_ended):
                return 0
    return INTERRUPTED


def _cut(text: str) -> str:
    """Return as much as the terminal has room for: what scrolls cannot be drawn over."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in text.splitlines()]
    if len(lines) >= size.lines:
        lines[max(0, size.lines - 2) :] = [f"... and {len(lines) - size.lines + 2} lines more"]
    return "\n".join(lines)


@contextmanager
def _quietly() -> Iterator[None]:
    """Ctrl-C is how one stops watching: no complaint."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            say()  # the shell's prompt does not stand behind ^C


def _is_worth_it(wait_s: float, is_over: Callable[[], bool]) -> bool:
    """Wait; false as soon as it is over, or nobody reads our output."""
    end = time.monotonic() + wait_s
    while (left_s := end - time.monotonic()) > 0:
        if is_over() or not _is_read(min(left_s, LOOK_S)):
            return False
    return not is_over()


def _is_read(wait_s: float = 0.0) -> bool:
    """Whether our output has a reader, and still has one after so many seconds."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # errors only: the reader of a pipe is gone
    return not poller.poll(wait_s * 1000)


# ---- events --------------------------------------------------------------------------------------------------------
@click.command("events", context_settings=SETTINGS)
@which_to_read
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on, until the cluster ends.")
@as_json
def events_command(name: str, run_dir: str, follow: bool, as_json: bool) -> int:
    """Show what has happened to the cluster and its workers since this master began, the last 1,000 events."""
    with _quietly():
        happened = _Happened(name, run_dir)
        try:
            for event in happened.until_now():
                _print(event, as_json)
            while follow and not happened.has_ended:
                for event in happened.next_ones():
                    _print(event, as_json)
                if not _is_read():
                    break
        finally:
            happened.close()
        return 0
    return INTERRUPTED


def _print(event: Event, as_json: bool) -> None:
    say(json.dumps(event_form(event)) if as_json else event_line(event))


class _Happened:
    """The events of a cluster, from its own memory and then as they are told, each once and in order."""

    def __init__(self, name: str, run_dir: str) -> None:
        self._batches: queue.SimpleQueue[Sequence[object] | None] = queue.SimpleQueue()
        self._launched = Launched.find(name, Path(run_dir) if run_dir else None)
        self.has_ended = False
        self._epoch = 0  # of the last master heard
        self._follower = Follower(
            self._launched.run_dir, self._launched.fd, HEARTBEAT_S, self._batches.put, lambda: self._batches.put(None)
        )
        self._follower.start()

    def until_now(self) -> list[Event]:
        """What the master remembers; SpawnError when it does not answer."""
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while (left_s := end - time.monotonic()) > 0 and not self.has_ended:
            found = self.next_ones(left_s)
            if self._epoch:
                return found
        name = Path(self._launched.run_dir).parent.name
        if self.has_ended:
            raise SpawnError(f"cluster {name!r} has ended while we looked at it")
        raise SpawnError(
            f"the master of cluster {name!r} did not answer within {ANSWER_TIMEOUT_S:g} s: it is stopped, "
            f"overloaded, or being replaced. Its launcher is process {self._launched.pid}"
        )

    def next_ones(self, timeout_s: float = LOOK_S) -> list[Event]:
        """What has happened since; empty when nothing has within the time."""
        try:
            batch = self._batches.get(timeout=timeout_s)
        except queue.Empty:
            return []
        if batch is None:
            self.has_ended = True
            return []
        found: list[Event] = []
        for item in batch:
            match item:
                case Joined(snapshot=snapshot, again=again):
                    found += self._joined(snapshot, again=again)
                case Event():
                    found.append(item)
                case Missed(first=first, last=last):
                    found.append(_ours(self._epoch, "missed", f"{last - first + 1} events were missed"))
        return found

    def _joined(self, snapshot: Snapshot, *, again: bool) -> list[Event]:
        before, self._epoch = self._epoch, snapshot.epoch
        if not again:
            return list(snapshot.recent)
        if snapshot.epoch == before:
            return []  # the same master, after a break of the link: what was missed follows
        text = f"a new one, process {snapshot.master_pid}, has taken over: epoch {snapshot.epoch}"
        return [_ours(snapshot.epoch, "master", text)]

    def close(self) -> None:
        """Let go of the cluster."""
        self._follower.close()
        self._launched.close()


def _ours(epoch: int, kind: str, text: str) -> Event:
    """An event that no master has told, but we have seen."""
    return Event(epoch, 0, kind, None, text, time.time())

"""How many workers there are to be: which slots are open, and who may change that.

Invariant: whatever is opened or closed is told to the launcher before the one who asked is answered, so a new master
goes on with what was promised.

A slot is a number from 0 up. More workers: the lowest closed slots are opened; fewer: the highest are closed. What an
open slot lacks, or a closed one still has, is put right when the fleet settles.
"""

from collections.abc import Iterable, Mapping

from zcluster.core import fleet_events as f
from zcluster.core.fleet_acts import Acts
from zcluster.core.fleet_roster import PER_SLOT_MAX
from zcluster.core.fleet_worker import ASKED, HOLDS_SLOT

# All environments together travel to the launcher in one control message of at most 128 KiB (unix/channel).
ENV_MAX_BYTES = 64 << 10
ENTRY_BYTES = 8  # what an entry costs beside its two texts


class Sizes(Acts):
    """The questions that change the size."""

    def sized(self, slots: Iterable[int], env: Mapping[int, Mapping[str, str]]) -> None:
        """The master before had these slots open."""
        self.wanted = {slot: env.get(slot, {}) for slot in sorted(slots)}

    def scale(self, event: f.Scale, now: float) -> None:
        """Have so many slots open."""
        number = len(self.wanted) + event.by if event.to is None else event.to
        error = self._objection(number, {})
        if not error and number < event.least:
            error = f"there is {event.least} worker left; `zcluster scale 0` ends the last one, too"
        if error:
            if event.asker[:2] == f.LAUNCHER:  # an operator who sends a signal has nothing but the log
                self.say("warning", f"not scaled: {error}")
            self.out.append(f.Reply(event.asker, error))
            return
        before = len(self.wanted)
        if number != before:
            self.say("info", f"scaled {_change(before, number)}")
        while len(self.wanted) > number:
            self._close(max(self.wanted), now)
        while len(self.wanted) < number:
            self._open({}, now)
        self._resized(before)
        self.out.append(f.Reply(event.asker, body={"slots": sorted(self.wanted)}))

    def open(self, event: f.Open, now: float) -> None:
        """Open one slot more."""
        error = self._objection(len(self.wanted) + 1, event.env)
        if error:
            self.out.append(f.Reply(event.asker, error))
            return
        slot = self._open(event.env, now)
        self._resized(len(self.wanted) - 1)
        # Whoever asked knows its worker by the id: one that was in this slot before has a lower one.
        self.out.append(f.Reply(event.asker, body={"slot": slot, "id": self.roster.next_id}))

    def close(self, event: f.Close, now: float) -> None:
        """Close the slot of a worker, or all. A worker that leaves already takes nothing with it."""
        before = len(self.wanted)
        if event.worker is None:
            for slot in list(self.wanted):
                self._close(slot, now)
        else:
            worker = self.roster.workers.get(event.worker)
            if worker is None:
                self.out.append(f.Reply(event.asker, f"there is no worker {event.worker} (any more)"))
                return
            if worker.state in HOLDS_SLOT:
                self._close(worker.slot, now)
        self._resized(before)
        self.out.append(f.Reply(event.asker))

    def _close(self, index: int, now: float) -> None:
        """Those who serve there, or start, leave when the fleet settles; whoever was only asked for is not ours."""
        self.wanted.pop(index, None)
        for worker in self.roster:
            if worker.slot == index and worker.state == ASKED:
                self.lose(worker, now)  # should the slot be opened again, its environment is another one

    def _open(self, env: Mapping[str, str], now: float) -> int:
        index = next(number for number in range(len(self.wanted) + 1) if number not in self.wanted)
        self.wanted[index] = env
        slot = self.slot(index)
        slot.ready()
        slot.healthy()  # what happened before it was closed is forgotten
        slot.retry_at = now
        return index

    def _objection(self, number: int, env: Mapping[str, str]) -> str:
        """Why there cannot be so many workers, one of them new with this environment; empty when there can."""
        if number < 0:
            return f"there are {len(self.wanted)} workers wanted now; {number} are less than none"
        lanes = PER_SLOT_MAX * number
        if number > len(self.wanted) and lanes > self.settings.lanes:
            return (
                f"{number} workers need {lanes} lanes (a worker and its replacement hold one each), but this cluster "
                f"was started with {self.settings.lanes}; start it with more --lanes, or ask for fewer workers"
            )
        envs = [*self.wanted.values(), env]
        size = sum(len(name.encode()) + len(value.encode()) + ENTRY_BYTES for e in envs for name, value in e.items())
        if env and size > ENV_MAX_BYTES:
            return (
                f"the environments of all workers together may have {ENV_MAX_BYTES} bytes, and would have {size}; "
                "leave large data in a file and give its name"
            )
        return ""

    def _resized(self, before: int) -> None:
        self.wanted = dict(sorted(self.wanted.items()))
        self.out.append(f.Resize(tuple(self.wanted), {slot: env for slot, env in self.wanted.items() if env}))
        if len(self.wanted) != before:
            self.out.append(f.Announce("scale", None, _change(before, len(self.wanted))))


def _change(before: int, after: int) -> str:
    return f"from {before} to {after} {'worker' if after == 1 else 'workers'}"

"""What a handle, and the workers it knows, have the master do: fork, scale, disconnect, reload.

Invariant: an order is asked of the master, which decides; what came of it is read from the news and never assumed. So
several handles may order at once, and a master that dies in between changes nothing here.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zcluster.callbacks import Callback
from zcluster.core.mail import worker_name
from zcluster.core.messages import Snapshot
from zcluster.errors import BusError, ClusterError, Refusal, ReloadFailed
from zcluster.follower import Follower
from zcluster.news import News
from zcluster.roster import STAGES, Worker

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Delivery, Mailbox

log = logging.getLogger("zcluster.handle")

ANSWER_TIMEOUT_S: Final = 5.0  # a master that lives answers in milliseconds
ORDER_TIMEOUT_S: Final = 30.0  # the next one does, if it dies: the pause before a master's start grows to 5 s
# A worker that reads takes what was sent to it in milliseconds; one that does not is disconnected all the same.
FLUSH_TIMEOUT_S: Final = 5.0
REPLACED_TIMEOUT_S: Final = 60.0  # the pause after crashes grows to 30 s
SUPERSEDED_S: Final = 1.0  # how often a waiting `scale` asks whether somebody has scaled otherwise since

_CHANGE: Final = re.compile(r"[+-][0-9]{1,9}")
_NAME: Final = re.compile(r"[^=\0]+")


class Orders:
    """Any thread may call any method. `has_ended` says whether the cluster has, or the handle was closed."""

    def __init__(
        self, news: News, follower: Follower, mailbox: "Mailbox | None", has_ended: Callable[[], bool]
    ) -> None:
        self._news, self._follower, self._mailbox, self._has_ended = news, follower, mailbox, has_ended

    # ---- the cluster -----------------------------------------------------------------------------------------------
    def fork(self, env: Mapping[str, str], timeout_s: float) -> Worker:
        """Open a slot and return the worker that is forked for it, as soon as its fork has been heard of."""
        roster = self._news.roster
        body = self._follower.ask("fork", {"env": dict(env)}, ORDER_TIMEOUT_S)
        place = msgspec.msgpack.decode(body, type=dict[str, int])
        slot, least_id = place["slot"], place["id"]
        self._await(
            lambda: roster.latest(slot, least_id - 1),
            f"the fork of a worker in slot {slot}",
            timeout_s,
            superseded=lambda: not self._is_wanted(slot),
        )
        worker = roster.latest(slot, least_id - 1)
        if worker is None:
            raise ClusterError(f"slot {slot} was closed again before a worker was forked for it")
        return worker

    def scale(self, size: int | str, timeout_s: float, *, wait: bool) -> int:
        """Change how many workers there are; returns how many are wanted now."""
        args = scaling(size)
        wanted = self._scale(args)
        if wait:
            self._await(
                lambda: self._fits(wanted),
                f"slots {', '.join(map(str, wanted)) or 'none'} to be filled and all others empty",
                timeout_s,
                superseded=lambda: self._is_superseded(wanted),
            )
        return len(wanted)

    def _scale(self, args: Mapping[str, int]) -> list[int]:
        body = self._follower.ask("scale", args, ORDER_TIMEOUT_S)
        return msgspec.msgpack.decode(body, type=dict[str, list[int]])["slots"]

    def replacement(self, dead: Worker) -> Worker | None:
        """Wait for the worker that takes the place of a dead one; None when nobody will."""
        roster = self._news.roster
        if dead.was_dismissed or dead.slot not in self._scale({"by": 0}):
            return None
        self._await(lambda: roster.latest(dead.slot, dead.id), f"who replaces worker {dead.id}", REPLACED_TIMEOUT_S)
        return roster.latest(dead.slot, dead.id)

    def await_nobody(self) -> None:
        """Wait until there are no workers and none are wanted, or the cluster has ended."""
        roster = self._news.roster
        while not self._has_ended():
            self._news.wait_until(lambda: not roster.workers or self._has_ended(), None)
            try:
                if not self._scale({"by": 0}) and not roster.workers:
                    return
            except BusError:
                pass  # the master is being replaced, or the cluster has ended
            self._news.wait_until(self._has_ended, SUPERSEDED_S)

    def _is_wanted(self, slot: int) -> bool:
        try:
            return slot in self._scale({"by": 0})
        except BusError:
            return True  # the master is being replaced: ask the next one

    def _is_superseded(self, wanted: list[int]) -> bool:
        try:
            return self._scale({"by": 0}) != wanted
        except BusError:
            return False  # the master is being replaced: ask the next one

    def _fits(self, wanted: list[int]) -> bool:
        workers = self._news.roster.workers.values()
        serving = {w.slot for w in workers if w.has_reached("listening") and not w.has_reached("disconnect")}
        return serving == set(wanted) and all(worker.slot in serving for worker in workers)

    def disconnect_all(self, then: Callable[[BusError | None], None]) -> None:
        """Close all slots; `then` is called once, when all who are there now are gone, or with why not.

        It is called by the follower's thread, under the lock of the news, so it must not wait.
        """
        refused: list[BusError] = []

        def told(answer: msgspec.Raw | BusError) -> None:
            if isinstance(answer, BusError):
                refused.append(answer)

        def seen(answer: msgspec.Raw | BusError) -> None:
            if isinstance(answer, BusError) or refused:
                then(refused[0] if refused else answer if isinstance(answer, BusError) else None)
                return
            self._news.adopt(msgspec.msgpack.decode(answer, type=Snapshot))
            there = frozenset(self._news.roster.workers)
            for worker in self._news.roster.workers.values():
                worker.was_dismissed = True
            self._news.when(lambda: there.isdisjoint(self._news.roster.workers), lambda: then(None))

        def order() -> None:
            # One right behind the other: whoever is in the snapshot was there when the slots were closed.
            self._follower.ask_then("disconnect", {}, told)
            self._follower.ask_then("snapshot", None, seen)

        self._when_received("", order)

    def reload(self, timeout_s: float | None) -> int:
        """Have the code loaded anew and all workers replaced; returns the new generation."""
        token = os.urandom(8).hex()
        try:
            body = self._follower.ask("reload", {"token": token}, timeout_s)
        except Refusal as refusal:
            raise ReloadFailed(refusal.reason) from None
        generation = msgspec.msgpack.decode(body, type=dict[str, int])["generation"]
        workers = self._news.roster
        self._await(
            lambda: all(worker.generation >= generation for worker in workers.workers.values()),
            "the workers of the generation before to finish",
            float("inf") if timeout_s is None else timeout_s,
        )
        return generation

    def begin_reload(self) -> None:
        """Order the same and return when the order is taken; what came of it is told by the news."""
        if why := self._begin("reload", {"token": os.urandom(8).hex()}):
            raise ReloadFailed(why)

    def restart(self, slot: int, timeout_s: float | None) -> int:
        """Have the worker of a slot replaced, start-first; returns the new one's id when the old one is gone."""
        body = self._follower.ask("restart", self._one_in(slot), timeout_s)
        id_ = msgspec.msgpack.decode(body, type=dict[str, int])["worker"]
        self._await(
            lambda: all(worker.id >= id_ for worker in self._news.roster.workers.values() if worker.slot == slot),
            f"the worker before worker {id_} in slot {slot} to finish",
            float("inf") if timeout_s is None else timeout_s,
        )
        return id_

    def begin_restart(self, slot: int) -> None:
        """Order the same and return when the order is taken."""
        if why := self._begin("restart", self._one_in(slot)):
            raise Refusal("restart", why)

    def kill(self, slot: int, number: int) -> tuple[int, int]:
        """Have the worker of a slot sent a signal; returns its id and pid."""
        body = self._follower.ask("kill", {**self._one_in(slot), "signal": number}, ORDER_TIMEOUT_S)
        told = msgspec.msgpack.decode(body, type=dict[str, int])
        return told["worker"], told["pid"]

    def _one_in(self, slot: int) -> dict[str, int]:
        """A slot as the master is asked for it: with the worker that is meant, so nothing happens to the next one."""
        there = [worker for worker in self._news.roster.workers.values() if worker.slot == slot]
        meant = max(
            there, key=lambda w: (not w.has_reached("disconnect"), w.has_reached("listening"), -w.id), default=None
        )
        return {"slot": slot} if meant is None else {"slot": slot, "worker": meant.id}

    def _begin(self, verb: str, args: Mapping[str, object]) -> str:
        """Order what is answered at its end; returns when the order is taken: "", or why it was refused at once."""
        refused: list[str] = []
        is_taken = False

        def then(answer: msgspec.Raw | BusError) -> None:
            if isinstance(answer, BusError):
                why = answer.reason if isinstance(answer, Refusal) else str(answer)
                refused.append(why)
                if is_taken and isinstance(answer, Refusal):  # else this handle was closed, or the cluster ended
                    log.error("the %s has failed: %s", verb, why)

        self._follower.ask_then(verb, args, then)
        # Questions are taken in order, and this one is answered at its end: when the second one is answered, the
        # first is in the master's hands.
        try:
            self._scale({"by": 0})
        except Refusal as refusal:
            return refusal.reason
        is_taken = True
        return refused[0] if refused else ""

    # ---- one worker: what `roster.Owner` asks for ------------------------------------------------------------------
    def listen_to(self, worker: Worker, event: str, fn: Callback) -> None:
        """Call a function at an event of this worker."""
        self._news.on_worker(worker, event, fn)

    def send_to(self, worker: Worker, payload: Any) -> "Delivery":
        """Send it a message."""
        if self._mailbox is None:
            raise ClusterError("this handle was attached without messages; attach another one to send")
        if worker.is_dead():
            return self._mailbox.failed(f"worker {worker.id} has ended: {worker.reason or 'its exit was heard of'}")
        return self._mailbox.send(worker_name(worker.id), payload)

    def send_to_all(self, payload: Any) -> "dict[int, Delivery]":
        """Send a message to each that is connected."""
        sent = {}
        for worker in self._news.roster.workers.values():
            if worker.is_connected():
                sent[worker.id] = self.send_to(worker, payload)
        return sent

    def dismiss(self, worker: Worker) -> None:
        """Have it receive what was sent to it, then have its slot closed."""
        worker.was_dismissed = True
        if worker.has_reached("disconnect"):
            return

        def then(answer: msgspec.Raw | BusError) -> None:
            if isinstance(answer, BusError):
                log.info("worker %d was to be disconnected: %s", worker.id, answer)  # it may have died meanwhile

        self._when_received(
            worker_name(worker.id), lambda: self._follower.ask_then("disconnect", {"worker": worker.id}, then)
        )

    def await_worker(self, worker: Worker, what: str | Callable[[], object], timeout_s: float) -> None:
        """Wait until an event of its life has happened, or for a condition."""
        if isinstance(what, str):
            if what not in STAGES:
                raise ClusterError(f"only {', '.join(STAGES)} of a worker can be waited for, not {what!r}")
            name = what
            self._await(
                lambda: worker.has_reached(name),
                f"{what!r} of worker {worker.id}",
                timeout_s,
                superseded=worker.is_dead,
            )
            if not worker.has_reached(name):
                raise ClusterError(f"waited for {what!r} of worker {worker.id}, but it has ended: {worker.reason}")
        else:
            self._await(what, getattr(what, "__qualname__", repr(what)), timeout_s)

    # ---- waiting ---------------------------------------------------------------------------------------------------
    def _when_received(self, to: str, then: Callable[[], object]) -> None:
        """Go on when what was sent (to this name, or to all) has been received."""
        if self._mailbox is None:
            then()
            return
        flushed = self._mailbox.flush(to)
        if flushed.done():
            then()
        else:
            self._follower.when(flushed.done, FLUSH_TIMEOUT_S, then)

    def _await(
        self,
        condition: Callable[[], object],
        description: str,
        timeout_s: float,
        *,
        superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait for a condition on the news; `superseded` says, now and then, that it need not come true any more."""
        left_s = timeout_s
        while not self._news.wait_until(lambda: condition() or self._has_ended(), min(left_s, SUPERSEDED_S)):
            left_s -= SUPERSEDED_S
            if superseded():
                return
            if left_s <= 0:
                raise ClusterError(f"waited for {description}, but {timeout_s:g} s are over")
        if self._has_ended() and not condition():
            raise ClusterError(f"waited for {description}, but the cluster has ended")


def scaling(size: int | str) -> dict[str, int]:
    """Return the arguments of `scale`: a number of workers, or a change such as "+1" or "-2"."""
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return {"to": size}
    if isinstance(size, str) and _CHANGE.fullmatch(size):
        return {"by": int(size)}
    raise ClusterError(f"scale to {size!r:.80}? Give a number of workers, or a change such as '+1' or '-1'")


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of what workers are to have in their environment; raises `ClusterError` for what cannot be."""
    for name, value in env.items():
        if not (isinstance(name, str) and isinstance(value, str) and _NAME.fullmatch(name) and "\0" not in value):
            raise ClusterError(
                f"env has {name!r:.80}: {value!r:.80}; both are strings without NUL, the name without '='"
            )
    return dict(env)

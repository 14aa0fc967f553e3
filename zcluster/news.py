"""What happens to a cluster, told to those who listen (`on`), to those who wait (`wait_for`), and nobody else.

Theory of operation. The follower's thread brings batches of what the link delivered, and mail; the roster says what
has happened, and for each happening the functions registered at that moment are put in line: the worker's own first,
then the cluster's. All of one handle's callbacks, messages among them, stand in that one line, so each sees the
others in the order in which things happened.

Invariant: of one worker a callback hears fork, online, (messages), disconnect, (messages), exit, in this order: mail
that overtakes its worker's birth waits for it, mail that comes after the exit is dropped and counted.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from zcluster.callbacks import Callback, Callbacks, Letter, Listener, call
from zcluster.core.mail import worker_id
from zcluster.core.messages import Snapshot
from zcluster.errors import ClusterError, PeerGone
from zcluster.roster import STAGES, Happening, Owner, Roster, Worker

log = logging.getLogger("zcluster.handle")

EVENTS: Final = ("setup", *STAGES, "message", "error", "reload")
WORKER_EVENTS: Final = (*STAGES, "message", "error")
LOOK_S: Final = 0.1  # a condition that somebody waits for may depend on more than our news: look at it again
# Mail kept for a program that has not registered a function yet: what a few workers say while the program begins.
# Both bounds leave the mailbox, which counts them too, most of its room for what is read.
KEPT_MAX: Final = 1000
KEPT_MAX_BYTES: Final = 16 << 20
EARLY_MAX: Final = 1000  # mail of workers whose birth has not been heard of: milliseconds' worth


class News:
    """One handle's; any thread may call any method but `take`, `mail` and `end`, which are the follower's."""

    def __init__(self, owner: Callable[[], Owner]) -> None:
        self.roster = Roster(owner)
        self.callbacks = Callbacks("zcluster-callbacks")
        self.settings: Mapping[str, Any] = {}  # told by the next `setup`
        self.replays = False  # whether who registers late is told of the workers that are there
        self.keeps_mail = True  # until the first function for messages is registered
        self.dropped: Counter[str] = Counter()  # messages, by reason
        self.changed = threading.Condition()  # guards all of this, and the order of callbacks
        self.is_set_up = False
        self._functions: dict[str, list[Listener]] = {event: [] for event in EVENTS}
        self._of_worker: dict[tuple[int, str], list[Listener]] = {}
        self._told: dict[int, set[str]] = {}  # by worker: the stages whose callbacks have begun
        self._batches = 0  # of news, the end included
        self._happened: dict[str, tuple[int, Worker | None]] = {}  # event -> how often, and whose it was last
        self._watches: list[tuple[Callable[[], bool], Callable[[], None]]] = []
        self._kept: deque[tuple[Worker | None, Letter]] = deque()
        self._kept_bytes = 0
        self._early: deque[tuple[int, Letter]] = deque()

    def renewed(self, owner: Callable[[], Owner]) -> "News":
        """The same listeners and settings for another attempt, after one of which nothing is left."""
        news = News(owner)
        news._functions, news.settings = self._functions, self.settings
        news.replays, news.keeps_mail, news.dropped = self.replays, self.keeps_mail, self.dropped
        return news

    # ---- listening -------------------------------------------------------------------------------------------------
    def on(self, event: str, fn: Callback) -> None:
        """Call a function at each such event from now on."""
        if event not in self._functions:
            raise ClusterError(f"there is no event {event!r}; events are {', '.join(EVENTS)}")
        listener = Listener(fn)
        with self.changed:
            self._functions[event].append(listener)
            if event == "message":
                self.keeps_mail = False
                self._read_kept(None, listener)
            elif self.replays and event == "setup" and self.is_set_up:
                self.callbacks.put(listener, self.settings)
            elif self.replays and STAGES.get(event, 9) <= STAGES["listening"]:
                for worker in self.roster.workers.values():
                    if worker.has_reached(event):
                        self.callbacks.put(listener, worker, *_details(Happening(event, worker)))

    def on_worker(self, worker: Worker, event: str, fn: Callback) -> None:
        """Call a function at an event of this worker; at once when it has happened for good."""
        if event not in WORKER_EVENTS:
            raise ClusterError(f"a worker has no event {event!r}; its events are {', '.join(WORKER_EVENTS)}")
        listener = Listener(fn)
        with self.changed:
            told = self._told.get(worker.id)
            is_told = worker.is_dead() and worker.has_reached(event) if told is None else event in told
            if event in STAGES and is_told:
                self.callbacks.put(listener, *_details(Happening(event, worker)))
            elif told is not None or not worker.is_dead():
                self._of_worker.setdefault((worker.id, event), []).append(listener)
            if event == "message":
                self._read_kept(worker, listener)

    def set_up(self, settings: Mapping[str, Any]) -> None:
        """The cluster's settings are these now: tell whoever listens to `setup`."""
        with self.changed:
            self.settings = settings
            self._spread([Happening("setup")])

    # ---- waiting ---------------------------------------------------------------------------------------------------
    def count(self, event: str) -> int:
        """How often an event has happened."""
        return self._happened.get(event, (0, None))[0]

    def last(self, event: str) -> Worker | None:
        """Whose it was the last time."""
        return self._happened[event][1]

    def wait_until(self, condition: Callable[[], object], timeout_s: float | None) -> bool:
        """Evaluate a condition at all news, without holding our lock: it may be the user's, and ask us anything."""
        end = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while True:
            with self.changed:
                seen = self._batches
            if condition():
                return True
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            with self.changed:
                self.changed.wait_for(lambda: self._batches != seen, min(left_s, LOOK_S))  # noqa: B023

    def when(self, condition: Callable[[], bool], then: Callable[[], None]) -> None:
        """Call `then` once, as soon as a condition on the roster holds: under the lock, so it must not wait."""
        with self.changed:
            self._watches.append((condition, then))
            self._look()

    def tell(self) -> None:
        """Wake those who wait for news."""
        with self.changed:
            self._batches += 1
            self.changed.notify_all()
            self._look()

    def _look(self) -> None:
        watches, self._watches = self._watches, []
        for condition, then in watches:
            if condition():
                then()
            else:
                self._watches.append((condition, then))

    # ---- what the follower brings ----------------------------------------------------------------------------------
    def take(self, batch: Sequence[object]) -> None:
        """What the link has delivered."""
        with self.changed:
            self._spread(self.roster.take(batch))

    def adopt(self, snapshot: Snapshot) -> None:
        """A snapshot that was asked for: whoever is in it is known from here on."""
        with self.changed:
            self._spread(self.roster.adopt(snapshot))

    def end(self, *, has_ended: bool) -> None:
        """Nothing more will be heard: because the cluster has ended, or because the handle was closed."""
        with self.changed:
            self._spread(self.roster.end() if has_ended else [])

    def mail(self, sender: str, size_bytes: int, decode: Callable[[], Any]) -> None:
        """A message has come."""
        letter = Letter(decode, size_bytes)
        id_ = worker_id(sender)
        with self.changed:
            worker = self.roster.find(id_) if id_ is not None else None
            if id_ is None or (worker is not None and worker.has_reached("online")):
                self._hand_over(worker, letter)
            else:
                self._early.append((id_, letter))
                if len(self._early) > EARLY_MAX:
                    self._drop(self._early.popleft()[1], "messages of unknown workers")
            self.tell()

    def call(self, fn: Callback, sender: str, payload: Any) -> Any:
        """Call a function for a request, in line with all callbacks, and return its result.

        For a thread that may wait. Raises `ClusterError` for what it raises, `PeerGone` when the handle is closed.
        """
        id_ = worker_id(sender)
        worker = self.roster.find(id_) if id_ is not None else None
        outcome: list[Any] = []
        listener, done = Listener(fn), threading.Event()

        def run() -> None:
            try:
                outcome.append(listener(worker, payload))
            except (Exception, SystemExit) as error:  # the user's code; whoever called us logs it as an error
                log.debug("a function that should have replied raised %r", error)
                outcome.append(error)
            finally:
                done.set()

        if not self.callbacks.put(run):
            raise PeerGone("the handle is closed, or too many callbacks wait already")
        while not done.wait(LOOK_S):
            if self.callbacks.is_over():
                raise PeerGone("the handle was closed before it replied")
        if isinstance(outcome[0], BaseException):
            raise ClusterError(f"{type(outcome[0]).__name__}: {outcome[0]}") from outcome[0]
        return outcome[0]

    def _spread(self, happened: Sequence[Happening]) -> None:
        for happening in happened:
            kind, worker = happening.kind, happening.worker
            self._happened[kind] = (self.count(kind) + 1, worker)
            details = _details(happening)
            if worker is not None:
                self.callbacks.put(self._tell_worker, worker, kind, details)
            subject: tuple[object, ...] = (worker, *details)
            if kind == "setup":
                self.is_set_up, subject = True, (self.settings,)
            elif kind == "reload":
                subject = (self._generation(),)
            for listener in self._functions.get(kind, ()):
                self.callbacks.put(listener, *subject)
            if worker is not None and kind in ("online", "exit") and self._early:
                self._hand_over_early(worker)
        self.tell()

    def _tell_worker(self, worker: Worker, kind: str, details: tuple[object, ...]) -> None:
        """Call the functions of one worker, before those of the cluster are called for the same event.

        Which they are is looked up only now: a callback of its fork may have registered one for its being online.
        """
        with self.changed:
            if kind in STAGES:
                self._told.setdefault(worker.id, set()).add(kind)
            listeners = list(self._of_worker.get((worker.id, kind), ()))
            if kind == "exit":
                self._told.pop(worker.id, None)
                for event in WORKER_EVENTS:
                    self._of_worker.pop((worker.id, event), None)
        for listener in listeners:
            call(listener, *details)

    def _generation(self) -> int:
        """Of the code that serves: a reload ends when every worker is of the new one."""
        seen = self.roster.snapshot
        return max([w.generation for w in self.roster.workers.values()] or [seen.generation if seen else 0])

    # ---- mail ------------------------------------------------------------------------------------------------------
    def _hand_over(self, worker: Worker | None, letter: Letter) -> None:
        if worker is not None and worker.is_dead():
            self._drop(letter, "messages after the exit of their worker")
            return
        self._happened["message"] = (self.count("message") + 1, worker)
        own = self._of_worker.get((worker.id, "message"), ()) if worker is not None else ()
        everybodys = self._functions["message"]
        for listener in own:
            self.callbacks.put(listener, letter)
        for listener in everybodys:
            self.callbacks.put(listener, worker, letter)
        if not own and not everybodys:
            self._keep(worker, letter)

    def _keep(self, worker: Worker | None, letter: Letter) -> None:
        if not self.keeps_mail:
            letter.drop()
            return
        self._kept.append((worker, letter))
        self._kept_bytes += letter.size_bytes
        while len(self._kept) > KEPT_MAX or (self._kept_bytes > KEPT_MAX_BYTES and len(self._kept) > 1):
            oldest = self._kept.popleft()[1]
            self._kept_bytes -= oldest.size_bytes
            self._drop(oldest, "messages that nobody listened to")

    def _read_kept(self, whose: Worker | None, listener: Listener) -> None:
        """Give what was kept, of one worker or of all, to the first function that listens."""
        kept, self._kept = self._kept, deque()
        for worker, letter in kept:
            if whose is not None and worker is not whose:
                self._kept.append((worker, letter))
                continue
            self._kept_bytes -= letter.size_bytes
            self.callbacks.put(listener, *((letter,) if whose is not None else (worker, letter)))

    def _hand_over_early(self, worker: Worker) -> None:
        early, self._early = self._early, deque()
        for id_, letter in early:
            if id_ == worker.id:
                self._hand_over(worker, letter)
            else:
                self._early.append((id_, letter))

    def _drop(self, letter: Letter, reason: str) -> None:
        letter.drop()
        self.dropped[reason] += 1
        if self.dropped[reason] == 1:
            log.warning("%s are dropped; `cluster.dropped` counts them", reason)


def _details(happening: Happening) -> tuple[object, ...]:
    """What an event tells besides its worker: as in Node's cluster module."""
    worker = happening.worker
    if happening.kind == "error":
        return (happening.text,)
    if worker is not None and happening.kind == "listening":
        return (worker.address,)
    if worker is not None and happening.kind == "exit":
        return (worker.exitcode, worker.signal)
    return ()

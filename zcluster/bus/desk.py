"""The master's front desk: who is admitted to the bus, and who is answered what.

Invariant: a peer is heard only after a Hello of this epoch that the kernel and the ledger confirm; and every question
has an answer, so nobody waits for a verb that this master does not know.
"""

import os
from collections.abc import Callable
from typing import Protocol

import msgspec

from zcluster.bus.hub import Arrival, Hub
from zcluster.bus.peers import Peers
from zcluster.bus.relay import Relay
from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.questions import Questions
from zcluster.core.verbs import VERBS


class Owner(Protocol):
    """What the desk asks of the master."""

    def is_worker(self, hello: m.Hello) -> bool:
        """Whether a peer is the worker it says."""

    def admit(self, worker: m.WorkerInfo, link: bytes) -> None:
        """A worker has said Hello on this link, for the first time."""

    def hear(self, id_: int, message: m.Message) -> None:
        """A worker has said something else."""

    def ask(self, question: f.Question) -> None:
        """Somebody has a question that changes something."""

    def stop(self, *, quick: bool) -> None:
        """Somebody wants the cluster to end."""

    def snapshot(self) -> m.Snapshot:
        """The whole cluster, now."""


class Desk:
    """Used by the master's thread. `start_of` returns the start time of a process, in ticks since boot."""

    def __init__(
        self,
        hub: Hub,
        peers: Peers,
        relay: Relay,
        questions: Questions,
        owner: Owner,
        start_of: Callable[[int], int],
    ) -> None:
        self._hub, self._peers, self._relay, self._questions = hub, peers, relay, questions
        self._owner, self._start_of = owner, start_of
        self._pid, self._start = os.getpid(), start_of(os.getpid())

    def take(self, arrival: Arrival) -> None:
        """Take what a peer has sent, increments and mail excepted."""
        message = arrival.message
        if isinstance(message, m.Hello):
            if self._on_hello(arrival.peer, message):
                self._relay.hello(arrival.peer, message)
                self._welcome(arrival.peer)
            return
        peer = self._peers.find(arrival.peer, arrival.pid)
        if peer is None:
            self._hub.dropped["ctl:stranger"] += 1  # it has not said Hello in this epoch: the tick tells it to
            return
        if peer.worker:
            self._owner.hear(peer.worker, message)
        elif isinstance(message, m.Leaving):
            self._relay.left(peer.mailbox)
        match message:
            case m.Resync():
                self._welcome(arrival.peer)
            case m.Ask(verb=verb) if verb in VERBS:
                asker = (arrival.pid, self._start_of(arrival.pid), message.number)
                heard = self._questions.hear(arrival.peer, asker, message)
                if isinstance(heard, m.Answer):
                    self._hub.send(arrival.peer, heard)
                elif heard is not None:
                    self._owner.ask(heard)
            case m.Ask(number=number, verb=verb, args=args):
                self._hub.send(arrival.peer, self._answer(number, verb, args))

    def _on_hello(self, link: bytes, hello: m.Hello) -> bool:
        """Take in a peer; false when it is not what it says."""
        is_worker = self._owner.is_worker(hello)
        if is_worker != (hello.role == "worker"):
            self._hub.dropped["ctl:wrong-sender"] += 1  # it speaks for another process, or a lane it does not have
            return False
        if self._peers.find(link, hello.pid) is None:
            self._peers.add(link, hello.pid)
            if is_worker and hello.worker is not None:
                self._owner.admit(hello.worker, link)
        return True

    def _welcome(self, link: bytes) -> None:
        self._hub.welcome(link, m.Welcome(self._pid, self._start, self._owner.snapshot()))

    def _answer(self, number: int, verb: str, args: msgspec.Raw) -> m.Answer:
        """Answer what needs no decision of the fleet."""
        if verb == "snapshot":
            return m.Answer(number, body=msgspec.Raw(msgspec.msgpack.encode(self._owner.snapshot())))
        if verb == "stop":
            try:
                wish = msgspec.msgpack.decode(args, type=dict[str, bool])
            except ValueError:  # DecodeError, or UnicodeDecodeError: nobody has looked into a Raw before
                return m.Answer(number, error="the arguments of 'stop' are {'quick': true or false}")
            self._owner.stop(quick=wish.get("quick", False))
            return m.Answer(number)
        return m.Answer(number, error=f"this master does not know the verb {verb!r:.50}")

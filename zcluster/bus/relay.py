"""The master's part in what users say to each other: it carries mail, publishes, and says who is there.

Invariant: it never waits for a receiver and keeps no mail. What cannot be handed on now is dropped: its sender has it
still, and sends it again. So the memory spent here is bounded by the queues of the sockets and by one `Ring`.
"""

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from zcluster.bus.hub import Arrival, Hub
from zcluster.bus.peers import Peers
from zcluster.core.codec import MAX_TOPIC_BYTES
from zcluster.core.mail import (
    MASTER,
    MEMBERS,
    PIECE_BYTES,
    TOPICS,
    Got,
    Mail,
    Members,
    Missing,
    Publication,
    worker_name,
)
from zcluster.core.messages import Hello
from zcluster.core.streams import WINDOW_PIECES
from zcluster.core.topics import Ring

log = logging.getLogger("zcluster.master")

# Programs that hold a handle with a mailbox at the same time; each costs a descriptor here. A cluster has one, or a
# few that watch it; a thousand of them is a program that forgets to close them.
HANDLES_MAX: Final = 1000
NAME_MAX_CHARS: Final = 64
# Peers of the master before join us one after the other, within milliseconds or, on a busy machine, a second or two:
# what the first of them publishes is kept for the last, reliable or not.
JOINING_S: Final = 5.0


@dataclass
class _Handle:
    pid: int
    pidfd: int
    owner: bool


class Relay:
    """Used by the master's thread."""

    def __init__(self, hub: Hub, peers: Peers) -> None:
        self._hub, self._peers = hub, peers
        self._handles: dict[str, _Handle] = {}
        self._publishers: dict[str, tuple[int, int, int]] = {}  # mailbox -> stream, pieces, those of an open message
        self._owed: set[str] = set()  # publishers to whom an acknowledgement is due
        self._ring = Ring()
        self._joining_until = time.monotonic() + JOINING_S
        self._members = Members(hub.epoch, 0, {}, {}, 0)
        self.changed = True  # who is there, perhaps

    # ---- who is there ----------------------------------------------------------------------------------------------
    def hello(self, link: bytes, hello: Hello) -> None:
        """A peer that was admitted may have a mailbox."""
        peer = self._peers.find(link, hello.pid)
        if peer is None or not hello.mailbox or peer.mailbox == hello.mailbox:
            return
        if peer.mailbox:  # a link has one name for life: whoever leaves takes all its names with it
            good = False
        elif peer.worker:
            good = hello.mailbox == worker_name(peer.worker)
        else:
            good = hello.mailbox.startswith(f"handle:{hello.pid}-") and len(hello.mailbox) <= NAME_MAX_CHARS
            good = good and hello.role == "handle" and self._watch(hello)
        if not good:
            self._hub.dropped["ctl:mailbox"] += 1
            return
        self._peers.name(link, hello.mailbox)
        self.changed = True

    def _watch(self, hello: Hello) -> bool:
        """Have its end told; false when it has ended, or when there is no room for it."""
        if hello.mailbox in self._handles:
            return True
        if len(self._handles) >= HANDLES_MAX:
            log.warning("process %d has no mailbox: %d handles are open already", hello.pid, HANDLES_MAX)
            return False
        try:
            pidfd = os.pidfd_open(hello.pid)
        except OSError:
            return False
        self._handles[hello.mailbox] = _Handle(hello.pid, pidfd, hello.owner)
        self._hub.register(pidfd)
        return True

    def ended(self, ready: Iterable[int]) -> None:
        """These descriptors are ready: some may be those of handles, whose process has ended then."""
        fds = set(ready)
        for name, handle in list(self._handles.items()):
            if handle.pidfd in fds:
                self.left(name)

    def left(self, mailbox: str) -> None:
        """A handle has been closed, or its process has ended."""
        handle = self._handles.pop(mailbox, None)
        if handle is not None:
            self._hub.unregister(handle.pidfd)
            os.close(handle.pidfd)
        self._peers.leave(mailbox)
        self._forget(mailbox)

    def exited(self, worker: int) -> None:
        """A worker is dead."""
        self._forget(worker_name(worker))

    def _forget(self, mailbox: str) -> None:
        self._publishers.pop(mailbox, None)
        self._owed.discard(mailbox)
        self.changed = True

    def members(self, workers: dict[int, tuple[int, bool]], next_id: int) -> Members:
        """Everybody who is there; published when that has changed."""
        handles = {name: handle.owner for name, handle in self._handles.items()}
        seen = self._members
        if (workers, handles, next_id) != (seen.workers, seen.handles, seen.next_id):

            def make(number: int) -> Members:
                self._members = Members(self._hub.epoch, number, workers, handles, next_id)
                return self._members

            self._hub.publish(MEMBERS, make)
        self.changed = False
        return self._members

    # ---- mail ------------------------------------------------------------------------------------------------------
    def take(self, arrival: Arrival) -> None:
        """A Mail, Got or Missing of a peer that is known; counted and dropped when it speaks for somebody else."""
        peer = self._peers.find(arrival.peer, arrival.pid)
        message = arrival.message
        if peer is None or not peer.mailbox:
            self._hub.dropped["ctl:no-mailbox"] += 1
        elif isinstance(message, Missing):
            self._replay(arrival.peer, message)
        elif not isinstance(message, Mail | Got) or message.sender != peer.mailbox:
            self._hub.dropped["ctl:wrong-sender"] += 1
        elif isinstance(message, Mail) and message.to == MASTER:
            self._publish(message)
        elif link := self._peers.named(message.to):
            self._hub.forward(link, arrival.frame)
        else:
            self._hub.dropped["ctl:nobody"] += 1  # not there yet, or no more: `Members` tells its sender which

    def _publish(self, mail: Mail) -> None:
        """Number it and tell everybody."""
        if not 0 < len(mail.topic.encode()) <= MAX_TOPIC_BYTES or len(mail.body) > PIECE_BYTES:
            self._hub.dropped["ctl:publication"] += 1
            return
        stream, upto, part = self._publishers.get(mail.sender, (0, 0, 0))
        if mail.stream < max(stream, 1):  # ours begin with 1
            return
        if mail.stream > stream:
            stream, upto, part = mail.stream, 0, 0
            self._publishers[mail.sender] = (stream, upto, part)
        self._owed.add(mail.sender)
        if mail.number != upto + 1:
            return

        def make(number: int) -> Publication:
            publication = Publication(
                self._hub.epoch,
                number,
                mail.sender,
                mail.serial,
                mail.topic,
                mail.body,
                part,
                mail.more,
                mail.reliable,
                mail.at,
            )
            self._ring.put(publication, keep=time.monotonic() < self._joining_until)
            return publication

        self._hub.publish(TOPICS, make)
        self._publishers[mail.sender] = (stream, upto + 1, part + 1 if mail.more else 0)

    def acknowledge(self) -> None:
        """Say what has been published: once per turn and publisher, not once per message."""
        for name in self._owed:
            stream, upto, _part = self._publishers[name]
            self._hub.send(self._peers.named(name), Got(MASTER, name, stream, upto, WINDOW_PIECES))
        self._owed.clear()

    def _replay(self, link: bytes, asked: Missing) -> None:
        if not 0 < asked.first <= asked.last <= self._hub.heads.get(TOPICS, 0):
            self._hub.dropped["ctl:missing"] += 1
            return
        again, last_word = self._ring.replay(asked)
        if all(self._hub.send(link, publication) for publication in again):  # else it asks again
            self._hub.send(link, last_word)

    def close(self) -> None:
        """Give the descriptors back."""
        for handle in self._handles.values():
            os.close(handle.pidfd)
        self._handles.clear()

"""What must hold of messages in a simulation: each is delivered once, in order, or its sender is told.

Invariant: a letter is noted when it is sent, and until it has been settled by its sender's mailbox. What a mailbox
calls received has been received; what it gives up had nobody to receive it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zcluster.core.mail import MASTER
from zcluster.core.post import HANDLES, KEEP_S
from zcluster.core.streams import Parcel
from zcluster.core.topics import Lost, Published
from zcluster.testing.sim_world import World

if TYPE_CHECKING:
    from zcluster.testing.sim_peer import Peer

SETTLED_S: Final = 3.0  # after it was cut off, until it is known again
SENDER_S: Final = 10.0  # who lives on so long after publishing has repeated what a master took with it


@dataclass(slots=True)
class Letter:
    """One message that was sent."""

    sender: str
    to: str
    number: int  # of this sender to this receiver; grows
    at: float
    left: int  # copies that are not settled
    serial: int  # of what was published reliably, else 0


class Letters:
    """All letters of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._numbers: dict[tuple[str, str], int] = {}
        self._open: dict[tuple[str, int], Letter] = {}  # by sender and ticket
        self._delivered: dict[tuple[str, str], int] = {}  # sender, receiver -> the last number
        self._heard: dict[tuple[str, str], int] = {}  # sender, subscriber -> the last number published
        self._news: dict[str, list[tuple[float, int, bool]]] = {}  # sender -> when, number, reliable
        self._had: dict[tuple[str, str], set[int]] = {}  # sender, subscriber -> numbers it had
        self.lost: dict[str, int] = {}  # subscriber -> how many it was told of
        self.letters = 0
        self.repeats: dict[str, float] = {}  # sender -> when it last came to a new master

    def body(self, sender: "Peer", to: str, size: int) -> bytes:
        """The bytes of the next letter: they say what it is."""
        key = (sender.mailbox, to)
        number = self._numbers.get(key, 0) + 1
        return f"{sender.mailbox}|{to}|{number}|".encode().ljust(size, b".")

    def sent(self, sender: "Peer", ticket: int, to: str, body: bytes, copies: int, serial: int) -> None:
        """The mailbox has taken it; what it refuses was never sent."""
        number = int(body.split(b"|", 3)[2])
        self._numbers[sender.mailbox, to] = number
        self._open[sender.mailbox, ticket] = Letter(sender.mailbox, to, number, self.world.now, copies, serial)
        self.letters += 1
        if to == MASTER:
            self._news.setdefault(sender.mailbox, []).append((self.world.now, number, bool(serial)))

    def delivered(self, receiver: "Peer", sender: str, body: bytes) -> None:
        """A letter arrives."""
        said, to, number_text, _ = body.split(b"|", 3)
        number, to_name = int(number_text), to.decode()
        if said.decode() != sender or (to_name not in (receiver.mailbox, HANDLES)):
            self.world.fail(f"{receiver.name} gets a letter of {said.decode()} to {to_name} from {sender}")
        key = (sender + "|" + to_name, receiver.mailbox)
        if number <= self._delivered.get(key, 0):
            self.world.fail(f"{receiver.name} gets letter {number} of {sender} after letter {self._delivered[key]}")
        self._delivered[key] = number

    def received(self, sender: "Peer", parcels: list[Parcel]) -> None:
        """The sender's mailbox says that these have arrived."""
        for parcel in parcels:
            letter = self._open.get((sender.mailbox, parcel.ticket))
            if letter is None:
                if parcel.ticket:
                    self.world.fail(f"{sender.name} is told twice what became of letter {parcel.ticket}")
                continue
            self._settle(sender, parcel.ticket, letter)
            if letter.to not in (MASTER, HANDLES):
                last = self._delivered.get((f"{letter.sender}|{letter.to}", letter.to), 0)
                if last < letter.number:
                    self.world.fail(
                        f"{sender.name} is told that {letter.to} has letter {letter.number}; it has {last}"
                    )

    def given_up(self, sender: "Peer", failed: list[tuple[Parcel, str]], spread: list[tuple[int, int]]) -> None:
        """The sender's mailbox gives these up."""
        for ticket, copies in spread:
            self._open[sender.mailbox, ticket].left = copies
        for parcel, reason in failed:
            letter = self._open.get((sender.mailbox, parcel.ticket))
            if letter is None:
                continue
            self.world.note(sender.name, f"gives up letter {letter.number} to {letter.to}:", reason)
            self._settle(sender, parcel.ticket, letter)
            if any(peer.mailbox == letter.to and self._is_well(peer) for peer in self.world.workers.values()):
                self.world.fail(f"{sender.name} gives up a letter to {letter.to}, which is well: {reason}")

    def _is_well(self, peer: "Peer") -> bool:
        master = self.world.master
        return (
            not peer.frozen
            and peer.conn is not None
            and self.world.now > peer.mute_until + SETTLED_S
            and peer.joining.joined
            and master is not None
            and peer.joining.epoch == master.epoch
            and master.fleet.by_process(peer.pid, peer.start) is not None
        )

    def _settle(self, sender: "Peer", ticket: int, letter: Letter) -> None:
        letter.left -= 1
        if letter.left <= 0:
            del self._open[sender.mailbox, ticket]

    def published(self, subscriber: "Peer", news: list[Published | Lost]) -> None:
        """A subscriber is given publications, or told that some are lost."""
        for item in news:
            if isinstance(item, Lost):
                self.lost[subscriber.mailbox] = self.lost.get(subscriber.mailbox, 0) + item.count
                self.world.note(subscriber.name, "is told of", f"{item.count} lost publications")
                continue
            key, number = (item.sender, subscriber.mailbox), int(item.body.split(b"|", 3)[2])
            if number <= self._heard.get(key, 0):
                self.world.fail(f"{subscriber.name} hears {number} of {item.sender} after {self._heard[key]}")
            self._heard[key] = number
            self._had.setdefault(key, set()).add(number)

    def ended_letters(self, peer: "Peer") -> None:
        """A sender has ended: nobody waits any more."""
        for key in [key for key in self._open if key[0] == peer.mailbox]:
            del self._open[key]
        if not any(at > self.world.now - SENDER_S for at, _, _ in self._news.get(peer.mailbox, ())):
            return
        self._news.pop(peer.mailbox, None)  # a master may have taken its last ones with it

    def open_letters(self) -> str:
        """What has not been settled; empty when all has."""
        for (sender, ticket), letter in self._open.items():
            return f"letter {letter.number} (ticket {ticket}) of {sender} to {letter.to} is not settled"
        for peer in self.world.peers.values():
            if peer.post.count:
                return f"the mailbox of {peer.name} keeps {peer.post.count} messages"
        return ""

    def missing(self) -> str:
        """A reliable publication that a living subscriber neither had nor was told of; empty when there is none."""
        for peer in self.world.peers.values():
            missed: list[str] = []
            for sender, news in self._news.items():
                had = self._had.get((sender, peer.mailbox), set())
                # Of a sender that it has never heard, a subscriber cannot know what was lost with a master, if the
                # sender comes to the next one too late to repeat it (core.topics, core.post).
                first, upto = min(had, default=0), self.repeats.get(sender, 0.0) - KEEP_S
                missed += [
                    f"{number} of {sender}"
                    for at, number, reliable in news
                    if reliable and at > peer.joined_at and number not in had and not (number < first and at < upto)
                ]
            if len(missed) > self.lost.get(peer.mailbox, 0):
                told = self.lost.get(peer.mailbox, 0)
                return f"{peer.name} has not had publications {', '.join(missed)}; it was told of {told} lost ones"
        return ""

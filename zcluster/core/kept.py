"""What a launcher keeps for the next master: the deaths and the operator's wishes nobody has taken note of, and what
masters have decided.

Invariant: a new master that has been told `told()` knows all that the one before had promised to anybody.
"""

from zcluster.core import messages as m
from zcluster.core.fleet_events import LAUNCHER
from zcluster.core.verbs import NO_RELOAD

UNACKNOWLEDGED_MAX = 5000  # messages kept for a master; more than the deaths in all lanes, several times over


class Kept:
    """The memory of one launcher. Pure: it neither sends nor looks at a clock."""

    def __init__(self) -> None:
        self.stop: m.Stop | None = None
        self._size: m.Size | None = None
        self._commit: m.Commit | None = None
        self._reload: m.Reload | None = None
        self._reload_wish = ""  # the token of the operator's last reload: it is all that those before had asked for
        self._unacknowledged: dict[int, m.Died | m.ScaleBy] = {}  # by number
        self._numbers = 0

    @property
    def is_stopping(self) -> bool:
        """A stop has begun; one that is only announced changes nothing yet."""
        return self.stop is not None and not self.stop.delayed

    def died(self, pid: int, start: int, code: int | None, signal: int | None) -> m.Died:
        """A child has died: the message to the master, kept until it is Received."""
        told = m.Died(self._next_number(), pid, start, code, signal)
        self._unacknowledged[told.number] = told
        return told

    def wish(self, name: str, *, can_reload: bool) -> tuple[str, m.ScaleBy | m.Reload | None]:
        """What the operator wants with a signal, in words, and the message to the master; None: why it cannot be.

        The message is kept until a master has decided, which it says in a message of its own.
        """
        if name not in ("SIGHUP", "SIGTTIN", "SIGTTOU"):
            return "does nothing in this release", None
        if self.stop is not None:
            return "too late, the cluster is stopping", None
        if name == "SIGHUP":
            if not can_reload:
                return NO_RELOAD, None
            self._reload_wish = f"{name} {self._next_number()}"
            return "a reload", m.Reload((self._reload_wish,))
        wish = self._scale(1 if name == "SIGTTIN" else -1, None)
        return f"one worker {'more' if wish.by > 0 else 'fewer'}", wish

    def scale_to(self, number: int) -> m.ScaleBy:
        """The configuration has another number of workers now: the message to the master, kept as any wish."""
        return self._scale(0, number)

    def _scale(self, by: int, to: int | None) -> m.ScaleBy:
        wish = m.ScaleBy(self._next_number(), by, to)
        self._unacknowledged[wish.number] = wish
        return wish

    @property
    def is_reloading(self) -> bool:
        """Whether a reload is under way, or wished for."""
        return self._reload is not None or bool(self._reload_wish)

    def _next_number(self) -> int:
        self._numbers += 1
        if len(self._unacknowledged) >= UNACKNOWLEDGED_MAX:
            del self._unacknowledged[next(iter(self._unacknowledged))]
        return self._numbers

    def take(self, message: m.Received | m.Size | m.Commit | m.Reload) -> None:
        """Keep what a master says; the last of each kind counts."""
        match message:
            case m.Received(number=number):
                self._unacknowledged.pop(number, None)
            case m.Size(answered=answered):
                self._size = message
                for pid, start, number, _ in answered:
                    if (pid, start) == LAUNCHER:  # should its Received not come any more: it is in this size
                        self._unacknowledged.pop(number, None)
            case m.Commit():
                self._commit = message
            case _:
                self._reload = message if message.tokens else None
                if self._reload_wish in message.tokens:
                    self._reload_wish = ""

    def told(self) -> list[m.Control]:
        """What a new master is to be told, in order, before Proceed."""
        if self._reload_wish:  # from now on it is the master's: whatever it says of reloads, it knows of this one
            self._reload = m.Reload((*(self._reload.tokens if self._reload is not None else ()), self._reload_wish))
            self._reload_wish = ""
        decided = [self._size, self._commit, self._reload]
        told: list[m.Control] = [message for message in decided if message is not None]
        told += self._unacknowledged.values()
        if self.stop is not None:
            told.append(self.stop)
        return told

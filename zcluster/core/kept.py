"""What a launcher keeps for the next master: the deaths nobody has taken note of, and what masters have decided.

Invariant: a new master that has been told `told()` knows all that the one before had promised to anybody.
"""

from zcluster.core import messages as m

UNACKNOWLEDGED_MAX = 5000  # deaths kept for a master; more than all lanes, several times over


class Kept:
    """The memory of one launcher. Pure: it neither sends nor looks at a clock."""

    def __init__(self) -> None:
        self.stop: m.Stop | None = None
        self._size: m.Size | None = None
        self._commit: m.Commit | None = None
        self._reload: m.Reload | None = None
        self._deaths: dict[int, m.Died] = {}  # by number
        self._numbers = 0

    def died(self, pid: int, start: int, code: int | None, signal: int | None) -> m.Died:
        """A child has died: the message to the master, kept until it is Received."""
        self._numbers += 1
        told = m.Died(self._numbers, pid, start, code, signal)
        self._deaths[told.number] = told
        if len(self._deaths) > UNACKNOWLEDGED_MAX:
            del self._deaths[next(iter(self._deaths))]
        return told

    def take(self, message: m.Received | m.Size | m.Commit | m.Reload) -> None:
        """Keep what a master says; the last of each kind counts."""
        match message:
            case m.Received(number=number):
                self._deaths.pop(number, None)
            case m.Size():
                self._size = message
            case m.Commit():
                self._commit = message
            case m.Reload(tokens=tokens):
                self._reload = message if tokens else None

    def told(self) -> list[m.Control]:
        """What a new master is to be told, in order, before Proceed."""
        decided = [self._size, self._commit, self._reload]
        told: list[m.Control] = [message for message in decided if message is not None]
        told += self._deaths.values()
        if self.stop is not None:
            told.append(self.stop)
        return told

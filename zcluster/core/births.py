"""Which of its children a zygote remembers, to name them to the next master.

Invariant: it remembers all that live, and never more than ROOM or twice as many as lived when it last looked; so
a cluster whose workers die all the time grows nowhere, and looking costs the same per fork however many there are.
"""

from collections.abc import Callable
from typing import Final

from zcluster.core.messages import WorkerInfo

# Below this nobody looks. A remembered child takes 400 bytes, and what a zygote has its workers share with it.
ROOM: Final = 128


class Births:
    """The children of one zygote, in the order of their birth; for one thread."""

    __slots__ = ("_children", "_room")

    def __init__(self) -> None:
        self._children: list[WorkerInfo] = []
        self._room = ROOM

    def __len__(self) -> int:
        return len(self._children)

    @property
    def newest(self) -> WorkerInfo:
        """The one that was born last. Raises `IndexError` when there was none."""
        return self._children[-1]

    def add(self, child: WorkerInfo, is_alive: Callable[[WorkerInfo], bool]) -> None:
        """Remember a child; when there is no room, the dead are forgotten first."""
        if len(self._children) >= self._room:
            self.living(is_alive)
            self._room = max(ROOM, 2 * len(self._children))
        self._children.append(child)

    def living(self, is_alive: Callable[[WorkerInfo], bool]) -> tuple[WorkerInfo, ...]:
        """Forget the dead, and return the others."""
        self._children = [child for child in self._children if is_alive(child)]
        return tuple(self._children)

"""The zygotes as the master holds them: a process and a control socket for each generation.

Invariant: a socket that is closed here is not polled any more; a zygote is known until its death has been told.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

from zcluster.core.messages import Control
from zcluster.unix import process
from zcluster.unix.channel import Channel


@dataclass
class _Zygote:
    pid: int
    start: int
    channel: Channel


class Zygotes:
    """Used by the master's thread. `register` and `unregister` are its poller's."""

    def __init__(self, register: Callable[[int], None], unregister: Callable[[int], None]) -> None:
        self._register, self._unregister = register, unregister
        self._zygotes: dict[int, _Zygote] = {}  # by generation

    @property
    def generations(self) -> tuple[int, ...]:
        """Of those that live."""
        return tuple(sorted(self._zygotes))

    def pid(self, generation: int) -> int:
        """0 when there is none."""
        zygote = self._zygotes.get(generation)
        return zygote.pid if zygote is not None else 0

    def find(self, pid: int, start: int) -> int | None:
        """The generation whose zygote is this process."""
        same = (generation for generation, it in self._zygotes.items() if (it.pid, it.start) == (pid, start))
        return next(same, None)

    def up(self, generation: int, pid: int, start: int, channel: Channel) -> None:
        """The launcher has handed one over."""
        self.forget(generation)
        self._zygotes[generation] = _Zygote(pid, start, channel)
        self._register(channel.fileno())

    def send(self, generation: int, message: Control) -> None:
        """Nothing happens without a zygote: its death has been told, or will be."""
        zygote = self._zygotes.get(generation)
        if zygote is not None:
            zygote.channel.send(message)

    def hear(self, ready: Container[int]) -> Iterator[tuple[int, Control]]:
        """What those whose sockets are ready have sent, with their generations."""
        for generation, zygote in list(self._zygotes.items()):
            if zygote.channel.fileno() in ready:
                yield from self.last_words(generation)

    def last_words(self, generation: int) -> Iterator[tuple[int, Control]]:
        """What one has sent. At the end of file it is kept: that it died, and how, is the launcher's to tell."""
        channel = self._zygotes[generation].channel
        for message, _fds in channel.receive():
            yield generation, message
        if channel.closed:
            self.hang_up(generation)

    def hang_up(self, generation: int) -> None:
        """Close our end of its socket; when the launcher has closed its own, too, it leaves."""
        zygote = self._zygotes.get(generation)
        if zygote is not None and zygote.channel.fileno() >= 0:
            self._unregister(zygote.channel.fileno())
            zygote.channel.close()

    def forget(self, generation: int) -> None:
        """It is dead."""
        self.hang_up(generation)
        self._zygotes.pop(generation, None)

    def signal(self, generation: int, number: int) -> None:
        """Send it a signal, if there is one."""
        zygote = self._zygotes.get(generation)
        if zygote is not None:
            process.send_signal(zygote.pid, zygote.start, number)

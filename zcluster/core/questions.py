"""Questions that change something: which wait for their answer, and what the last ones were answered.

Invariant: a question is acted upon once, however often its link repeats it. A link asks again after each loss of its
connection, and asks the next master when this one dies; what was asked for must not happen twice for that.
"""

from collections import deque

from msgspec import Raw, msgpack

from zcluster.core import fleet_events as f
from zcluster.core.messages import Answer, Ask, Control, Received, Size
from zcluster.core.verbs import NO_RELOAD, Unclear, question

OPEN_MAX = 10_000  # as many as there may be peers; some 300 bytes each
# Repetitions come within the time a link takes to reconnect. A link keeps 1,000 questions at most (core/outbox).
ANSWERED_MAX = 1000
# Those that the next master is told of: it needs the answers that were lost with this one, a few milliseconds' worth.
RECENT_MAX = 16


class Questions:
    """One master's; used by its thread."""

    def __init__(self, *, can_reload: bool) -> None:
        self._can_reload = can_reload
        self._open: dict[f.Asker, bytes] = {}  # -> where to send the answer
        self._answered: dict[f.Asker, Answer] = {}
        self._resize: f.Resize | None = None  # not told yet: it goes to the launcher with the answer it was made for
        self._recent: deque[tuple[int, int, int, Raw]] = deque(maxlen=RECENT_MAX)

    def hear(self, link: bytes, asker: f.Asker, ask: Ask) -> Answer | f.Question | None:
        """Take one of `verbs.VERBS`: its answer, what the fleet is to be asked, or nothing (it is being answered)."""
        if asker in self._answered:
            return self._answered[asker]
        if asker in self._open:
            self._open[asker] = link
            return None
        try:
            wish = question(ask.verb, ask.args, asker)
        except Unclear as error:
            return Answer(ask.number, str(error))
        if isinstance(wish, f.Reload) and not self._can_reload:
            return Answer(ask.number, NO_RELOAD)
        if len(self._open) >= OPEN_MAX:
            return Answer(ask.number, f"{OPEN_MAX} questions wait for an answer already; ask again later")
        self._open[asker] = link
        return wish

    def resize(self, command: f.Resize) -> None:
        """The size has changed; the reply that comes next says for whom."""
        self._resize = command

    def answer(self, reply: f.Reply) -> tuple[bytes, Answer, list[Control]]:
        """Where to send which answer (empty: nobody waits there any more), and what the launcher is told before."""
        told: list[Control] = []
        answer = Answer(reply.asker[2], reply.error, Raw(msgpack.encode(reply.body)))
        self._remember(reply.asker, answer)
        size, self._resize = self._resize, None
        if size is not None:
            self._recent.append((*reply.asker, answer.body))
            env = {slot: dict(env) for slot, env in size.env.items()}
            told.append(Size(size.slots, env, tuple(self._recent)))
        if reply.asker[:2] == f.LAUNCHER:
            told.append(Received(reply.asker[2]))
        return self._open.pop(reply.asker, b""), answer, told

    def recall(self, message: Control) -> None:
        """What the launcher has kept: a Size says which wishes the master before had fulfilled."""
        for pid, start, number, body in message.answered if isinstance(message, Size) else ():
            self._recent.append((pid, start, number, body))
            self._remember((pid, start, number), Answer(number, body=body))

    def _remember(self, asker: f.Asker, answer: Answer) -> None:
        self._answered[asker] = answer
        if len(self._answered) > ANSWERED_MAX:
            del self._answered[next(iter(self._answered))]

"""What goes into `Fleet.step` and what comes out: events the master has seen, commands it must perform.

Invariant: every event is a fact that already happened and every command is complete, so that the master needs no
state of its own to perform it. Both are frozen; none carries a clock reading (`step` is given `now`).
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from zcluster.core.fleet_questions import LAUNCHER as LAUNCHER
from zcluster.core.fleet_questions import Asker as Asker
from zcluster.core.fleet_questions import Close as Close
from zcluster.core.fleet_questions import Open as Open
from zcluster.core.fleet_questions import Question as Question
from zcluster.core.fleet_questions import Reload as Reload
from zcluster.core.fleet_questions import Restart as Restart
from zcluster.core.fleet_questions import Scale as Scale
from zcluster.core.fleet_questions import Signal as Signal
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import Beat, WorkerInfo

BOOT_FAILED_CODE = 3  # a worker that cannot load the application ends with it (errors.AppError)
LANE_TAKEN_CODE = 75  # EX_TEMPFAIL of sysexits.h: another process holds the lock of the lane this worker was given


class LaneAges(Struct, frozen=True):
    """How old the two ticks are that a worker writes into its ledger lane by itself."""

    bus_tick_age_s: float
    loop_tick_age_s: float
    in_app: bool  # the loop's thread is inside the application: its tick may be old


class ProcessFacts(Struct, frozen=True):
    """What the kernel says of a process that gives no sign of life."""

    state: str  # of proc(5) stat: T or t when it is stopped, D when any of its threads is
    cpu_s: float  # it has used since it began


# ---- events --------------------------------------------------------------------------------------------------------
class Started(Struct, frozen=True):
    """A master starts. After a master's death `adopted` are the owners of locked lanes it found in the ledger."""

    adopted: tuple[WorkerInfo, ...] = ()
    foreign_lanes: frozenset[int] = frozenset()  # locked by a process that is no worker of ours: never handed out
    zygotes: tuple[int, ...] = ()  # generations of the zygotes that are alive
    departed: tuple[WorkerInfo, ...] = ()  # last owners of lanes nobody holds: they may have died between two masters


class ZygoteUp(Struct, frozen=True):
    """The launcher started a zygote (or told of it again): it imports now."""

    generation: int


class Imported(Struct, frozen=True):
    """The zygote is ready to fork."""

    generation: int
    unsafe: tuple[str, ...] = ()


class ImportFailed(Struct, frozen=True):
    """The zygote cannot load the application and exits."""

    generation: int
    text: str


class ZygoteDied(Struct, frozen=True):
    """A zygote has ended, for whatever reason, or could not be started (`why` says it then)."""

    generation: int
    code: int | None = None
    signal: int | None = None
    why: str = ""


class Synced(Struct, frozen=True):
    """The surviving zygote's answer to a new master: the forks it made.

    Those that are not in the fleet are taken in, so leave out what is not alive: nobody would report its death.
    """

    forks: tuple[WorkerInfo, ...]
    imported: bool


class Forked(Struct, frozen=True):
    """A fork that was asked for exists: `worker` has pid and start."""

    worker: WorkerInfo


class ForkFailed(Struct, frozen=True):
    """The zygote could not fork (EAGAIN, ENOMEM)."""

    id: int
    text: str


class Hello(Struct, frozen=True):
    """A worker is on the bus. `link` comes back in a Refuse."""

    worker: WorkerInfo
    link: bytes = b""


class Ready(Struct, frozen=True):
    """A worker accepts from now on."""

    id: int


class Heard(Struct, frozen=True):
    """Any traffic of a worker."""

    id: int
    beat: Beat | None = None


class Leaving(Struct, frozen=True):
    """A worker drains of its own accord."""

    id: int
    reason: str


class BootFailed(Struct, frozen=True):
    """A worker says why it is about to exit with code 3 (its traceback, for the text of Finish)."""

    id: int
    text: str


class Died(Struct, frozen=True):
    """One waitid result of the launcher; may come before Forked or Hello of the same process."""

    pid: int
    start: int
    code: int | None
    signal: int | None


class Vanished(Struct, frozen=True):
    """A worker's process is gone. With a launcher its Died, which has the status, is waited for (5 s at most)."""

    id: int


class Ticked(Struct, frozen=True):
    """Time passes (every 250 ms, and at `next_deadline`); `ledger` by worker id, of the lanes that are locked.

    `processes` by worker id, of those whose bus tick is older than a sixth of the hang timeout.
    """

    ledger: Mapping[int, LaneAges] = {}
    processes: Mapping[int, ProcessFacts] = {}


class Lagged(Struct, frozen=True):
    """The master itself did not run for so long: nobody is judged for that time. Step it before any other event."""

    seconds: float


class Stop(Struct, frozen=True):
    """End the cluster. A second, quick one tightens the deadline. A delayed one only announces it."""

    quick: bool
    why: str = ""
    delayed: bool = False


class LauncherGone(Struct, frozen=True):
    """The launcher died: drain everything and leave."""


class LaneTaken(Struct, frozen=True):
    """A worker could not lock its lane: somebody else has it."""

    id: int


class Sized(Struct, frozen=True):
    """Before Started: the slots that were open under the master before, and the environment of each."""

    slots: tuple[int, ...]
    env: Mapping[int, Mapping[str, str]] = {}


class Committed(Struct, frozen=True):
    """Before Started: the generation that served under the master before; the first one when it is not said."""

    generation: int


class Unfinished(Struct, frozen=True):
    """A reload that the launcher keeps: the master before died over it (before Started), or the operator wants it."""

    tokens: tuple[str, ...]


class Reconfigured(Struct, frozen=True):
    """The generation that is being introduced has these settings; they count from now on, or not at all."""

    generation: int
    settings: FleetSettings


FleetEvent = (
    Sized | Committed | Unfinished | Reconfigured | Question | Started | ZygoteUp | Imported | ImportFailed
    | ZygoteDied | Synced
    | Forked | ForkFailed | Hello | Ready | Heard | Leaving | BootFailed | Died | Vanished | Ticked | Lagged | Stop
    | LauncherGone | LaneTaken
)  # fmt: skip


# ---- commands ------------------------------------------------------------------------------------------------------
class StartZygote(Struct, frozen=True):
    """Ask the launcher for a zygote of this generation."""

    generation: int


class DumpZygote(Struct, frozen=True):
    """The zygote of this generation did not do in time what it had to: have it write its stacks."""

    generation: int
    reason: str


class KillZygote(Struct, frozen=True):
    """SIGKILL for the zygote of this generation. Its death is then told as any other."""

    generation: int
    reason: str


class SaveNextId(Struct, frozen=True):
    """Store it where the next master finds it; always before the Fork that uses it, so ids never repeat."""

    next_id: int


class Fork(Struct, frozen=True):
    """Ask the zygote of its generation for this worker (id, slot, lane, generation, restarts are set)."""

    worker: WorkerInfo
    env: Mapping[str, str] = {}


class SendDrain(Struct, frozen=True):
    """Send a Drain to the worker."""

    id: int
    deadline_s: float
    quick: bool


class Refuse(Struct, frozen=True):
    """Answer the Hello of this link with Refused."""

    id: int
    link: bytes
    reason: str


class Terminate(Struct, frozen=True):
    """SIGTERM for a worker that is not on the bus yet."""

    id: int
    pid: int
    start: int


class Dump(Struct, frozen=True):
    """SIGCONT, then the signal that makes faulthandler write the stacks."""

    id: int
    pid: int
    start: int


class Kill(Struct, frozen=True):
    """SIGKILL."""

    id: int
    pid: int
    start: int
    reason: str


class SendSignal(Struct, frozen=True):
    """What an operator wants a worker to get."""

    id: int
    pid: int
    start: int
    number: int


class Reconnect(Struct, frozen=True):
    """The worker lives but is not heard: make it open new sockets."""

    id: int


class Announce(Struct, frozen=True):
    """Publish an Event of this kind; `core.messages.Event` names them."""

    kind: str
    worker: WorkerInfo | None = None
    text: str = ""


class Log(Struct, frozen=True):
    """One line for the log; level is a name of the logging module in lower case."""

    level: str
    text: str


class Running(Struct, frozen=True):
    """All workers are ready for the first time: the ready line."""

    workers: int


class EndZygote(Struct, frozen=True):
    """Nobody needs the zygote of this generation any more: let go of it. It leaves by itself, or is killed."""

    generation: int


class Resize(Struct, frozen=True):
    """Have the launcher keep it for the next master: the open slots, and the environment of each."""

    slots: tuple[int, ...]
    env: Mapping[int, Mapping[str, str]]


class Commit(Struct, frozen=True):
    """Have the launcher keep it: the generation that serves."""

    generation: int


class KeepReload(Struct, frozen=True):
    """Have the launcher keep it: the tokens of those who asked for a reload that has not ended; none: it has."""

    tokens: tuple[str, ...]


class Reply(Struct, frozen=True):
    """Answer a question; `error` empty on success."""

    asker: Asker
    error: str = ""
    body: Mapping[str, Any] = {}


class Finish(Struct, frozen=True):
    """Nothing is left: exit with this code."""

    code: int
    text: str = ""


FleetCommand = (
    StartZygote | DumpZygote | KillZygote | EndZygote | Resize | Commit | KeepReload | Reply | SaveNextId | Fork
    | SendDrain | Refuse | Terminate | Dump | Kill | SendSignal | Reconnect | Announce | Log | Running | Finish
)  # fmt: skip

"""Every message of ours: what the bus and the launcher's sockets carry. (What users say stands in `core/mail`.)

Invariant: a message says *what is*, never *what changed* (totals, heads, tables), so that loss, repetition and
reordering are harmless. Times are seconds, `start` is a process's start time in clock ticks since boot (field 22 of
proc(5) stat): (pid, start) names a process for ever, a pid alone does not.
"""

from typing import Literal

from msgspec import Raw, Struct

from zcluster.core.mail import Got, Mail, Members, Missing, Publication, Replayed

IN_MEMORY = "in memory"
VERSION = 1  # first byte of every frame
TOTALS, TICK, EVENTS = "totals", "tick", "events"  # the topics of `pub`; probes are "probe:" + link in hex


class WorkerInfo(Struct, frozen=True, array_like=True):
    """One worker as others see it."""

    id: int  # grows for ever, never reused
    slot: int  # 0..N-1, taken over by the replacement
    lane: int  # its column in the ledger
    generation: int
    pid: int = 0
    start: int = 0
    state: str = "forked"
    restarts: int = 0  # of its slot
    requests: int = 0
    inflight: int = 0
    connections: int = 0
    threads: int = 0
    rss_bytes: int = 0
    uptime_s: float = 0.0
    oldest_request_s: float = 0.0
    exitcode: int | None = None
    signal: int | None = None
    reason: str = ""
    exited_after_disconnect: bool = False
    note: str = ""  # what ails it, if that is known: see core/fleet_health


class SlowRequest(Struct, frozen=True, array_like=True):
    """One request that has been running for a while."""

    method: str
    path: str  # shortened, without the query: that may hold what is nobody's business
    age_s: float


class Snapshot(Struct, frozen=True, array_like=True):
    """The whole cluster, as `ps --json` and every handle see it."""

    name: str
    urls: tuple[str, ...]
    epoch: int
    generation: int
    state: str  # starting | running | degraded | stopping
    launcher_pid: int
    master_pid: int
    zygote_pid: int
    counters: dict[str, int]
    workers: tuple[WorkerInfo, ...]
    heads: dict[str, int] = {}  # topic -> number of the last message published in this epoch
    dropped: dict[str, int] = {}  # what the master's bus counted and dropped, by reason
    recent: "tuple[Event, ...]" = ()  # the last events published, for a peer that missed some
    received: dict[str, int] = {}  # messages the master admitted, by socket
    slow: dict[int, tuple[SlowRequest, ...]] = {}  # by worker id, of its last heartbeat, oldest first
    refused: dict[str, int] = {}  # requests that no app saw, by reason, as the living workers have counted them
    members: Members | None = None
    slots: tuple[int, ...] = ()  # those that are open
    vacant: dict[int, str] = {}  # of these, the ones without a worker, and what they wait for


# ---- ctl, peer -> master ------------------------------------------------------------------------------------------
class Hello(Struct, frozen=True, array_like=True, tag="hello"):
    """I am here. Repeated until a Welcome *and* the Probe for this link have arrived."""

    link: bytes  # 16 random bytes, new for every set of sockets
    role: Literal["worker", "handle", "service"]
    pid: int  # must be what the kernel attests
    worker: WorkerInfo | None = None
    mailbox: str = ""  # the name under which it sends and receives mail; empty: it does neither
    owner: bool = False  # the handle that started the cluster


class Ready(Struct, frozen=True, array_like=True, tag="ready"):
    """This worker has joined and will accept from now on."""


class Beat(Struct, frozen=True, array_like=True, tag="beat"):
    """Heartbeat, with what the worker is doing."""

    requests: int
    inflight: int
    connections: int
    threads: int
    rss_bytes: int
    oldest_request_s: float
    loop_lag_s: float
    slow: tuple[SlowRequest, ...] = ()  # the oldest requests in flight, oldest first; see core/slow
    refused: dict[str, int] = {}  # requests that the app never saw, by reason, since this worker started
    stuck: int = 0  # requests that have been in the app for longer than --timeout; see core/stuck
    given_up: int = 0  # of these, for longer than the grace as well
    state: str = ""  # as in its lane: a Ready, Leaving or Drain that was lost shows in it


class Leaving(Struct, frozen=True, array_like=True, tag="leaving"):
    """This worker drains of its own accord (its own SIGTERM, SystemExit of the app): a voluntary exit."""

    reason: str


class Resync(Struct, frozen=True, array_like=True, tag="resync"):
    """A gap was seen: send a Welcome again."""


class Ask(Struct, frozen=True, array_like=True, tag="ask"):
    """A question or an order from the CLI or a handle; answered by the Answer of the same number."""

    number: int
    verb: str
    args: Raw = Raw(b"\xc0")  # msgpack nil


# ---- ctl, master -> peer ------------------------------------------------------------------------------------------
class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """Where things stand; updates newer than `snapshot.heads` apply on top."""

    master_pid: int
    master_start: int
    snapshot: Snapshot


class Refused(Struct, frozen=True, array_like=True, tag="refused"):
    """This worker has no place here (its slot is taken, its generation unknown): leave."""

    reason: str


class Drain(Struct, frozen=True, array_like=True, tag="drain"):
    """Stop accepting, finish, leave; after `deadline_s` you are killed."""

    deadline_s: float
    quick: bool


class Answer(Struct, frozen=True, array_like=True, tag="answer"):
    """Reply to an Ask; `error` empty on success."""

    number: int
    error: str = ""
    body: Raw = Raw(b"\xc0")


# ---- pub, master -> everybody -------------------------------------------------------------------------------------
class Totals(Struct, frozen=True, array_like=True, tag="totals"):
    """Absolute totals of the counters that changed."""

    epoch: int
    number: int
    totals: dict[str, int]


class Tick(Struct, frozen=True, array_like=True, tag="tick"):
    """The master lives; a head higher than what was received is a gap."""

    epoch: int
    number: int
    heads: dict[str, int]


class Probe(Struct, frozen=True, array_like=True, tag="probe"):
    """Proof that the SUB of this link is connected."""

    link: bytes


class Event(Struct, frozen=True, array_like=True, tag="event"):
    """What happened to a worker or the cluster: fork online listening disconnect exit error running reload scale."""

    epoch: int
    number: int
    kind: str
    worker: WorkerInfo | None = None
    text: str = ""
    time_s: float = 0.0  # since 1970, by the master's clock


# ---- evt, worker -> master ----------------------------------------------------------------------------------------
class Increments(Struct, frozen=True, array_like=True, tag="inc"):
    """Running totals of the cells this worker has changed, by counter index."""

    worker: int
    lane: int
    cells: dict[int, int]


Message = (
    Hello | Ready | Beat | Leaving | Resync | Ask | Missing  # up
    | Welcome | Refused | Drain | Answer | Replayed  # down
    | Mail | Got  # both
    | Totals | Tick | Probe | Event | Members | Publication  # pub
    | Increments  # evt
)  # fmt: skip


# ---- the launcher's SEQPACKET sockets; a number is repeated to the next master until it is Received ----------------
class Boot(Struct, frozen=True, array_like=True, tag="boot"):
    """First message to a master, a zygote or a service: everything it needs to know."""

    config: Raw
    run_dir: str
    urls: tuple[str, ...]
    launcher_pid: int
    launcher_start: int
    generation: int = 0
    listener_fds: tuple[int, ...] = ()
    kind: str = ""  # of a service; of a master: IN_MEMORY when the app is, and cannot be imported
    size: "Size | None" = None  # handle -> launcher: the slots to begin with; None: as many as are configured


class Proceed(Struct, frozen=True, array_like=True, tag="proceed"):
    """Launcher -> master: all that stood before you started has been told."""


class StartZygote(Struct, frozen=True, array_like=True, tag="start-zygote"):
    """Master -> launcher."""

    generation: int


class ZygoteUp(Struct, frozen=True, array_like=True, tag="zygote-up"):
    """Launcher -> master, with the zygote's control socket (SCM_RIGHTS); told again to every new master."""

    generation: int
    pid: int
    start: int


class StartService(Struct, frozen=True, array_like=True, tag="start-service"):
    """Master -> launcher."""

    kind: str


class ServiceUp(Struct, frozen=True, array_like=True, tag="service-up"):
    """Launcher -> master."""

    kind: str
    pid: int
    start: int


class Died(Struct, frozen=True, array_like=True, tag="died"):
    """Launcher -> master: one waitid result."""

    number: int
    pid: int
    start: int
    code: int | None
    signal: int | None


class Size(Struct, frozen=True, array_like=True, tag="size"):
    """Master -> launcher: keep; launcher -> every new master, before Proceed: the slots that are wanted."""

    slots: tuple[int, ...]
    env: dict[int, dict[str, str]] = {}  # by slot: what its workers have in their environment besides
    answered: tuple[tuple[int, int, int, Raw], ...] = ()  # the last who asked (core/questions), and the answers


class ScaleBy(Struct, frozen=True, array_like=True, tag="scale-by"):
    """Launcher -> master: the operator wants so many workers more (TTIN) or fewer (TTOU), though one at least."""

    number: int
    by: int
    to: int | None = None  # this many, by a configuration that has changed; then `by` is 0


class Capture(Struct, frozen=True, array_like=True, tag="capture"):
    """Master -> launcher: make and hold the pipe for the output of a worker that is about to be forked."""

    worker: int  # its id


class Settings(Struct, frozen=True, array_like=True, tag="settings"):
    """Launcher -> master: the configuration of a generation, before its ZygoteUp and when it has been committed."""

    generation: int
    config: Raw


class Reload(Struct, frozen=True, array_like=True, tag="reload"):
    """Master -> launcher -> every new master, before Proceed: reloads not ended. Launcher -> master: HUP."""

    tokens: tuple[str, ...]  # of those who asked; empty: it has ended


class Commit(Struct, frozen=True, array_like=True, tag="commit"):
    """Master -> launcher: keep; launcher -> every new master, before Proceed: the generation that serves."""

    generation: int


class EndZygote(Struct, frozen=True, array_like=True, tag="end-zygote"):
    """Master -> launcher: close its control socket; it leaves, or is killed. (The master closes its copy.)"""

    generation: int


class Stop(Struct, frozen=True, array_like=True, tag="stop"):
    """End the cluster. Master -> launcher: asked for on the bus. Launcher -> master: do; told to every new one."""

    quick: bool
    why: str = ""
    delayed: bool = False  # not yet: serve as before, until the same comes without it; but nobody's wishes any more


class Received(Struct, frozen=True, array_like=True, tag="received"):
    """Master -> launcher."""

    number: int


class Running(Struct, frozen=True, array_like=True, tag="running"):
    """Master -> launcher: all workers are ready; or (`workers` is 0) only how the cluster stands by now."""

    workers: int
    standing: str = ""  # one line for the service manager, told when it has changed


class Failed(Struct, frozen=True, array_like=True, tag="failed"):
    """Any -> its starter: why it is about to exit with this code. Launcher -> master: no zygote could be started."""

    code: int
    text: str
    generation: int = 0  # of that zygote


# ---- master <-> zygote --------------------------------------------------------------------------------------------
class Imported(Struct, frozen=True, array_like=True, tag="imported"):
    """Zygote -> master: ready to fork; `unsafe` names what forced it to start again without the app."""

    generation: int
    preloaded: bool
    unsafe: tuple[str, ...] = ()


class ImportFailed(Struct, frozen=True, array_like=True, tag="import-failed"):
    """Zygote -> master, before it exits."""

    generation: int
    text: str


class Fork(Struct, frozen=True, array_like=True, tag="fork"):
    """Master -> zygote."""

    worker: WorkerInfo
    env: dict[str, str] = {}  # added to the worker's environment


class Forked(Struct, frozen=True, array_like=True, tag="forked"):
    """Zygote -> master; written by the worker itself into the zygote's pipe, so it lives."""

    worker: WorkerInfo


class ForkFailed(Struct, frozen=True, array_like=True, tag="fork-failed"):
    """Zygote -> master."""

    worker: int
    text: str


class Sync(Struct, frozen=True, array_like=True, tag="sync"):
    """New master -> zygote: what have you forked?"""

    epoch: int


class Synced(Struct, frozen=True, array_like=True, tag="synced"):
    """Zygote -> master, after everything asked before."""

    epoch: int
    imported: bool
    forks: tuple[WorkerInfo, ...]


Control = (
    Boot | StartZygote | ZygoteUp | EndZygote | StartService | ServiceUp | Proceed | Died | Stop | Received | Running
    | Failed | Size | ScaleBy | Settings | Reload | Commit | Capture
    | Imported | ImportFailed | Fork | Forked | ForkFailed | Sync | Synced
)  # fmt: skip

"""Histories of a fleet as text: who said what when, and what the fleet does about it.

    == A title
    settings workers=2 hang_timeout_s=30       optional, first
    running                                    optional: go to the state where all are ready, at the time 0
    12.5 died 1 signal=9                       at 12.5 s: an event; the lines with -> are *all* commands that follow
      -> announce exit 1 ...

Worker id N is the process 100+N, started at tick 1000+N. Chance always answers 0: pauses are never shortened.
"""

import re
from pathlib import Path

import msgspec
from msgspec.structs import replace

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import Beat, WorkerInfo

HISTORIES = Path(__file__).parent / "histories"
FRESH = f.LaneAges(0.1, 0.1, in_app=False)
# What a tick does for no other reason than that its time has come, unless a worker has reached one of its limits.
BY_ITSELF = (f.Fork, f.StartZygote, f.SendDrain, f.Terminate, f.Kill, f.KillZygote, f.DumpZygote, f.Reply, f.Finish)


def worker(id_: int, slot: int | None = None, lane: int | None = None, **more: object) -> WorkerInfo:
    """What worker `id_` says of itself; by default its slot and lane are those of the first workers."""
    slot = id_ - 1 if slot is None else slot
    fields = {"generation": 1, "pid": 100 + id_, "start": 1000 + id_, **more}
    return WorkerInfo(id_, slot, slot if lane is None else lane, **fields)


class Story:
    """One fleet living through a history."""

    def __init__(self, **settings: float) -> None:
        self.settings = FleetSettings(**{"workers": 2, **settings})
        self.fleet = Fleet(self.settings, epoch=1, next_worker_id=1, random=lambda: 0.0, strict=True)
        self.due = float("-inf")  # when the fleet will do something by itself, as it has said after the last event
        self.asked = 0  # questions: the n-th is answered as `reply n`
        self.known: dict[int, WorkerInfo] = {}  # as they were asked for
        self.unusual: dict[
            int, tuple[int, int]
        ] = {}  # pid and start of the last that said it was worker N, but is not

    def step(self, event: f.FleetEvent, now: float) -> list[f.FleetCommand]:
        commands = self.fleet.step(event, now)
        if isinstance(event, f.Ticked) and not self.fleet.is_any_worn():
            assert now >= self.due or not any(isinstance(command, BY_ITSELF) for command in commands), "not foretold"
        wait_s = self.fleet.next_deadline(now)
        self.due = float("inf") if wait_s is None else now + wait_s - 1e-6
        for command in commands:
            self.check(command)
            if isinstance(event, f.Died) and isinstance(command, f.Announce) and command.kind == "exit":
                assert command.worker is not None
                assert (command.worker.exitcode, command.worker.signal) == (event.code, event.signal)
                assert any(isinstance(c, f.Log) and f"died. {command.text};" in c.text for c in commands)
            if isinstance(command, f.Fork):
                self.known[command.worker.id] = command.worker
        return commands

    def check(self, command: f.FleetCommand) -> None:
        """What histories do not show of a command is right as well: its types, and which process or link it means."""
        plain = msgspec.to_builtins(command, builtin_types=(bytes,))
        msgspec.convert(plain, type(command), builtin_types=(bytes,), str_keys=True)
        match command:
            case f.Terminate() | f.Dump() | f.Kill() | f.SendSignal():
                usual = (100 + command.id, 1000 + command.id)
                assert (command.pid, command.start) == self.unusual.get(command.id, usual)
            case f.Refuse():
                assert command.link == b"link"

    def info(self, id_: int, **more: object) -> WorkerInfo:
        """The WorkerInfo of a worker as its process would send it."""
        asked = self.known.get(id_)
        if asked is None:
            return worker(id_, **more)
        return worker(id_, **{"slot": asked.slot, "lane": asked.lane, "restarts": asked.restarts,
                              "generation": asked.generation, **more})  # fmt: skip

    def run_up(self, now: float = 0.0) -> None:
        """Until all workers are ready."""
        self.step(f.Started(), now)
        self.step(f.ZygoteUp(1), now)
        self.step(f.Imported(1), now)
        for id_ in list(self.known):
            self.become(id_, "ready", now)

    def become(self, id_: int, state: str, now: float) -> None:
        """Bring a worker that was asked for into a state of its start."""
        events = [f.Forked(self.info(id_)), f.Hello(self.info(id_)), f.Ready(id_)]
        for event in events[: ("forked", "online", "ready").index(state) + 1]:
            self.step(event, now)

    def event(self, line: str) -> f.FleetEvent:
        """Read one event."""
        word, *args = line.split()
        given = dict(arg.split("=", 1) for arg in args if "=" in arg)
        plain = [arg for arg in args if "=" not in arg]
        code, signal = (int(given[name]) if name in given else None for name in ("code", "signal"))
        rest = line.split(maxsplit=2)[-1]
        generation = int(given.pop("generation", 1)) if word not in ("forked", "hello") else 1
        self.asked += word in ("scale", "open", "close", "reload", "restart", "signal")
        asker = (*(f.LAUNCHER if "least" in given else (1, 1)), self.asked)
        return {
            "started": lambda: self._started(given),
            "zygote-up": lambda: f.ZygoteUp(generation),
            "imported": lambda: f.Imported(generation, tuple(plain)),
            "import-failed": lambda: f.ImportFailed(
                generation, plain[0] if "generation" in line else line.split(maxsplit=1)[1]
            ),
            "zygote-died": lambda: f.ZygoteDied(generation, code, signal, " ".join(plain)),
            "synced": lambda: f.Synced(self._infos(given.get("forks", "")), "imported" in plain),
            "forked": lambda: f.Forked(self._told(plain, given)),
            "fork-failed": lambda: f.ForkFailed(int(plain[0]), rest),
            "hello": lambda: f.Hello(self._told(plain, given), b"link"),
            "ready": lambda: f.Ready(int(plain[0])),
            "heard": lambda: f.Heard(int(plain[0])),
            "beat": lambda: f.Heard(
                int(plain[0]), Beat(10, 1, 5, 3, 4096, 0.5, 0.0, given_up=int(given.get("given_up", 0)))
            ),
            "leaving": lambda: f.Leaving(int(plain[0]), rest),
            "boot-failed": lambda: f.BootFailed(int(plain[0]), rest),
            "died": lambda: f.Died(100 + int(plain[0]), 1000 + int(plain[0]), code, signal),
            "vanished": lambda: f.Vanished(int(plain[0])),
            "tick": lambda: f.Ticked(self._ages(plain), self._processes(plain)),
            "lagged": lambda: f.Lagged(float(plain[0])),
            "stop": lambda: f.Stop("quick" in plain, "the operator said so", "delayed" in plain),
            "launcher-gone": lambda: f.LauncherGone(),
            "sized": lambda: f.Sized(tuple(int(slot) for slot in plain)),
            "committed": lambda: f.Committed(int(plain[0])),
            "unfinished": lambda: f.Unfinished(tuple(plain)),
            "reconfigured": lambda: f.Reconfigured(
                generation, replace(self.settings, **{name: float(value) for name, value in given.items()})
            ),
            "scale": lambda: f.Scale(asker, **{name: int(value) for name, value in given.items()}),
            "open": lambda: f.Open(asker, dict(given)),
            "close": lambda: f.Close(asker, int(plain[0]) if plain else None),
            "reload": lambda: f.Reload(asker, plain[0]),
            "restart": lambda: f.Restart(asker, *map(int, plain)),
            "signal": lambda: f.Signal(asker, *map(int, plain)),
            "lane-taken": lambda: f.LaneTaken(int(plain[0])),
        }[word]()

    def _told(self, plain: list[str], given: dict[str, str]) -> WorkerInfo:
        told = self.info(int(plain[0]), **{name: int(value) for name, value in given.items()})
        if told.pid != 100 + told.id:
            self.unusual[told.id] = told.pid, told.start
        return told

    def _infos(self, text: str) -> tuple[WorkerInfo, ...]:
        infos = []
        for item in filter(None, text.split(",")):  # id:state[:slot[:lane[:restarts]]]
            id_, state, *where = item.split(":")
            slot, lane, restarts = [*map(int, where), *[int(id_) - 1] * 2, 0][:3] if not where else [
                *map(int, where), *[int(where[0])] * (2 - len(where)), 0
            ][:3]  # fmt: skip
            infos.append(worker(int(id_), slot, lane, state=state, restarts=restarts, uptime_s=100.0))
        return tuple(infos)

    def _started(self, given: dict[str, str]) -> f.Started:
        foreign = frozenset(map(int, filter(None, given.get("foreign", "").split(","))))
        zygotes = tuple(map(int, filter(None, given.get("zygotes", given.get("zygote", "")).split(","))))
        adopted, departed = (self._infos(given.get(name, "")) for name in ("adopted", "departed"))
        return f.Started(adopted, foreign, zygotes, departed)

    def _ages(self, plain: list[str]) -> dict[int, f.LaneAges]:
        """`tick`: all ticks are fresh; `tick 1:20/0.1 2:none 3:0/40/app`: worker 1's bus tick is 20 s old, ..."""
        ages = {there.id: FRESH for there in self.fleet.living()}
        for item in plain:
            id_, what = item.partition("@")[0].split(":")
            if what == "none":
                del ages[int(id_)]
            else:
                bus, loop, *app = what.split("/")
                ages[int(id_)] = f.LaneAges(float(bus), float(loop), in_app=bool(app))
        return ages

    def _processes(self, plain: list[str]) -> dict[int, f.ProcessFacts]:
        """`tick 1:20/20@S3.5`: besides, worker 1's process sleeps, and has used 3.5 s of CPU time."""
        found = {}
        for item in plain:
            where, _, facts = item.partition("@")
            if facts:
                found[int(where.split(":")[0])] = f.ProcessFacts(facts[0], float(facts[1:]))
        return found


def shown(command: f.FleetCommand) -> str:
    """A command as histories write it."""
    match command:
        case f.Fork(info, env):
            more = f" generation={info.generation}" if info.generation > 1 else ""
            more += f" env={dict(env)}" if env else ""
            return f"fork {info.id} slot={info.slot} lane={info.lane} restarts={info.restarts}{more}"
        case f.Reply((_, _, number), error, body):
            return f"reply {number}: " + (f"error: {error}".replace("\n", " / ") if error else str(dict(body)))
        case f.Resize(slots, env):
            return f"resize {list(slots)}{f' {dict(env)}' if env else ''}"
        case f.SendDrain(id_, deadline_s, quick):
            return f"drain {id_} within {deadline_s:.1f} s{' quick' if quick else ''}"
        case f.Refuse(id_, _, reason):
            return f"refuse {id_}: {reason}"
        case f.SendSignal(id_, _, _, number):
            return f"send-signal {number} to {id_}"
        case f.Kill(id_, _, _, reason):
            return f"kill {id_} ({reason})"
        case f.Announce("exit", info, _):
            after = "after" if info.exited_after_disconnect else "without"
            return f"announce exit {info.id}: {info.reason}, {after} disconnect"
        case f.Announce(kind, None, text):
            return f"announce {kind} {text}".rstrip().replace("\n", " / ")
        case f.Announce(kind, info, text):
            return f"announce {kind} {info.id} {text}".rstrip()
        case f.Log(level, text):
            return f"{level}: " + text.replace("\n", " / ")
        case f.Finish(code, text):
            return f"finish {code}: {text}"
        case f.KeepReload(tokens):
            return f"keep-reload {' '.join(tokens)}".rstrip()
    name = re.sub(r"(?<!^)([A-Z])", r"-\1", type(command).__name__).lower()
    return f"{name} {getattr(command, command.__struct_fields__[0])}"


def stories() -> dict[str, str]:
    """All histories, by file and title."""
    found = {}
    for path in sorted(HISTORIES.glob("*.txt")):
        for part in re.split(r"^== ", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            title, _, body = part.partition("\n")
            found[f"{path.stem}: {title}"] = body
    return found


def played(body: str) -> str:
    """Live through a history; returns it as it should have been written."""
    story = Story()
    told: list[str] = []
    for line in body.splitlines():
        if line.lstrip().startswith("->"):
            continue
        told.append(line)
        if line.startswith("settings"):
            pairs = (pair.split("=") for pair in line.split()[1:])
            story = Story(**{name: (int if value.isdigit() else float)(value) for name, value in pairs})
        elif line == "running":
            story.run_up()
        elif line and not line.startswith("#"):
            time, event = line.split(maxsplit=1)
            told += [f"  -> {shown(command)}" for command in story.step(story.event(event), float(time))]
    return "\n".join(told).rstrip("\n")

"""Whole clusters on a fake clock, with random faults: what must hold whatever happens."""

from fleet_world import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.messages import WorkerInfo

FAULTS = {
    "kill worker": lambda world, n: [world.dies(process.pid, None, 9) for process in pick(world, n)],
    "crash worker": lambda world, n: [world.dies(process.pid, n % 4, None) for process in pick(world, n)],
    "stop worker": lambda world, n: [setattr(process, "stopped", True) for process in pick(world, n)],
    "continue worker": lambda world, n: [setattr(process, "stopped", False) for process in pick(world, n)],
    "mute worker": lambda world, n: [setattr(process, "muted", True) for process in pick(world, n)],
    "TERM worker": lambda world, n: [world.drain(process, unasked=True) for process in pick(world, n)],
    "kill zygote": lambda world, n: [
        world.zygote_dies(9, generation) for generation in some(sorted(world.zygotes), n)
    ],
    "freeze zygote": lambda world, n: [setattr(z, "frozen", True) for z in some([*world.zygotes.values()], n)],
    "bad starts": lambda world, n: setattr(world, "bad_starts", 1 + n % 3),
    "kill master": lambda world, n: world.master_dies(),
    "freeze master": lambda world, n: world.master_freezes(0.3 + n % 5),
    "reload": lambda world, n: reload(world, n, broken=False, dying=False),
    "reload broken code": lambda world, n: reload(world, n, broken=True, dying=False),
    "reload dying code": lambda world, n: reload(world, n, broken=False, dying=True),
    "scale": lambda world, n: world.tell("handle", f.Scale(world.asker(), to=n % 6)),
    "fork": lambda world, n: world.tell("handle", f.Open(world.asker(), {"N": str(n)})),
    "disconnect": lambda world, n: [world.tell("handle", f.Close(world.asker(), p.info.id)) for p in pick(world, n)],
}
PLAN = st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 20), st.floats(0.0, 1.5)), max_size=14)


def some(there, n):
    return [there[n % len(there)]] if there else []


def pick(world, n):
    return some(world.living(), n)


def reload(world, n, *, broken, dying):
    """One to three wishes at once."""
    world.broken_code, world.dying_code = broken, dying
    for _ in range(1 + n % 3):
        world.reload()


def suffer(world, plan):
    """Run into all faults of the plan; each is told in the log."""
    for name, n, pause_s in plan:
        world.log.append(f"{world.now:8.3f} FAULT {name} {n}")
        FAULTS[name](world, n)
        world.run(pause_s)


def gave_up(world):
    """A new master that finds nobody ready, and sees three starts fail, rightly ends the cluster."""
    return world.finished is not None and world.finished.code == 3 and world.epoch > 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), PLAN)
def test_capacity_returns_after_any_faults(seed, plan):
    """When faults end all slots are ready again within the deadlines, and nobody is left over."""
    world = World(seed)
    assert world.run(5.0, until=world.all_ready)
    suffer(world, plan)
    for process in world.living():
        process.stopped = False
    # The longest repair: a zygote that does not answer (5 s), a hang (3 s), boot (5 s), pauses (2 s), in a row; and
    # that for each of three slots there and back in each of two reloads.
    back = world.run(120.0, until=lambda: world.settled() or gave_up(world))
    assert back, "\n".join(world.log[-60:])
    if world.finished is None:
        world.run(20.0)
        assert world.settled(), "\n".join(world.log[-60:])
        assert len(world.living()) == len(world.size), [process.told(world.now) for process in world.living()]
        assert {process.pid for process in world.living()} == {worker.pid for worker in world.fleet.living()}
        assert world.fleet.next_deadline(world.now) is None
        assert not world.leaving
        for reply in world.replies.values():
            assert not reply.body.get("generation", 0) > world.committed
            assert not reply.error or not reply.body


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(0, 5), st.sampled_from(["", "broken", "dying"]), st.integers(1, 3))
def test_a_reload_costs_no_capacity(seed, workers, code, wishes):
    """Nothing else goes wrong: each slot has a READY worker at any time, and all are of one generation after it."""
    world = World(seed)
    world.tell("handle", f.Scale(world.asker(), to=workers))
    assert world.run(15.0, until=lambda: len(world.size) == workers and world.settled())
    world.run(3.0)  # those that were too many have left
    before = {process.pid for process in world.living()}

    def watch():
        serving = [p for p in world.living() if p.state == "ready"]
        assert {p.info.slot for p in serving} == set(world.size), world.log[-30:]

    world.watch = watch
    world.broken_code, world.dying_code = code == "broken", code == "dying"
    asked = [world.reload() for _ in range(wishes)]
    assert world.run(60.0, until=world.settled), "\n".join(world.log[-60:])
    world.run(5.0)
    replies = [world.replies[asker] for asker in asked]
    fails = code == "broken" or (code == "dying" and workers > 0)
    assert all(bool(reply.error) == fails for reply in replies)
    after = {process.pid for process in world.living()}
    if fails:
        assert (world.committed, after) == (1, before)
    else:
        assert world.committed == 1 + min(wishes, 2)  # the second is queued, the third is merged into it
        assert not after & before
        assert {process.info.generation for process in world.living()} <= {world.committed}
    assert len(after) == workers
    assert not world.leaving


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), PLAN, st.booleans(), st.floats(0.0, 1.0))
def test_a_stop_ends_at_any_moment(seed, plan, quick, start_s):
    """Finish comes within the deadlines, nobody is forked after the stop, and no process outlives it unknown."""
    world = World(seed)
    world.run(start_s * 0.5)
    suffer(world, plan)
    world.run(10.0, until=lambda: world.fleet is not None and world.now >= world.frozen_until)
    if world.finished is not None:
        assert world.finished.code == 3
        return
    world.master_takes(f.Stop(quick, "the end"))
    forked = len(world.forked_ids)
    assert world.run(15.0, until=lambda: world.finished is not None), "\n".join(world.log[-60:])
    assert world.finished.code in (0, 3, 5)
    assert len(world.forked_ids) == forked
    known = {worker.pid for worker in world.fleet.living()}
    left = [process for process in world.living() if process.pid not in known]
    assert all(process.muted or process.stopped or process.draining or process.state == "forked" for process in left)


IDS = st.integers(0, 8)
STATES = st.sampled_from(["none", "ready", "draining", "online", "hung"])
INFO = st.builds(
    WorkerInfo, id=IDS, slot=st.integers(-1, 3), lane=st.integers(-1, 5), generation=st.integers(0, 2),
    pid=st.integers(0, 9), start=st.integers(1, 2), state=STATES, restarts=st.integers(0, 3),
    uptime_s=st.floats(0, 100),
)  # fmt: skip
INFOS = st.lists(INFO, max_size=5).map(tuple)
AGES = st.builds(f.LaneAges, st.floats(0, 100), st.floats(0, 100), st.booleans())
STATUS = st.sampled_from([(0, None), (1, None), (3, None), (75, None), (None, 9), (None, 15), (None, None)])
DEATH = st.tuples(st.integers(1, 9), st.integers(1, 2), STATUS)
GENERATION = st.sampled_from([1, 1, 1, 2, 3])
SLOTS = st.lists(st.integers(0, 3), max_size=3, unique=True).map(tuple)
ASKER = st.tuples(st.just(1), st.just(1), st.integers(1, 1000))
TOKEN = st.sampled_from(["a", "b"])
TEXT = st.just("because")
ANY_EVENT = st.one_of(
    st.builds(
        f.Started, INFOS, st.frozensets(st.integers(0, 5)), st.lists(st.integers(0, 3), max_size=2).map(tuple), INFOS
    ),
    st.builds(f.ZygoteUp, GENERATION),
    st.builds(f.Imported, GENERATION),
    st.builds(f.ImportFailed, GENERATION, TEXT),
    st.builds(f.ZygoteDied, GENERATION),
    st.builds(f.Synced, INFOS, st.booleans()),
    st.builds(f.Forked, INFO),
    st.builds(f.ForkFailed, IDS, TEXT),
    st.builds(f.Hello, INFO),
    st.builds(f.Ready, IDS),
    st.builds(f.Heard, IDS),
    st.builds(f.Leaving, IDS, TEXT),
    st.builds(f.BootFailed, IDS, TEXT),
    DEATH.map(lambda death: f.Died(death[0], death[1], *death[2])),
    st.builds(f.Vanished, IDS),
    st.builds(f.Ticked, st.dictionaries(IDS, AGES, max_size=4)),
    st.builds(f.Lagged, st.floats(-1, 5)),
    st.builds(f.LaneTaken, IDS),
    st.builds(f.Sized, SLOTS),
    st.builds(f.Committed, st.integers(1, 2)),
    st.builds(f.Unfinished, st.lists(TOKEN, max_size=2, unique=True).map(tuple)),
    st.builds(f.Scale, ASKER, st.none() | st.integers(0, 4), st.integers(-1, 1)),
    st.builds(f.Open, ASKER, st.just({}) | st.just({"COLOR": "blue"})),
    st.builds(f.Close, ASKER, st.none() | IDS),
    st.builds(f.Reload, ASKER, TOKEN),
)


def obey_promises(commands, seen):
    """What every answer of a fleet keeps, whatever it was told."""
    for command in commands:
        match command:
            case f.SaveNextId(next_id):
                assert next_id > seen["saved"]
                seen["saved"] = next_id
            case f.Fork(info):
                assert info.id < seen["saved"]
                assert info.id > seen["last"]
                seen["last"] = info.id
            case f.Reply(asker):
                seen["open"].discard(asker)
            case f.Kill(pid=pid) | f.Terminate(pid=pid) | f.Dump(pid=pid):
                assert pid > 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(ANY_EVENT, st.floats(0, 20)), max_size=40), st.booleans())
def test_nonsense_is_survived(events, quick):
    """Events in an order that cannot be neither raise nor break an invariant, and a stop still ends the cluster."""
    fleet = Fleet(FleetSettings(workers=2, lanes=6), 1, 1, lambda: 0.5)
    seen = {"saved": 1, "last": 0, "open": set()}
    now = 0.0
    for event, pause_s in events:
        now += pause_s
        if isinstance(event, f.Question) and not fleet.finished:
            seen["open"].add(event.asker)
        obey_promises(fleet.step(event, now), seen)
        fleet.check()
        waiting_s = fleet.next_deadline(now)
        assert waiting_s is None or waiting_s >= 0
        fleet.infos(now)
        assert fleet.state in ("starting", "running", "degraded", "stopping")
    obey_promises(fleet.step(f.Started(), now), seen)
    obey_promises(fleet.step(f.Stop(quick, "the end"), now), seen)
    assert not seen["open"], "whoever asks is answered"
    for _ in range(60):
        if fleet.finished:
            break
        now += fleet.next_deadline(now) or 0.0
        obey_promises(fleet.step(f.Ticked(), now), seen)
    assert fleet.finished
    assert fleet.step(f.Stop(quick=True), now) == []


@given(st.floats(0, 100), st.floats(0, 100))
def test_waiting_for_a_deadline_reaches_it(begun, pause_s):
    """A sum of floats may be rounded down: a Ticked when `next_deadline` is over finds it over."""
    fleet = Fleet(FleetSettings(workers=1), 1, 1, lambda: 0.5)
    fleet.step(f.Started((WorkerInfo(1, 0, 0, 1, 101, 1, "ready"),)), begun)
    now = begun + pause_s
    fleet.step(f.Vanished(1), now)
    fleet.step(f.Stop(quick=False), now)
    for _ in range(10):  # 2 s of patience with what may start, 5 s with the launcher, and twice what rounding leaves
        if not fleet.finished:
            now += fleet.next_deadline(now)
            fleet.step(f.Ticked(), now)
    assert fleet.finished

"""Whole clusters on a fake clock, with random faults: what must hold whatever happens."""

from fleet_world import SETTINGS, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zcluster.core import fleet_events as f
from zcluster.core.fleet import Fleet
from zcluster.core.messages import WorkerInfo

FAULTS = {
    "kill worker": lambda world, n: [world.dies(process.pid, None, 9) for process in pick(world, n)],
    "crash worker": lambda world, n: [world.dies(process.pid, n % 4, None) for process in pick(world, n)],
    "stop worker": lambda world, n: [setattr(process, "stopped", True) for process in pick(world, n)],
    "continue worker": lambda world, n: [setattr(process, "stopped", False) for process in pick(world, n)],
    "mute worker": lambda world, n: [setattr(process, "muted", True) for process in pick(world, n)],
    "TERM worker": lambda world, n: [world.drain(process, unasked=True) for process in pick(world, n)],
    "kill zygote": lambda world, n: world.zygote_dies(9),
    "freeze zygote": lambda world, n: setattr(world, "zygote_frozen", True),
    "bad starts": lambda world, n: setattr(world, "bad_starts", 1 + n % 3),
    "kill master": lambda world, n: world.master_dies(),
    "freeze master": lambda world, n: world.master_freezes(0.3 + n % 5),
}
PLAN = st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 20), st.floats(0.0, 1.5)), max_size=14)


def pick(world, n):
    living = world.living()
    return [living[n % len(living)]] if living else []


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
    # The longest repair: a zygote that does not answer (5 s), a hang (3 s), boot (5 s), pauses (2 s), in a row.
    back = world.run(40.0, until=lambda: world.all_ready() or gave_up(world))
    assert back, "\n".join(world.log[-60:])
    if world.finished is None:
        world.run(20.0)
        assert world.all_ready(), "\n".join(world.log[-60:])
        assert len(world.living()) == SETTINGS.workers, [process.told(world.now) for process in world.living()]
        assert {process.pid for process in world.living()} == {worker.pid for worker in world.fleet.living()}
        assert world.fleet.next_deadline(world.now) is None


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
ONE = st.just(1)
TEXT = st.just("because")
ANY_EVENT = st.one_of(
    st.builds(f.Started, INFOS, st.frozensets(st.integers(0, 5)), st.just(1) | st.none(), INFOS),
    st.builds(f.ZygoteUp, ONE),
    st.builds(f.Imported, ONE),
    st.builds(f.ImportFailed, ONE, TEXT),
    st.builds(f.ZygoteDied, ONE),
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
            case f.Kill(pid=pid) | f.Terminate(pid=pid) | f.Dump(pid=pid):
                assert pid > 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(ANY_EVENT, st.floats(0, 20)), max_size=40), st.booleans())
def test_nonsense_is_survived(events, quick):
    """Events in an order that cannot be neither raise nor break an invariant, and a stop still ends the cluster."""
    fleet = Fleet(f.FleetSettings(workers=2, lanes=6), 1, 1, lambda: 0.5)
    seen = {"saved": 1, "last": 0}
    now = 0.0
    for event, pause_s in events:
        now += pause_s
        obey_promises(fleet.step(event, now), seen)
        fleet.check()
        waiting_s = fleet.next_deadline(now)
        assert waiting_s is None or waiting_s >= 0
        fleet.infos(now)
        assert fleet.state in ("starting", "running", "degraded", "stopping")
    fleet.step(f.Started(), now)
    fleet.step(f.Stop(quick, "the end"), now)
    for _ in range(60):
        if fleet.finished:
            break
        now += fleet.next_deadline(now) or 0.0
        obey_promises(fleet.step(f.Ticked(), now), seen)
    assert fleet.finished
    assert fleet.step(f.Stop(quick=True), now) == []

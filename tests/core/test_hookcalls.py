"""Which hooks are called for what was heard."""

from msgspec.structs import replace

from zcluster.core.hookcalls import ClusterInfo, HookCalls
from zcluster.core.joining import Joined, Refreshed
from zcluster.core.messages import Event, Snapshot, WorkerInfo


def worker(id_, **more):
    return WorkerInfo(id_, id_ - 1, id_ - 1, more.pop("generation", 1), 100 + id_, 1, **more)


def snapshot(*workers, state="starting", epoch=1, slots=(0, 1)):
    return Snapshot("shop", ("http://a:1",), epoch, 1, state, 10, 10 + epoch, 12, {}, workers, slots=slots)


def event(kind, subject=None, text=""):
    return Event(1, 1, kind, subject, text)


def names(calls):
    return [name for name, _ in calls]


def test_from_start_to_reload():
    """Each once, in order, with the cluster as it is then."""
    story = HookCalls()
    assert story.cluster is None
    assert story.take([Joined(snapshot(), again=False)]) == [("on_starting", ())]
    for id_ in (1, 2):
        assert story.take([event(kind, worker(id_)) for kind in ("fork", "online", "listening")]) == []
    assert story.take([event("running")]) == [("when_ready", ())]
    assert [there.id for there in story.cluster.workers] == [1, 2]
    assert (story.cluster.url, story.cluster.size, story.cluster.generation) == ("http://a:1", 2, 1)
    assert story.cluster == ClusterInfo("shop", ("http://a:1",), 1, 1, 10, 11, 2, (worker(1), worker(2)))
    assert replace(story.cluster, urls=()).url == ""
    new = worker(3, generation=2)
    dead = worker(1, exitcode=0, reason="reload")
    happened = [event("fork", new), event("disconnect", worker(1)), event("exit", dead), event("reload")]
    assert story.take(happened) == [("child_exit", (dead,)), ("on_reload", ())]
    assert (story.cluster.generation, [there.id for there in story.cluster.workers]) == (2, [2, 3])


def test_a_change_of_size():
    """New and old number, as gunicorn has it."""
    story = HookCalls()
    story.take([Joined(snapshot(), again=False)])
    assert story.take([event("scale", None, "from 2 to 1 worker")]) == [("nworkers_changed", (1, 2))]
    assert story.take([event("scale", None, "from 1 to 10 workers")]) == [("nworkers_changed", (10, 1))]
    assert story.cluster.size == 10


def test_a_worker_that_is_given_up():
    """Only a verdict counts, not every error; its exit comes besides."""
    story = HookCalls()
    story.take([Joined(snapshot(worker(1)), again=False)])
    hung = worker(1, state="hung")
    assert story.take([event("error", hung, "is hung")]) == [("worker_abort", (hung,))]
    assert story.take([event("error", worker(1, state="ready")), event("error", None, "no import")]) == []
    assert names(story.take([event("exit", worker(1, signal=9))])) == ["child_exit"]
    assert story.take([event("exit", worker(1, signal=9)), event("disconnect", worker(1))]) == []
    assert story.cluster.workers == ()


def test_a_process_that_follows_another_one():
    """What the one before has called is not called again, nor is anything when a new master says it is running."""
    story = HookCalls(began=True, was_ready=True)
    assert story.take([Joined(snapshot(worker(1), state="running"), again=False)]) == []
    assert story.take([event("running")]) == []
    for state in ("running", "degraded"):
        late = HookCalls()
        joined = late.take([Joined(snapshot(worker(1), state=state), again=False)])
        assert names(joined) == ["on_starting", "when_ready"]
        assert late.take([event("running")]) == []
        assert late.take([Joined(snapshot(worker(1), state=state, epoch=2), again=True)]) == []


def test_an_exit_that_was_missed():
    """Whoever is not in a later snapshot is gone; a master that knows nobody yet says nothing about them."""
    story = HookCalls(began=True, was_ready=True)
    story.take([Joined(snapshot(worker(1), worker(2), state="running"), again=False)])
    assert story.take([Joined(snapshot(epoch=2), again=True)]) == []
    (call,) = story.take([Refreshed(snapshot(worker(2), epoch=2))])
    assert call == ("child_exit", (replace(worker(1), state="dead", reason="its exit was missed"),))
    assert story.cluster.epoch == 2
    assert story.take([Refreshed(snapshot(worker(2), epoch=2)), object()]) == []


def test_the_end():
    """A last exit may not have been heard of; then nobody is left."""
    story = HookCalls(began=True, was_ready=True)
    story.take([Joined(snapshot(worker(1), worker(2), state="running"), again=False), event("exit", worker(2))])
    (last, end) = story.end()
    assert (last[0], last[1][0].id, end) == ("child_exit", 1, ("on_exit", ()))
    assert story.cluster.workers == ()


def test_a_worker_that_leaves_is_seen_to_leave():
    """Hooks see the state a worker was last told in."""
    story = HookCalls(began=True, was_ready=True)
    story.take([Joined(snapshot(worker(1), state="running"), again=False)])
    assert story.take([event("disconnect", worker(1, state="draining"))]) == []
    assert [there.state for there in story.cluster.workers] == ["draining"]


def test_what_came_before_a_new_master_in_one_batch():
    """An exit that was heard of just before the link was lost is not forgotten for what the next master says."""
    story = HookCalls(began=True, was_ready=True)
    story.take([Joined(snapshot(worker(1), worker(2), state="running"), again=False)])
    dead = worker(1, exitcode=0)
    batch = [event("exit", dead), Joined(snapshot(worker(2), state="running", epoch=2), again=True)]
    assert story.take(batch) == [("child_exit", (dead,))]


def test_an_end_before_the_beginning():
    """A cluster that ends before anything was heard of it has nobody to miss."""
    assert HookCalls().end() == [("on_exit", ())]

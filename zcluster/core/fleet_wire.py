"""Between messages and the fleet: what launcher, zygotes and workers say, as events; its commands, as messages.

Invariant: a translation, and nothing else: no state, and nothing is decided here.
"""

from zcluster.core import fleet_events as f
from zcluster.core import messages as m


def for_launcher(command: f.StartZygote | f.EndZygote | f.Commit | f.KeepReload | f.Running) -> m.Control:
    """The message by which a master has the launcher do, or keep, what its fleet decided."""
    match command:
        case f.StartZygote(generation=generation):
            return m.StartZygote(generation)
        case f.EndZygote(generation=generation):
            return m.EndZygote(generation)
        case f.Commit(generation=generation):
            return m.Commit(generation)
        case f.KeepReload(tokens=tokens):
            return m.Reload(tokens)
        case _:
            return m.Running(command.workers)


def of_launcher(message: m.Size | m.Commit | m.Reload | m.Stop) -> f.FleetEvent:
    """What a launcher has kept for us, or passes on."""
    match message:
        case m.Size(slots=slots, env=env):
            return f.Sized(slots, env)
        case m.Commit(generation=generation):
            return f.Committed(generation)
        case m.Reload(tokens=tokens):
            return f.Unfinished(tokens)
        case _:
            return f.Stop(message.quick, message.why, message.delayed)


def of_zygote(generation: int, message: m.Control, epoch: int) -> f.FleetEvent | None:
    """What the zygote of this generation says; nothing when that is meant for a master before us."""
    match message:
        case m.Imported(unsafe=unsafe):
            return f.Imported(generation, unsafe)
        case m.ImportFailed(text=text):
            return f.ImportFailed(generation, text)
        case m.Forked(worker=worker):
            return f.Forked(worker)
        case m.ForkFailed(worker=id_, text=text):
            return f.ForkFailed(id_, text)
        case m.Synced(epoch=asked, imported=imported, forks=forks) if asked == epoch:
            return f.Synced(forks, imported)
    return None


def of_worker(id_: int, message: m.Message) -> f.FleetEvent:
    """What a worker that is admitted says; whatever it is, it is a sign of life."""
    match message:
        case m.Ready():
            return f.Ready(id_)
        case m.Beat():
            return f.Heard(id_, message)
        case m.Leaving(reason=reason):
            return f.Leaving(id_, reason)
        case _:
            return f.Heard(id_)

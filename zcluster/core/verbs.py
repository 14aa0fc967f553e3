"""The verbs by which handles and the command line change a cluster, read into the fleet's questions.

Invariant: what comes out is something the fleet can be asked; whatever else was sent is answered by a text that says
how it should have been.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import Raw, Struct, ValidationError, msgpack

from zcluster.core import fleet_events as f
from zcluster.errors import BusError

TOKEN_MAX_CHARS: Final = 64  # 256 of them travel in one control message
SIZE_MAX: Final = 1 << 20  # anything beyond is a slip, whatever the number of lanes
VERBS: Final = frozenset({"scale", "fork", "disconnect", "reload", "restart", "kill"})
SIGNAL_MAX: Final = 64  # SIGRTMAX on every Linux we run on; 0 would be a question, not a signal
NO_RELOAD: Final = (
    "the app of this cluster lives in the memory of the program that started it, so there is no code to load again; "
    "move the app into a module and name it as MODULE:ATTRIBUTE"
)


class Unclear(BusError):
    """The arguments of a verb are not what it takes."""


class _Scale(Struct, forbid_unknown_fields=True):
    to: int | None = None
    by: int | None = None


class _Fork(Struct, forbid_unknown_fields=True):
    env: dict[str, str] = {}


class _Disconnect(Struct, forbid_unknown_fields=True):
    worker: int | None = None


class _Reload(Struct, forbid_unknown_fields=True):
    token: str


class _Restart(Struct, forbid_unknown_fields=True):
    slot: int
    worker: int = 0


class _Kill(Struct, forbid_unknown_fields=True):
    slot: int
    signal: int
    worker: int = 0


def question(verb: str, args: Raw, asker: f.Asker) -> f.Question:
    """Read one of VERBS; raises Unclear."""
    given = Raw(b"\x80") if bytes(args) == b"\xc0" else args  # none at all are the same as {}
    try:
        match verb:
            case "scale":
                return _scale(msgpack.decode(given, type=_Scale), asker)
            case "fork":
                return f.Open(asker, _checked(msgpack.decode(given, type=_Fork).env))
            case "disconnect":
                return f.Close(asker, msgpack.decode(given, type=_Disconnect).worker)
            case "reload":
                token = msgpack.decode(given, type=_Reload).token
                if not 0 < len(token) <= TOKEN_MAX_CHARS:
                    raise Unclear(f"the token of a reload has 1 to {TOKEN_MAX_CHARS} characters, not {len(token)}")
                return f.Reload(asker, token)
            case "restart":
                wish = msgpack.decode(given, type=_Restart)
                return f.Restart(asker, wish.slot, wish.worker)
            case "kill":
                blow = msgpack.decode(given, type=_Kill)
                if not 1 <= blow.signal <= SIGNAL_MAX:
                    raise Unclear(f"there is no signal {blow.signal}; signals are 1 to {SIGNAL_MAX}")
                return f.Signal(asker, blow.slot, blow.signal, blow.worker)
    # As the bus's own decoder: whatever the bytes are, it is one of these.
    except (ValidationError, ValueError, RecursionError, MemoryError) as error:
        raise Unclear(f"the arguments of {verb!r} cannot be understood: {error}") from error
    raise Unclear(f"this master does not know the verb {verb!r:.50}")


def _scale(args: _Scale, asker: f.Asker) -> f.Scale:
    if (args.to is None) == (args.by is None):
        raise Unclear("the arguments of 'scale' are {'to': N} or {'by': +N or -N}")
    if args.to is not None and args.to < 0:
        raise Unclear(f"a cluster cannot have {args.to} workers")
    if max(abs(args.to or 0), abs(args.by or 0)) > SIZE_MAX:
        raise Unclear(f"a cluster has at most {SIZE_MAX} workers")
    return f.Scale(asker, args.to, args.by or 0)


def _checked(env: Mapping[str, str]) -> Mapping[str, str]:
    """What execve(2) and setenv(3) would refuse, or cut off, is refused here."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise Unclear(f"{name!r:.100} cannot be the name of an environment variable")
        if "\0" in value:
            raise Unclear(f"the value of the environment variable {name!r:.100} has a NUL in it")
    return env

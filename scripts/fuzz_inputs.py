"""What a fuzzer feeds: bytes that were good once, values of any annotation, and the smallest input that still fails.

Invariant: everything comes from the `random.Random` that is given, so a seed and a number name an input for ever.
"""

import typing
from functools import cache

import msgspec

INTS = (
    *(0, 1, 2, 3, 5, -1, 31, 32, 33, 64, 127, 128, 255, 65_535, 65_536, 2**31, 2**32 - 1, 2**53, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
)
FLOATS = (0.0, 1.5, -1.0, 0.001, 1e300, -1e300, 5e-324, float("nan"), float("inf"), float("-inf"))
NAMES = (
    *("master", "worker:1", "worker:2", "worker:3", "handle:1-a", "handle:1-b", "handles", "t", "topic"),
    *("", "worker:", "worker:-1", "worker:\u0663", "worker:" + "9" * 5000, "worker:\u00b2", "handle:1-" + "x" * 300),
    *("a\0b", "\u00e9" * 200, "probe:00", "\U0001f600"),
)
VERBS = ("snapshot", "stop", "scale", "fork", "disconnect", "reload", "restart", "kill", "")
WORDS = ("to", "by", "env", "worker", "token", "slot", "signal", "quick", "other")
BYTES = (b"", b"x", b"\x00" * 16, b"a" * 16, b"b" * 16, b"\xc0", b"y" * 300)
_DEPTH_MAX = 4


def small(random):
    """An integer as there are most of, or one at an edge."""
    return random.randrange(8) if random.random() < 0.7 else random.choice(INTS)


def plain(random, depth=0):
    """Any value that msgpack and TOML know, nested a little."""
    kind = random.randrange(9 if depth < _DEPTH_MAX else 6)
    if kind < 2:
        return small(random)
    if kind == 2:
        return random.choice(FLOATS)
    if kind == 3:
        return random.choice((None, True, False))
    if kind == 4:
        return random.choice(NAMES)
    if kind == 5:
        return random.choice(BYTES)
    if kind == 6:
        return [plain(random, depth + 1) for _ in range(random.randrange(4))]
    return {random.choice(WORDS): plain(random, depth + 1) for _ in range(random.randrange(4))}


@cache
def _hints(kind):
    return typing.get_type_hints(kind)


def instance(random, kind, **fixed):
    """A struct of this kind, its fields filled by their annotations, but for those given."""
    values = {name: fixed[name] if name in fixed else of_hint(random, hint) for name, hint in _hints(kind).items()}
    return kind(**values)


def of_hint(random, hint):
    """A value of one annotation."""
    if hint is int:
        return small(random)
    if hint is float:
        return random.choice(FLOATS) if random.random() < 0.5 else random.uniform(0.0, 10.0)
    if hint is str:
        return random.choice(VERBS if random.random() < 0.3 else NAMES)
    if hint is bool:
        return random.random() < 0.5
    if hint is bytes:
        return random.choice(BYTES)
    if hint is msgspec.Raw:
        return msgspec.Raw(msgspec.msgpack.encode(plain(random)))
    if hint is type(None):
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return random.choice(args)
    if origin is dict:
        return {of_hint(random, args[0]): of_hint(random, args[1]) for _ in range(random.randrange(4))}
    if origin is tuple and args[-1] is not ...:
        return tuple(of_hint(random, arg) for arg in args)
    if origin is tuple:
        return tuple(of_hint(random, args[0]) for _ in range(random.randrange(3)))
    if args:
        return of_hint(random, random.choice(args))
    return instance(random, hint)


def mutated(random, data, tokens, others=()):
    """These bytes after a few changes: flips, cuts, repetitions, tokens put in, a splice with another sample."""
    data = bytearray(data)
    for _ in range(1 + min(int(random.expovariate(0.7)), 12)):
        place = random.randrange(len(data) + 1)
        change = random.randrange(9)
        if change == 0 and data:
            data[place % len(data)] ^= 1 << random.randrange(8)
        elif change == 1 and data:
            data[place % len(data)] = random.randrange(256)
        elif change == 2:
            del data[place : place + 1 + min(int(random.expovariate(0.2)), 200)]
        elif change == 3:
            data[place:place] = data[place : place + 1 + random.randrange(20)] * random.choice((1, 2, 50))
        elif change == 4:
            data[place:place] = random.choice(tokens)
        elif change == 5:
            token = random.choice(tokens)
            data[place : place + len(token)] = token
        elif change == 6 and others:
            other = random.choice(others)
            data[place:] = other[random.randrange(len(other) + 1) :]
        elif change == 7:
            data[place:place] = random.randbytes(random.randrange(1, 9))
        else:
            data = data[place:] + data[:place] if random.random() < 0.2 else data[:place] + data[place:]
    return bytes(data[:200_000])  # longer is slower, and no limit of ours is beyond


def pieces(random, data):
    """These bytes cut at random places, sometimes each on its own."""
    if len(data) < 400 and random.random() < 0.2:
        return [data[index : index + 1] for index in range(len(data))]
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(1, 6)))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def smallest(value, still_fails, tries=400):
    """The input with all left out that is not needed to fail: of a list its items, of bytes its stretches."""
    if not isinstance(value, list | bytes):
        return value
    size = max(1, len(value) // 2)
    while size and tries > 0:
        place = 0
        while place < len(value) and tries > 0:
            shorter = value[:place] + value[place + size :]
            tries -= 1
            if still_fails(shorter):
                value = shorter
            else:
                place += size
        size //= 2
    return value

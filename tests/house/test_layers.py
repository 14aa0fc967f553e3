"""The picture every session draws from memory holds: who may import whom, and what only one place may do."""

import ast
import re
import sys

import pytest
from sources import ROOT, Source, sources

LEAVES = {
    *("config", "configcheck", "describing", "configfile", "option", "resolution", "tomllines"),
    *("addresses", "accessformat", "trustedpeers", "errors", "current", "subscriptions", "hooks"),
}
TOOLS = {"bus", "unix", "http"}
# The doors of the picture, the names behind them, and where a process of ours begins.
DOORS = {
    *("cli", "cluster", "counter", "messaging", "testing"),
    *("__main__", "start", "whoami", "tables", "follower", "roster", "callbacks", "owned", "launched", "compat"),
    *("handle", "news", "orders", "parameters", "preview", "stacks", "logview", "unit", "operating", "watching"),
    "forhandle",
}
# What a pure module may import of the standard library: nothing that knows the time, a process, a file or chance.
PURE = {
    *("abc", "bisect", "collections", "collections.abc", "contextlib", "copy", "dataclasses", "enum", "functools"),
    *(
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "operator",
        "re",
        "string",
        "struct",
        "sys",
        "types",
        "typing",
        "zlib",
    ),
}
IMPURE_BUILTINS = {"open", "print", "input", "exec", "eval", "__import__"}


def place(module: str) -> tuple[int, str]:
    """The layer of a module of ours, 0 the lowest, and its box in that layer."""
    parts = module.split(".")
    if len(parts) == 1:
        return 4, "zcluster"
    box = parts[1]
    if box in LEAVES:
        return 0, box
    if box == "core":
        return 1, box
    if box in TOOLS:
        return 2, box
    if box == "bodies":
        return 3, ".".join(parts[1:])
    assert box in DOORS, f"zcluster.{box} stands in no layer: put it into a folder, or name it here as a door"
    return 4, box


def may_import(importer: str, imported: str) -> bool:
    """Lower layers always; in the same layer core, doors and a box's own modules; never another tool or body."""
    own, theirs = place(importer), place(imported)
    if imported == "zcluster" or imported == "zcluster.bodies":
        return theirs[0] == 3 or own[0] == 4
    return theirs[0] < own[0] or (theirs[0] == own[0] and (own[0] in (0, 1, 4) or own[1] == theirs[1]))


def calls(source: Source) -> list[tuple[str, int]]:
    """Every call by its dotted name, with its line."""
    return [(ast.unparse(n.func), n.lineno) for n in ast.walk(source.tree) if isinstance(n, ast.Call)]


def offenders(pattern: str, *, allowed: str = "(?!)") -> list[str]:
    """Where a module whose name does not match `allowed` imports a module that matches `pattern`."""
    return [
        f"{source.name}:{line} imports {module}"
        for source in sources()
        for module, line in source.imports()
        if re.fullmatch(pattern, module) and not re.fullmatch(allowed, source.name)
    ]


def test_a_layer_imports_only_lower_ones():
    """Tools do not know each other, bodies do not know each other, nobody knows what stands above."""
    wrong = [
        f"{source.name}:{line} imports {module}"
        for source in sources()
        for module, line in source.imports()
        if module.split(".")[0] == "zcluster" and not may_import(source.name, module)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("zcluster.core.fleet", "zcluster.core.policy", True),
        ("zcluster.core.fleet", "zcluster.unix.process", False),
        ("zcluster.bus.hub", "zcluster.core.codec", True),
        ("zcluster.bus.hub", "zcluster.unix.process", False),
        ("zcluster.bodies.master", "zcluster.bus.hub", True),
        ("zcluster.bodies.master", "zcluster.bodies.worker", False),
        ("zcluster.bodies.worker", "zcluster.counter", False),
        ("zcluster.cli", "zcluster.cluster", True),
        ("zcluster.errors", "zcluster.core.messages", False),
    ],
)
def test_the_rule_tells_right_from_wrong(importer, imported, allowed):
    """The rule itself refuses what the picture forbids, so an empty list of offenders means something."""
    assert may_import(importer, imported) is allowed


def test_core_is_pure():
    """Core modules import only core, leaves, msgspec and the pure part of the standard library, and do no I/O."""
    wrong = []
    for source in sources():
        if place(source.name)[0] != 1:
            continue
        wrong += [
            f"{source.name}:{line} imports {module}"
            for module, line in source.imports()
            if module not in PURE and module.split(".")[0] not in ("zcluster", "msgspec")
        ]
        wrong += [f"{source.name}:{line} calls {name}" for name, line in calls(source) if name in IMPURE_BUILTINS]
    assert not wrong, "\n".join(wrong)


def test_only_the_bus_speaks_zeromq():
    """Nobody else imports zmq, and nobody its asyncio half."""
    assert not offenders(r"zmq(\..*)?", allowed=r"zcluster\.bus(\..*)?")
    assert not offenders(r"zmq\.asyncio")


def test_forks_happen_in_two_places():
    """Every fork goes through unix.process (workers) or unix.offspring (an app that only lives in memory)."""
    allowed = {"zcluster.unix.process", "zcluster.unix.offspring"}
    wrong = [
        f"{source.name}:{line} calls {name}"
        for source in sources()
        for name, line in calls(source)
        if name in ("os.fork", "os.forkpty", "pty.fork") and source.name not in allowed
    ]
    assert not wrong, "\n".join(wrong)
    # Of `concurrent.futures` the one class that makes neither threads nor processes.
    assert not offenders(r"multiprocessing(\..*)?|concurrent\.futures(\..*)?", allowed=r"zcluster\.bus\.calls")


def test_launcher_and_zygote_have_one_thread_and_no_bus():
    """What forks or must never fail starts no threads and has no ZeroMQ context."""
    bodies = r"zcluster\.bodies\.(launcher|zygote)"
    wrong = [
        f"{source.name}:{line} imports {module}"
        for source in sources()
        for module, line in source.imports()
        if re.fullmatch(bodies, source.name) and re.fullmatch(r"threading|zmq|zcluster\.bus(\..*)?", module)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_master_imports_no_app():
    """Nothing of the user's runs in the master or the launcher: they have no means to import it."""
    wrong = [
        f"{source.name}:{line} imports {module}"
        for source in sources()
        for module, line in source.imports()
        if re.fullmatch(r"zcluster\.bodies\.(master|launcher)", source.name) and module.split(".")[0] == "importlib"
    ]
    assert not wrong, "\n".join(wrong)


def test_forbidden_modules_stay_out():
    """No pickle, no development servers, no asyncio: each was decided against."""
    assert not offenders(
        r"pickle|marshal|shelve|http\.server|wsgiref\.(simple_server|handlers)|werkzeug\.serving|asyncio(\..*)?"
    )


def test_shared_cells_are_stored_whole():
    """struct.pack_into zeroes before it writes, so a reader could see a counter at zero."""
    wrong = [f"{s.name}:{line}" for s in sources() for name, line in calls(s) if name.endswith("pack_into")]
    assert not wrong, "\n".join(wrong)


# Only pytest imports the one, so pytest is there; the other is started when --reload has found the extra.
EXTRAS = {("zcluster.testing.plugin", "pytest"), ("zcluster.bodies.watcher", "watchfiles")}


def test_only_declared_libraries_are_imported():
    """Whatever is imported is ours, of the standard library, or among the dependencies of pyproject."""
    known = {"zcluster", "zmq", "werkzeug", "msgspec", "click", *sys.stdlib_module_names}
    wrong = [
        f"{source.name}:{line} imports {module}"
        for source in sources()
        for module, line in source.imports()
        if module.split(".")[0] not in known and (source.name, module) not in EXTRAS
    ]
    assert not wrong, "\n".join(wrong)


# What says what became of a request: all of `http.failures` ends in a line of the log, or in a client that has gone.
FAILURES = set(re.findall(r"^def (\w+)", (ROOT / "zcluster/http/failures.py").read_text(), re.M))
TELLS = re.compile(r"\b_?log\b|\btraceback\b|\braise\b|\bos\._exit\b")


def is_told(broad: ast.ExceptHandler, tree: ast.Module) -> bool:
    """Whether this clause logs, reports or re-raises, itself or in a function of ours that it calls."""
    body = "\n".join(ast.unparse(statement) for statement in broad.body)
    called = {
        ast.unparse(node.func).removeprefix("self.").removeprefix("failures.")
        for statement in broad.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Call)
    }
    told_there = (
        TELLS.search(ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in called
    )
    return bool(TELLS.search(body)) or any(told_there) or bool(called & FAILURES)


def test_no_broad_except_is_silent():
    """A bare except never; a broad one only if it logs, reports, re-raises or ends the process."""
    wrong = []
    for source in sources():
        tree = source.tree
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else ""
            if re.search(r"^$|\b(Base)?Exception\b", caught) and (not caught or not is_told(node, tree)):
                wrong.append(f"{source.path.relative_to(ROOT)}:{node.lineno} except {caught}")
    assert not wrong, "\n".join(wrong)


def test_a_silent_except_is_found():
    """The search tells a swallowed error from a logged one."""
    swallowed = ast.parse("def f():\n    try:\n        g()\n    except Exception:\n        pass")
    logged = ast.parse("def f():\n    try:\n        g()\n    except Exception:\n        log.exception('g')")
    for tree, told in ((swallowed, False), (logged, True)):
        clause = next(node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))
        assert is_told(clause, tree) is told

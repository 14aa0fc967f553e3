"""The package's face: every public name is there, lazily, and nothing shadows it."""

import ast
import json
import subprocess
import sys

import pytest
from sources import ROOT, sources

import zcluster


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", zcluster.__all__)
def test_every_public_name_can_be_imported(name):
    """What __all__ promises is there, is found by dir(), and is the same object each time."""
    assert name in dir(zcluster)
    assert getattr(zcluster, name) is getattr(zcluster, name)


def test_an_unknown_name_is_an_attribute_error():
    """The lazy package answers a wrong name as every module does."""
    with pytest.raises(AttributeError, match=r"'zcluster' has no attribute 'Clutser'"):
        _ = zcluster.Clutser


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING are exactly the lazy names."""
    tree = next(source.tree for source in sources() if source.name == "zcluster")
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.name for node in guard.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == sorted(zcluster.__all__)


def test_no_module_shares_a_name_with_a_public_object():
    """Importing a submodule sets it as an attribute of the package, which would replace the object."""
    modules = {source.name.split(".")[1] for source in sources() if source.name != "zcluster"}
    assert not modules & set(zcluster.__all__)


def test_importing_the_package_imports_nothing_else_of_it():
    """The launcher blocks its signals before anything heavy is loaded, so the package itself must be empty."""
    code = (
        "import sys, zcluster, json; print(json.dumps([m for m in sys.modules if m.startswith(('zcluster', 'zmq'))]))"
    )
    assert json.loads(run_python(code)) == ["zcluster"]


def test_signals_are_blocked_before_the_command_line_is_imported():
    """When `run` imports its first module of ours, every signal of the launcher is already being kept."""
    code = """
import signal, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "zcluster.cli":
            print(*sorted(s.name for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])))
sys.meta_path.insert(0, Watch())
sys.argv = ["zcluster", "run", "--help"]
from zcluster.__main__ import main
assert main() == 0
"""
    first = run_python(code).splitlines()[0].split()
    assert first == ["SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2"]


def test_other_commands_block_no_signals():
    """Ctrl-C ends `zcluster ps` as it ends every other program."""
    code = """
import signal, sys
sys.argv = ["zcluster", "ps", "--help"]
from zcluster.__main__ import main
assert main() == 0
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""
    assert run_python(code).splitlines()[-1] == "set()"


def test_worker_is_false_outside_a_worker():
    """`if worker:` is the way to ask; reading on raises an error that says so."""
    assert not zcluster.worker
    for field in ("id", "slot", "pid", "generation"):
        with pytest.raises(zcluster.ClusterError, match=f"worker.{field} was read in a process that is no worker"):
            getattr(zcluster.worker, field)
    assert "not in a worker" in repr(zcluster.worker)


def test_worker_tells_what_the_body_put_there(monkeypatch):
    """Inside a worker the facts come from `current`."""
    from zcluster import current
    from zcluster.core.messages import WorkerInfo

    monkeypatch.setattr(current, "role", "worker")
    monkeypatch.setattr(current, "worker", WorkerInfo(id=7, slot=2, lane=3, generation=1, pid=4711))
    worker = zcluster.worker
    assert worker
    assert (worker.id, worker.slot, worker.pid, worker.generation) == (7, 2, 4711, 1)

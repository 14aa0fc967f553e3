"""Finding the operator's hooks, and calling them."""

import logging

import pytest

from zcluster.errors import AppError
from zcluster.unix.hooked import Hooked, find_hooks

MODULE = """
from zcluster import Hooks

class Good(Hooks):
    told = []
    def post_fork(self, worker): self.told.append(worker)
    def worker_exit(self, worker): raise SystemExit("never mind")
    def exit_code(self): "a function of its own"

class Plain:
    def when_ready(self, *given): self.given = given

class Slip(Hooks):
    def post_frok(self, worker): pass

class Gunicorns:
    def post_fork(self, server, worker): pass

class Middleware:
    def pre_request(self, worker, request): pass

class Angry:
    def __init__(self): raise ValueError("not today")

value = 3
"""


@pytest.fixture(autouse=True)
def _importable(tmp_path, monkeypatch):
    (tmp_path / "hooked_module.py").write_text(MODULE)
    (tmp_path / "hooked_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_what_is_defined_is_called():
    """With its arguments; what is not defined is not there, and costs a look."""
    hooked = Hooked("hooked_module:Good")
    assert [name for name in ("post_fork", "post_worker_init", "on_exit") if hooked.has(name)] == ["post_fork"]
    hooked.must_run("post_fork", 7)
    hooked.run("post_worker_init", 7)
    assert find_hooks("hooked_module:Good").told[-1] == 7
    plain = Hooked("hooked_module:Plain")
    plain.run("when_ready", 1)
    assert plain._given.given == (1,)
    assert not Hooked("").has("post_fork")


def test_what_a_hook_raises(caplog):
    """Is logged with its traceback; or is an error of the app's, where that is wanted."""
    hooked = Hooked("hooked_module:Good")
    with caplog.at_level(logging.ERROR, "zcluster"):
        hooked.run("worker_exit", 7)
    assert "the hook worker_exit() of hooked_module:Good raised" in caplog.text
    assert "never mind" in caplog.text
    with pytest.raises(AppError, match=r"raised in worker_exit\(\):\nTraceback") as raised:
        hooked.must_run("worker_exit", 7)
    assert "hooked.py" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nowhere_at_all:Hooks", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("hooked_module:Nobody", "has no attribute 'Nobody'"),
        ("hooked_broken:Hooks", "ZeroDivisionError"),
        ("hooked_module:value", "are 3, but should be a class"),
        ("hooked_module:Slip", r"post_frok\(\), which nobody calls; did you mean post_fork\(\)\?"),
        ("hooked_module:Gunicorns", r"post_fork\(\) .* cannot be called: it is given \(self, worker\)"),
        ("hooked_module:Middleware", r"pre_request\(\), which is not offered: wrap the app in WSGI middleware"),
        ("hooked_module:Angry", "raised when they were made:\n(.*\n)+ValueError: not today"),
    ],
)
def test_what_cannot_be_used_is_named(text, said):
    """At the start, not when the hook would have been needed."""
    with pytest.raises(AppError, match=said):
        Hooked(text)

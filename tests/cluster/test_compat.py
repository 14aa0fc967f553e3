"""Programs in the shape of Node's cluster module, run as their users run them."""

import os
import subprocess
import sys

import pytest
from handle_rig import ROOT

PROGRAM = """
import os, sys
from zcluster import compat as cluster


def say(*words):
    os.write(1, " ".join([*map(str, words), ""]).rstrip().encode() + b"\\n")  # in one piece: threads speak at once


if cluster.is_primary:
    assert not cluster.is_worker and not cluster.worker
    assert (cluster.workers, dict(cluster.settings), cluster.exited_after_disconnect) == ({}, {}, None)
    cluster.on("setup", lambda settings: say("setup", settings["threads"]))
    cluster.setup_primary(bind="127.0.0.1:0", threads=2, run_dir=os.environ["RUN_DIR"], graceful_timeout_s=2)
    assert cluster.settings["threads"] == 2
    for number in range(3):
        forked = cluster.fork({"NUMBER": str(number)})
        assert cluster.workers[forked.id] is forked
    for event in ("fork", "online", "listening"):
        cluster.on(event, lambda worker, *more, event=event: say(event, worker.id, *more[1:]))
    greeted = []

    @cluster.on("message")
    def on_message(worker, message):
        say("message", worker.id, message)
        greeted.append(worker)
        if len(greeted) == 3:
            cluster.workers[2].kill("SIGKILL")
        elif len(greeted) == 4:
            cluster.disconnect(lambda: say("all gone", cluster.workers))

    @cluster.on("exit")
    def on_exit(worker, code, signal):
        say("exit", worker.id, code, signal, worker.exited_after_disconnect)
        if not worker.exited_after_disconnect:
            say("replaced by", cluster.fork().slot, "of", len(cluster.workers))

    say("last line")
else:
    import threading

    @cluster.worker.on("disconnect")
    def on_disconnect():
        say("leaving", cluster.worker.id, cluster.exited_after_disconnect)

    def greet():
        assert cluster.is_worker and not cluster.is_primary and cluster.exited_after_disconnect is None
        try:
            cluster.fork()
        except Exception as error:
            cluster.worker.send([os.environ["NUMBER"], type(error).__name__])

    class App:
        def __call__(self, environ, start_response):
            start_response("200 OK", [])
            return [b""]

    def app():
        greet()
        return App()
"""


@pytest.fixture
def run(run_dir, tmp_path):
    """Run a program from a file of its own; returns what it printed, its errors and its exit code."""

    def run(text):
        path = tmp_path / "program.py"
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RUN_DIR": str(run_dir)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        return done.stdout.splitlines(), done.stderr, done.returncode

    return run


def test_a_program_in_nodes_shape(run):
    """It forks, hears, respawns, disconnects, and ends by itself when the last worker has gone."""
    text = PROGRAM.replace("threads=2, run_dir", 'threads=2, preload="off", app="program:app()", run_dir')
    lines, errors, code = run(text)
    assert code == 0, errors
    assert "Traceback" not in errors
    assert lines.count("setup 2") == 2  # of setup_primary, and of the first fork
    by_worker = {number: [line for line in lines if line.split()[1:2] == [str(number)]] for number in (1, 2, 3, 4)}
    for number in (1, 3):
        assert by_worker[number][:3] == [f"fork {number}", f"online {number}", by_worker[number][2]]
        assert f"message {number} ['{number - 1}', 'ClusterError']" in by_worker[number]
        assert by_worker[number][-1] == f"exit {number} 0 None True"
        assert f"leaving {number} True" in by_worker[number]
    assert by_worker[2][-1] == "exit 2 None 9 False"
    assert "message 4 ['1', 'ClusterError']" in lines  # the environment is the slot's
    assert "replaced by 1 of 3" in lines
    assert lines[-1] == "all gone {}"
    assert "exit 4 0 None True" in lines


def test_a_program_that_fails_ends_at_once(run):
    """With its traceback and exit code; its workers go with it, as in Node."""
    text = PROGRAM.replace('    say("last line"', '    raise RuntimeError("on fire")\n    say("last line"')
    _lines, errors, code = run(text.replace("def app():\n        greet()", "def app():\n        pass"))
    assert code == 1
    assert "RuntimeError: on fire" in errors


def test_an_app_that_cannot_be_imported_fails_the_fork(run):
    """With the reason, as an error of the application."""
    lines, _errors, code = run(
        "import os\n"
        "from zcluster import AppError, compat as cluster\n"
        "if cluster.is_primary:\n"
        "    cluster.disconnect(lambda: os.write(1, b'nobody\\n'))\n"
        "    cluster.setup_primary(app='no_such_module:app', bind='127.0.0.1:0', run_dir=os.environ['RUN_DIR'])\n"
        "    try:\n"
        "        cluster.fork()\n"
        "    except AppError as error:\n"
        "        print(error)\n"
    )
    assert code == 0
    assert "no module 'no_such_module'" in lines[-1]
    assert "nobody" in lines


def test_names_that_are_not_nodes_are_refused():
    """Wrong names and events are errors as anywhere."""
    from zcluster import ClusterError, compat

    assert compat.is_primary
    with pytest.raises(AttributeError, match="no attribute 'isPrimary'"):
        _ = compat.isPrimary
    with pytest.raises(ClusterError, match="no event 'exti'"):
        compat.on("exti", print)

"""The command line, on real clusters."""

import json
import os
import signal
import subprocess
import sys

import pytest
from anatomy import kill
from handle_rig import HERE, ROOT, get

from zcluster.cli import main


def error_line(done):
    """The one line that says what was wrong."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("zcluster: error: ")
    return lines[0].removeprefix("zcluster: error: ")


def test_stdout_that_takes_nothing(launch, command_line):
    """A full disk under the output is neither a bug of ours nor a success."""
    launch()
    for words in (["ps"], ["counters", "--json"], ["logs"], ["config", "small_app:app"]):
        with open("/dev/full", "wb") as full:
            done = command_line(*words, code=1, stdout=full)
        assert error_line(done) == "stdout cannot be written: No space left on device"


def test_run_ps_counters_stop(launch, command_line):
    """The whole life of a cluster on the command line."""
    process = launch()
    assert "(2 workers, master " in process.ready
    for _ in range(3):
        get(process.url)
    table = command_line("ps").stdout
    assert table.startswith(f"small_app  running  {process.url}\n")
    assert f"launcher {process.pid}" in table
    seen = json.loads(command_line("ps", "--json", "--name", "small_app").stdout)
    assert (seen["name"], seen["url"], seen["urls"], seen["epoch"]) == ("small_app", process.url, [process.url], 1)
    assert (seen["launcher_pid"], seen["state"], seen["counters"]) == (process.pid, "running", {"requests": 3})
    assert sorted(worker["slot"] for worker in seen["workers"]) == [0, 1]
    assert f"master {seen['master_pid']})" in process.ready
    assert command_line("counters").stdout == "requests  3\n"
    assert json.loads(command_line("counters", "--json").stdout) == {"requests": 3}
    command_line("stop", "--wait")
    assert process.wait(20) == 0
    assert process.stdout.read() == ""


def test_stop_quick_returns_at_once(launch, command_line):
    """Without --wait the order is given, and the cluster ends by itself."""
    process = launch()
    command_line("stop", "--quick")
    assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_end_it_cleanly(launch, number):
    """TERM, INT and QUIT to the launcher: exit code 0."""
    process = launch()
    process.send_signal(number)
    assert process.wait(20) == 0


def test_no_cluster_is_running(command_line, run_dir):
    """Exit code 4, and where it looked."""
    for command in ("ps", "counters", "stop"):
        assert f"looked in {run_dir}" in error_line(command_line(command, code=4))
    assert "no cluster named 'x' is running" in error_line(command_line("ps", "--name", "x", code=4))


def test_several_clusters_must_be_named(launch, command_line):
    """Exit code 2 and their names; with --name it works."""
    launch("--name", "one")
    launch("--name", "two")
    assert "several clusters are running: one, two; choose one with --name" in error_line(command_line("ps", code=2))
    assert json.loads(command_line("ps", "--json", "--name", "two").stdout)["name"] == "two"
    assert "running are: one, two" in error_line(command_line("stop", "--name", "three", code=4))


def test_a_master_that_does_not_answer(launch, command_line):
    """After 5 s the operator reads that it is so, and what to do; CONT, and all is well."""
    process = launch()
    master = json.loads(command_line("ps", "--json").stdout)["master_pid"]
    kill(master, number=signal.SIGSTOP)
    try:
        said = error_line(command_line("ps", code=4))
    finally:
        kill(master, number=signal.SIGCONT)
    assert "did not answer within 5 s" in said
    assert f"kill -TERM {process.pid}" in said
    assert command_line("counters").stdout == "requests  0\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "Missing argument 'APP'."),
        (["run", "a:b", "--nope"], "No such option"),
        (["run", "a:b", "--workers", "0"], "--workers is '0', but should be a number from 1 on, or 'auto'"),
        (["run", "a:b", "--backlog", "x"], "Invalid value for '--backlog'"),
        (["run", "a:b", "--bind", "nowhere"], "cannot bind to 'nowhere': it has no port"),
        (["run", "a:b", "--log-level", "loud"], "Invalid value for '--log-level'"),
        (["run", "a:b", "--heartbeat", "nan"], "--heartbeat is nan"),
        (["sing"], "No such command 'sing'"),
        (["ps", "--jsn"], "No such option"),
    ],
)
def test_nonsense_ends_with_2(capsys, arguments, said):
    """One line on stderr that names what was given."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"zcluster: error: {said}")
    assert err.count("\n") == 1


def test_help_and_version(capsys):
    """Both go to stdout and succeed; without a command the help is shown."""
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main(["run", "-h"]) == 0
    assert "--graceful-timeout" in capsys.readouterr().out


def test_a_bug_is_reported_as_one(capsys, monkeypatch):
    """What nobody foresaw: a traceback and exit code 70."""
    monkeypatch.setattr("zcluster.cluster.Cluster.attach", lambda *a, **k: 1 / 0)
    assert main(["ps"]) == 70
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert err.splitlines()[-1].startswith("zcluster: error: this is a bug")


def test_output_that_nobody_reads(launch, run_dir):
    """`zcluster ps | head -0` ends without a complaint."""
    launch()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ZCLUSTER_RUN_DIR": str(run_dir)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "zcluster", "ps"], cwd=HERE, env=env, stdout=writer, stderr=subprocess.PIPE, timeout=30
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")  # as click has it


def test_app_errors_end_with_3(command_line):
    """The application's fault has its own exit code and the reason as text."""
    done = command_line("run", "small_app:broken()", "--bind", "127.0.0.1:0", code=3)
    assert "the database is on fire" in done.stderr
    assert "zcluster: error: " in done.stderr
    assert done.stdout == ""


def test_a_name_that_is_taken_ends_with_4(launch, command_line):
    """The first cluster is untouched."""
    process = launch("--name", "mine")
    done = command_line("run", "small_app:app", "--bind", "127.0.0.1:0", "--name", "mine", code=4)
    assert "'mine' is already running" in error_line(done)
    assert get(process.url)

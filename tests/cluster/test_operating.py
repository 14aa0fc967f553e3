"""What an operator has a running cluster do from the command line: another size, other code."""

import pytest
from handle_rig import options, run_dir  # noqa: F401  (fixtures)
from verbs_rig import HOLD, verbs

from zcluster import Cluster
from zcluster.cli import main


def said(done):
    """What a command that failed has to say."""
    assert done.stdout == ""
    assert done.stderr.startswith("zcluster: error: "), done.stderr
    return done.stderr.removeprefix("zcluster: error: ")


def test_scale(tmp_path):
    """To a number and by one; with --wait all is done when it returns; what cannot be is refused."""
    with verbs(tmp_path, "--lanes=16", workers=1) as it:
        assert it.cluster.command_line("scale", "3", "--wait").stdout == "served: 3 workers\n"
        assert [(w["slot"], w["state"]) for w in it.workers()] == [(slot, "ready") for slot in range(3)]
        assert it.cluster.command_line("scale", "-2", "--wait").stdout == "served: 1 worker\n"
        assert list(it.pids()) == [0]
        assert it.cluster.command_line("scale", "+1").stdout == "served: 2 workers\n"
        it.whole(2)
        assert "20 workers need 40 lanes" in said(it.cluster.command_line("scale", "20", code=1))
        assert "-3 are less than none" in said(it.cluster.command_line("scale", "-5", code=1))
        it.whole(2)
        log = it.cluster.end()
    for change in ("1 to 3 workers", "3 to 1 worker", "1 to 2 workers"):
        assert f"scaled from {change}\n" in log
    assert log.count("scaled from") == 3


def test_reload(tmp_path):
    """With --wait the new code serves when it returns; without, when the order is in safe hands."""
    with verbs(tmp_path) as it:
        it.write(2)
        assert it.cluster.command_line("reload", "--wait").stdout == "served: generation 2 serves\n"
        assert it.about()["version"] == 2
        assert {w["generation"] for w in it.workers()} == {2}
        it.write(3, HOLD)
        done = it.cluster.command_line("reload")
        assert done.stdout == "served: the reload is ordered; the log tells what comes of it\n"
        assert {w["generation"] for w in it.workers()} == {2}  # its import is held
        it.go()
        it.whole(2, 3)
        assert it.about()["version"] == 3
        it.cluster.wait_log("reloaded: generation 3 serves")


def test_code_that_does_not_start(tmp_path):
    """The command ends with 1 and the traceback, and the same workers go on serving."""
    with verbs(tmp_path) as it:
        before = it.pids()
        it.write(2, "raise RuntimeError('on fire')")
        text = said(it.cluster.command_line("reload", "--wait", code=1))
        assert text.startswith("generation 2 is not taken, generation 1 goes on serving: ")
        assert "Traceback (most recent call last)" in text
        assert "RuntimeError: on fire" in text
        assert it.pids() == before
        assert it.about()["version"] == 1


def test_an_app_that_is_only_in_memory(options, command_line):  # noqa: F811
    """There is no code to load again: refused at once, with and without --wait, with what to do about it."""
    text = "hello"

    def app(environ, start_response):
        start_response("200 OK", [])
        return [text.encode()]

    with Cluster(app, **{**options, "workers": 1, "name": "remembered"}):
        for wait in ([], ["--wait"]):
            assert "move the app into a module" in said(command_line("reload", *wait, code=1))


def test_which_cluster(launch, command_line, run_dir):  # noqa: F811
    """As the other commands: 4 when there is none, 2 when there are several, --name chooses."""
    for command in (["scale", "2"], ["reload"]):
        assert f"looked in {run_dir}" in said(command_line(*command, code=4))
    launch("--name", "one")
    launch("--name", "two")
    assert "several clusters are running: one, two" in said(command_line("scale", "+1", code=2))
    assert command_line("scale", "+0", "--name", "two").stdout == "two: 2 workers\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["scale"], "Missing argument 'N|+N|-N'."),
        (["scale", "many"], "Invalid value for 'N|+N|-N': 'many' is no number of workers; give N, or a change as +N"),
        (["scale", "-x"], "No such option"),
        (["scale", "--wiat", "3"], "No such option"),
        (["scale", "1", "2"], "Got unexpected extra argument (2)"),
        (["reload", "now"], "Got unexpected extra argument (now)"),
    ],
)
def test_nonsense(capsys, arguments, text):
    """Exit code 2 and one line."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"zcluster: error: {text}")
    assert err.count("\n") == 1

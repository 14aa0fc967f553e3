"""What an operator does to one worker, and which cluster is meant."""

import pytest
from verbs_rig import until, verbs

from zcluster.cli import main

FIRE = "raise RuntimeError('on fire')"


def test_a_restart_that_fails_changes_nothing(tmp_path):
    """1 and the traceback, and the same worker serves; once it is gone, the slot waits and that is degraded."""
    with verbs(tmp_path, "--no-preload", workers=1) as it:
        assert it.cluster.command_line("restart", "0", "--wait").stdout == "served: worker 2 serves in slot 0\n"
        it.write(2, FIRE)
        said = it.cluster.command_line("restart", "0", "--wait", code=1).stderr
        assert said.startswith("zcluster: error: the new worker of slot 0 does not start; worker 2 goes on serving: ")
        assert "RuntimeError: on fire" in said
        assert [(w["id"], w["state"]) for w in it.workers()] == [(2, "ready")]
        assert it.about()["version"] == 1
        it.cluster.command_line("kill", "0")
        why = until(lambda: it.snapshot()["vacant"].get("0"), "the slot is empty")
        assert why.startswith("next attempt in ")
        assert it.snapshot()["state"] == "degraded"  # also while an attempt is made
        it.write(3)
        (worker,) = it.whole(1)["workers"]
        assert it.about()["version"] == 3
        assert it.handle.send_signal(0, "SIGUSR1") == (worker["id"], worker["pid"])
        it.cluster.end()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["restart"], "Missing argument 'SLOT'."),
        (["restart", "x"], "Invalid value for 'SLOT': 'x' is not a valid integer range."),
        (["kill", "-1"], "No such option"),
        (["kill", "0", "NOPE"], "Invalid value for SIGNAL: there is no signal 'NOPE'; give a number, or a name such"),
        (["kill", "0", "0"], "Invalid value for SIGNAL: there is no signal '0'"),
        (["send", "all"], "Missing argument 'MESSAGE'."),
        (["send", "slot:x", "hello"], "Invalid value for 'ID|slot:N|all': 'slot:x' names nobody; give a worker's id"),
        (["send", "all", "{", "--json"], "the message is no JSON: Expecting property name"),
        (["send", "all", "hello", "--request"], "--request asks one worker; give its id, or slot:N"),
        (["events", "-x"], "No such option"),
        (["counters", "--watch", "0"], "Invalid value for '--watch'"),
    ],
)
def test_nonsense(capsys, arguments, text):
    """Exit code 2 and one line, before anything is asked of a cluster."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"zcluster: error: {text}"), err
    assert err.count("\n") == 1


def test_which_cluster_is_meant(tmp_path, monkeypatch, capsys):
    """The one of the flag, of the variable, of the file: in this order. A wrong file is told and left out.

    But what changes a cluster does not take another one than the file may have named.
    """
    monkeypatch.chdir(tmp_path)

    def looked_for(*arguments, verb="ps", code=4):
        assert main([verb, *arguments]) == code
        return capsys.readouterr().err

    file = tmp_path / "zcluster.toml"
    file.write_text(f'name = "filed"\nrun-dir = "{tmp_path}"\n')
    monkeypatch.delenv("ZCLUSTER_RUN_DIR", raising=False)
    assert looked_for().startswith(f"zcluster: error: no cluster named 'filed' is running (looked in {tmp_path}/")
    monkeypatch.setenv("ZCLUSTER_NAME", "varied")
    assert "no cluster named 'varied' is running" in looked_for()
    assert "no cluster named 'flagged' is running" in looked_for("--name", "flagged")
    monkeypatch.setenv("ZCLUSTER_RUN_DIR", str(tmp_path))
    file.write_text('nmae = "filed"\n')
    said = looked_for().splitlines()
    assert said[0].startswith("zcluster: warning: zcluster.toml:1: ")
    assert said[0].endswith("looking for the cluster without the configuration")
    assert said[1].startswith("zcluster: error: no cluster named 'varied' is running")
    assert said[1].endswith("`zcluster run APP` starts one")
    assert "no cluster named 'varied' is running" in looked_for(verb="stop")
    monkeypatch.delenv("ZCLUSTER_NAME")
    monkeypatch.delenv("ZCLUSTER_RUN_DIR")
    said = looked_for(verb="stop", code=2)
    assert said.startswith("zcluster: error: zcluster.toml:1: ")
    assert said.endswith("; say which cluster is meant with --name (`zcluster ps` names those that run)\n")
    assert "no cluster named 'flagged' is running" in looked_for("--name", "flagged", verb="stop")

"""What an operator has a running cluster do by signals to the launcher: other code, another size."""

import signal

from anatomy import kill
from verbs_rig import verbs

# A session of its own: no controlling terminal, whose end HUP would announce.
SERVICE = {"start_new_session": True}


def test_hup_reloads(tmp_path):
    """New code is taken; code that does not start is reported with its traceback, and changes nothing."""
    with verbs(tmp_path, popen=SERVICE) as it:
        before = it.pids()
        it.write(2)
        it.cluster.signal(signal.SIGHUP)
        it.cluster.wait_log("reloaded: generation 2 serves")
        after = it.whole(2, 2)
        assert not set(it.pids().values()) & set(before.values())
        assert it.about()["version"] == 2
        it.write(3, "raise RuntimeError('on fire')")
        it.cluster.signal(signal.SIGHUP)
        it.cluster.wait_log(r"generation 3 is not taken, generation 2 goes on serving: (.|\n)*RuntimeError: on fire")
        assert it.whole(2, 2)["workers"][0]["id"] == after["workers"][0]["id"]
        log = it.cluster.end()
    assert log.count("SIGHUP: a reload") == 2
    assert log.count("is imported beside generation") == 2


def test_ttin_and_ttou(tmp_path):
    """One worker more, one fewer; the last one stays."""
    with verbs(tmp_path, workers=1, popen=SERVICE) as it:
        it.cluster.signal(signal.SIGTTIN)
        it.whole(2)
        it.cluster.signal(signal.SIGTTOU)
        it.whole(1)
        it.cluster.signal(signal.SIGTTOU)
        it.cluster.wait_log("not scaled: there is 1 worker left")
        it.whole(1)
        log = it.cluster.end()
    assert log.count("scaled from") == 2


def test_signals_that_no_master_has_taken(tmp_path):
    """Told to one that did not read them any more: the next one does all of it, and each thing once."""
    with verbs(tmp_path, popen=SERVICE) as it:
        it.whole(2, 1)
        it.write(2)
        master = it.snapshot()["master_pid"]
        kill(master, number=signal.SIGSTOP)
        it.cluster.signal(signal.SIGTTIN)
        it.cluster.wait_log("SIGTTIN: one worker more")
        it.cluster.signal(signal.SIGHUP)
        it.cluster.wait_log("SIGHUP: a reload")
        kill(master)
        it.cluster.wait_log("reloaded: generation 2 serves")
        it.whole(3, 2)
        second = it.snapshot()["master_pid"]
        assert second != master
        kill(second)  # the third is told of none of it
        it.cluster.wait_log("epoch 3: adopting 3 workers")
        it.whole(3, 2)
        log = it.cluster.end()
    assert log.count("scaled from 2 to 3 workers") == log.count("scaled from") == 1
    assert log.count("is imported beside generation") == 1

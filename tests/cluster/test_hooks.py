"""Hooks of a real cluster: who calls what, when, and what one that raises or hangs costs."""

import os
import signal

from harness import Running, running, wait_for


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def noted(path, line):
    """Wait until this line is there."""
    wait_for(lambda: line in lines(path), 30.0, line)


def test_from_the_start_to_the_end(tmp_path):
    """Each hook where it belongs; a change of size, a kill, a reload, a master's death and that of the service."""
    path = tmp_path / "hooked"
    with running("counting:app", "--hooks=hooking:Noting", workers=1, env={"HOOKED": str(path)}) as cluster:
        noted(path, f"when_ready 1 {cluster.url}")
        assert lines(path).index("on_starting 1") < lines(path).index(f"when_ready 1 {cluster.url}")
        own = [line for line in lines(path) if line.startswith("post")]
        assert own == ["post_fork 1 True", "post_worker_init 1 True"]
        cluster.command_line("scale", "2", "--wait")
        noted(path, "nworkers_changed 2 1")
        cluster.wait_log(
            r"hooks pid=\d+: the hook nworkers_changed\(\) of hooking:Noting raised\n(.*\n)+?RuntimeError: nobody"
        )
        cluster.command_line("kill", "1")
        noted(path, "child_exit 2 9 killed by signal SIGKILL")
        cluster.command_line("reload", "--wait")
        noted(path, "on_reload 2")
        noted(path, "worker_exit 1 True")
        noted(path, "child_exit 1 None reload")
        master = cluster.ps()["master_pid"]
        os.kill(master, signal.SIGKILL)
        wait_for(lambda: cluster.ps()["master_pid"] != master, 30.0)
        cluster.command_line("scale", "1", "--wait")
        noted(path, "nworkers_changed 1 2")
        cluster.end()
    told = lines(path)
    assert told[-1] == "on_exit 0"
    for once in ("on_starting 1", f"when_ready 1 {cluster.url}", "on_reload 2", "on_exit 0"):
        assert told.count(once) == 1, told
    forked = [line.split()[1] for line in told if line.startswith("post_fork")]
    ended = [line.split()[1] for line in told if line.startswith("child_exit")]
    assert sorted(forked) == sorted(ended) == sorted(set(ended)), told
    assert "worker_exit 2 True" not in told


def test_a_hook_that_hangs_holds_up_nobody(tmp_path):
    """The cluster serves, reloads and ends; only the end waits some seconds for it."""
    path, fifo = tmp_path / "hooked", tmp_path / "fifo"
    os.mkfifo(fifo)
    env = {"HOOKED": str(path), "FIFO": str(fifo)}
    with running("counting:app", "--hooks=hooking:Stuck", workers=1, env=env) as cluster:
        wait_for(lambda: lines(path), 30.0)
        first = int(lines(path)[0].split()[1])
        cluster.command_line("restart", "0", "--wait")
        assert cluster.get()
        os.kill(first, signal.SIGKILL)
        cluster.wait_log(rf"the hooks service {first} died; starting another in 0.0 s")
        assert len(lines(path)) == 1  # when_ready was called already
        cluster.end()


def test_a_worker_whose_hook_raises_could_not_start():
    """Exit code 3 and the traceback, as when the app itself cannot be loaded."""
    cluster = Running("counting:app", "--hooks=hooking:Refusing", workers=1, wait=False)
    try:
        log = cluster.ended(code=3)
    finally:
        cluster.close()
    assert "raised in post_worker_init():" in log
    assert "RuntimeError: the licence has run out" in log


def test_hooks_that_are_not_there():
    """Found when the app is imported, before anything serves."""
    cluster = Running("counting:app", "--hooks=hooking:Nobody", workers=1, wait=False)
    try:
        log = cluster.ended(code=3)
    finally:
        cluster.close()
    assert "the hooks 'hooking:Nobody' cannot be loaded" in log

"""`zcluster config` and `zcluster check`, and a cluster that is described by a file."""

import json
import os
import signal
import subprocess
import sys

import pytest
from handle_rig import FAST, HERE, ROOT, get

from zcluster.cli import main
from zcluster.config import options
from zcluster.resolution import Sources, resolve

LEAVING = """
import threading
threading.Thread(target=threading.Event().wait, name="pool", daemon=DAEMON).start()
def app(environ, start_response): ...
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and no variable of ours or of the platform's."""
    for option in options():
        monkeypatch.delenv(option.env or option.variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(capsys, *arguments):
    """What `zcluster config` prints."""
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


# ---- config --------------------------------------------------------------------------------------------------------
def test_config_prints_values_with_their_origins(here, capsys, monkeypatch):
    """For people one line an option, and JSON for programs."""
    (here / "zcluster.toml").write_text('app = "shop:app"\n\nbind = [":80"]\nthreads = 4\n')
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("ZCLUSTER_THREADS", "5")
    lines = {line.split(" = ")[0]: " ".join(line.split()) for line in shown(capsys, "--keep-alive", "9").splitlines()}
    assert list(lines) == [option.name for option in options()]
    assert lines["app"] == 'app = "shop:app" # zcluster.toml:1'
    assert lines["bind"] == 'bind = [":80"] # zcluster.toml:3'
    assert lines["workers"] == "workers = 3 # variable WEB_CONCURRENCY"
    assert lines["threads"] == "threads = 5 # variable ZCLUSTER_THREADS over zcluster.toml:4"
    assert lines["keep-alive"] == "keep-alive = 9.0 # flag"
    assert lines["log-level"] == 'log-level = "info" # default'
    seen = json.loads(shown(capsys, "other:app", "--json"))
    assert list(seen) == list(lines)
    assert seen["app"] == {"value": "other:app", "origin": "flag", "over": ["zcluster.toml:1"], "reload": True}
    assert seen["bind"] == {"value": [":80"], "origin": "zcluster.toml:3", "over": [], "reload": False}


def test_config_without_an_app(here, capsys):
    """Looking at the defaults needs none; it is said that there is none."""
    first = shown(capsys).splitlines()[0]
    assert " ".join(first.split()) == "# app # not given"
    seen = json.loads(shown(capsys, "--json"))
    assert seen["app"] == {"value": None, "origin": "not given", "over": [], "reload": True}
    assert seen["workers"]["value"] == "auto"


def test_what_config_prints_is_a_file(here, capsys):
    """Given back with --config it means the same, whatever characters are in it."""
    flags = ["a:b", "--bind", ":80", "--bind", 'unix:/t/"\\\x7f😀', "--preload", "--state", "/x #y", "--workers", "7"]
    (here / "printed.toml").write_text(shown(capsys, *flags), encoding="utf-8")
    given = {"bind": (":80", 'unix:/t/"\\\x7f😀'), "preload": True, "state": "/x #y", "workers": "7"}
    wanted = resolve(Sources({"app": "a:b", **given}, {}, str(here))).config
    assert resolve(Sources({}, {}, str(here), "printed.toml")).config == wanted


@pytest.mark.parametrize("command", ["run", "config", "check"])
def test_all_three_refuse_alike(here, capsys, command):
    """Exit code 2 and one line, before anything is loaded."""
    (here / "zcluster.toml").write_text("\nworker = 3\n")
    assert main([command, "a:b"]) == 2
    assert capsys.readouterr() == (
        "",
        "zcluster: error: zcluster.toml:2: unknown option 'worker'; did you mean 'workers'?\n",
    )
    assert main([command, "a:b", "--config", "none.toml"]) == 2
    assert "there is no configuration file 'none.toml'" in capsys.readouterr().err


# ---- check ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def check(here):
    """Run `zcluster check` in the working directory to its end."""

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "zcluster", "check", *arguments],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout, done.stderr

    return run


def test_check_loads_the_app(here, check):
    """From a file: what is given, that it loads, and that it would be preloaded."""
    (here / "zcluster.toml").write_text('app = "shop"\nthreads = 2')
    (here / "shop.py").write_text("def app(environ, start_response): ...")
    out, err = check()
    first, second, third = out.splitlines()
    assert first == "configuration: good; given are app, threads (`zcluster config` prints all)"
    assert second.startswith("app: shop loads, in ")
    assert third == "preload: the app is imported once, before the workers are forked"
    assert err == ""


@pytest.mark.parametrize("daemon", [True, False])
def test_check_says_why_an_app_is_not_preloaded(here, check, daemon):
    """The thread that the import left is named, and does not keep the command from ending."""
    (here / "shop.py").write_text(LEAVING.replace("DAEMON", str(daemon)))
    out, _err = check("shop:app")
    assert "preload: not safe, each worker imports the app, because the import left thread 'pool'\n" in out


def test_check_ends_with_the_codes_of_run(here, check):
    """3 and the traceback for the app, 2 for the configuration; a thread left behind changes nothing."""
    (here / "shop.py").write_text(LEAVING.replace("DAEMON", "False") + "1 / 0\n")
    out, err = check("shop:app", code=3)
    assert out.startswith("configuration: good")
    assert err.startswith("zcluster: error: the app 'shop:app' raised while it was imported:\n")
    assert err.endswith("ZeroDivisionError: division by zero\n")
    out, err = check("shop:app", "--certfile", "none.pem", code=2)
    assert err.startswith("zcluster: error: ")
    assert "none.pem" in err


# ---- run -----------------------------------------------------------------------------------------------------------
def test_a_cluster_from_a_file(here, run_dir):
    """`zcluster run` alone: app, address and size stand in pyproject.toml."""
    told = {"app": "small_app:app", "run-dir": str(run_dir), "name": "filed"}
    known = {option.field: option.name for option in options()}
    told |= {known[field]: value for field, value in FAST.items()} | {"workers": 1}
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
    (here / "pyproject.toml").write_text("[tool.zcluster]\n" + "\n".join(lines))
    process = subprocess.Popen(
        [sys.executable, "-m", "zcluster", "run"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        ready = process.stdout.readline()
        assert "(1 workers, master " in ready
        assert get(ready.split()[3]).endswith(" 1")
        assert main(["stop", "--name", "filed", "--run-dir", str(run_dir), "--wait"]) == 0
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
        process.communicate(timeout=30)

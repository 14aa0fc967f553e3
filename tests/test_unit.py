"""The unit that `zcluster systemd` prints: what systemd would read, word by word."""

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from zcluster.errors import ConfigError
from zcluster.unit import systemd_command


@pytest.fixture
def unit(tmp_path, monkeypatch):
    """Make a unit in an empty working directory: its text, and its sections."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("ZCLUSTER_") or name in ("PORT", "WEB_CONCURRENCY")]:
        monkeypatch.delenv(name)

    def make(*words):
        done = CliRunner().invoke(systemd_command, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        parser = configparser.ConfigParser(
            interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#",)
        )
        parser.optionxform = str
        parser.read_string(done.stdout)
        return done.stdout, parser

    return make


def test_what_a_service_needs(unit, tmp_path):
    """Notification, the two commands with absolute paths, and limits that are longer than our own."""
    text, sections = unit(
        "shop:app", "--bind", ":80", "--graceful-timeout", "45", "--boot-timeout=100", "--user", "www"
    )
    service = dict(sections["Service"])
    program = str(Path(sys.executable).with_name("zcluster"))
    expected = "run shop:app --bind :80 --boot-timeout 100.0 --graceful-timeout 45.0 --user www --name shop"
    assert service["ExecStart"] == f"{program} {expected}"
    assert service["ExecReload"] == f"{program} reload --wait --name shop"
    assert service["WorkingDirectory"] == str(tmp_path)
    assert (service["Type"], service["KillMode"], service["OOMPolicy"]) == ("notify", "mixed", "continue")
    assert int(service["TimeoutStopSec"]) > 45 + 15  # the launcher's own limits: see bodies.launcher
    assert int(service["TimeoutStartSec"]) > 100
    assert "User" not in service  # it is the launcher's to become
    assert text.startswith("# shop.service: ")
    assert sections["Install"]["WantedBy"] == "multi-user.target"


def test_names_folders_and_variables(unit, monkeypatch, tmp_path):
    """What the result depends on here stands in the unit; who starts it without --user is named."""
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    monkeypatch.setenv("ZCLUSTER_LOG_LEVEL", "debug")
    Path("my.toml").write_text('app = "shop.wsgi:app"\nrun-dir = "/dev/shm"\n')
    text, sections = unit("-c", "my.toml", "--name", "front", "--no-preload", "--reload")
    service = sections["Service"]
    assert service["ExecStart"].endswith(f" run --config {tmp_path}/my.toml --name front --no-preload --reload")
    assert service["ExecReload"].endswith(" reload --wait --name front --run-dir /dev/shm")
    assert "Environment=WEB_CONCURRENCY=3\nEnvironment=ZCLUSTER_LOG_LEVEL=debug\n" in text.replace("\n\n", "\n")
    assert ("DynamicUser" in service) == (os.getuid() == 0)
    assert ("User" in service) == (os.getuid() != 0)


def test_quoting(unit):
    """Blanks, quotes, dollars and per cents reach the command as they are."""
    _, sections = unit("shop:make('a b')", "-e", 'X=a "b" $HOME 100% \\', "--pid", "/run/a b")
    assert sections["Service"]["ExecStart"].partition(" run ")[2] == (
        r""""shop:make('a b')" --env "X=a \"b\" $$HOME 100%% \\" --pid "/run/a b" --name shop"""
    )


def test_what_is_wrong_is_said_now(unit):
    """Options are checked before a unit is printed."""
    with pytest.raises(ConfigError, match="--umask is '9'"):
        unit("shop:app", "--umask", "9")


def test_systemd_understands_it(unit, tmp_path):
    """Where systemd is installed its own check finds nothing."""
    text, _ = unit("shop:app", "-b", ":8000", "-e", "X=a b", "--user", "root")
    (tmp_path / "shop.service").write_text(text)
    analyze = shutil.which("systemd-analyze")
    said = (
        subprocess.run([analyze, "verify", tmp_path / "shop.service"], capture_output=True, text=True)
        if analyze
        else None
    )
    assert said is None or "shop.service" not in said.stderr, said

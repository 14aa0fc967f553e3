"""The documentation is true: its code runs, its links lead somewhere, its commands and options exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from left_behind import run_clean
from sources import ROOT

from zcluster.cli import all_commands
from zcluster.config import options
from zcluster.core.fleet_worker import STATES, TRANSITIONS
from zcluster.core.messages import Control, Message

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
OTHERS = {"curl", "kill", "pytest"}  # commands of the machine, not ours


def name_of(path: Path) -> str:
    """How a page is called in the output of pytest."""
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in this language."""
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """All anchors of a page."""
    return {slug(heading) for heading in re.findall(r"(?m)^#+ (.*)$", prose(page))}


def test_every_page_is_found():
    """The pages that the issue asks for exist; so an empty search proves nothing wrong."""
    wanted = {
        "ARCHITECTURE",
        "HTTP",
        "MESSAGES",
        "NODE",
        "TESTING",
        "PROTOCOL",
        "COUNTERS",
        "CONFIGURATION",
        "FORK_SAFETY",
        "SIGNALS",
        "LOGS",
        "DECISIONS",
        "OPERATIONS",
        "RELIABILITY",
        "PERFORMANCE",
    }
    assert wanted <= {page.stem for page in PAGES}
    assert len([page for page in PAGES if page.stem == "README"]) == 7


WITH_CODE = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_runs(page, tmp_path):
    """Blocks that begin with a file's name are that file; all others are run beside it, in order, for real.

    What a block prints is what its `# -> ` comments say.
    """
    ran = 0
    for number, block in enumerate(blocks(page, "python")):
        compile(block, f"{page.name}, block {number}", "exec")
        named = FILE.match(block)
        path = tmp_path / (named[1] if named else f"block{number}.py")
        path.write_text(block, encoding="utf-8")
        done = run_clean([path], cwd=tmp_path)
        assert done.returncode == 0, f"{page.name}:\n{block}\n{done.stderr}"
        wanted = re.findall(r"(?m)# -> (.*)$", block)
        if wanted:
            assert done.stdout.splitlines() == wanted
        ran += not named
    assert ran, f"{page.name} has no code that uses its app"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """Every relative link names a file of the project and, with an anchor, a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert ROOT in (there, *there.parents), f"{page.name}: {target} leaves the project"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page):
    """Every path of the project that the prose names is there."""
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", prose(page))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    """What the console blocks type is accepted by our command line, or is a script or program that is there."""
    for line in re.findall(r"(?m)^\$ (.*)$", "\n".join(blocks(page, "console"))):
        program, *words = shlex.split(line, comments=True)
        if program == "zcluster":
            command = all_commands().get(words[0])
            assert command is not None, line
            with command.make_context(words[0], words[1:]):  # click.UsageError for what it does not know
                pass
        elif program == "python":
            assert (page.parent / words[0]).exists(), line
        elif program.startswith("scripts/"):
            assert (ROOT / program).exists(), line
        else:
            assert program in OTHERS, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_exist(page):
    """Every long option that a page names is one of our command line's, or of a script's."""
    parameters = [parameter for command in all_commands().values() for parameter in command.params]
    known = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    for script in (ROOT / "scripts").glob("*.py"):
        known.update(re.findall(r'add_argument\("(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", page.read_text(encoding="utf-8")))
    assert named <= known, f"{page.name} names {sorted(named - known)}"


def test_every_option_is_documented():
    """CONFIGURATION.md has a row for each field of Config with all its flags, and each command."""
    text = (ROOT / "docs" / "CONFIGURATION.md").read_text(encoding="utf-8")
    for option in options():
        flags = "<br>".join(f"`{flag}`" for flag in option.flags) or f"`{option.metavar}`"
        assert f"\n| {flags} | `{option.field}` | " in text, option.field
    for command in all_commands():
        assert f"`zcluster {command} " in text, command


def test_every_message_is_documented():
    """PROTOCOL.md has a row for each message of the bus and of the control channels."""
    text = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    for message in (*Message.__args__, *Control.__args__):
        assert f"\n| `{message.__name__}` | " in text, message.__name__


def test_every_transition_is_documented():
    """The diagram and the table below it hold exactly the fleet's transitions."""
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.findall(r"(?m)^    (\w+) --> (\w+): (.*)$", text)
    tabled = [(state, state, said) for state, said in re.findall(r"(?m)^\| (\w+) \| ([\w, ]+) \|$", text)]
    shown = {
        (state, trigger): after
        for state, after, triggers in [*drawn, *tabled]
        if state in STATES
        for trigger in triggers.split(", ")
    }
    assert shown == TRANSITIONS


def test_generated_parts_are_current():
    """scripts/docs would change nothing."""
    done = subprocess.run(
        [sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pages_stay_short():
    """The README is read in one go, and so is each example."""
    for page in PAGES:
        if page.stem == "README":
            limit = 150 if page.parent == ROOT else 30
            assert page.read_text(encoding="utf-8").count("\n") <= limit, name_of(page)


@pytest.mark.parametrize("words", [["run", "app:app", "b"], ["run", "app:app", "--no-such-flag"], ["ps", "--quick"]])
def test_a_wrong_command_is_found(words):
    """The check of commands sees through wrong ones, so that its silence means something."""
    with pytest.raises(click.UsageError):
        all_commands()[words[0]].make_context(words[0], words[1:])

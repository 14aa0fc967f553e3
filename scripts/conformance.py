"""Conformance with Node's cluster module: the tables of docs/NODE.md, and (--node) the record of what Node does.

What zcluster does is said by the docstrings of the tests that prove it; what Node does was recorded by running the
programs of tests/conformance/node/ with a real Node, and stands in tests/conformance/node.json with its version.
`scripts/docs` writes the tables; so they need no Node, and cannot say anything that no test has.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "conformance"
RECORD = FOLDER / "node.json"
PROGRAM_TIMEOUT_S = 30.0  # its own limit is half of that: a program that hangs is killed and said to have failed


@dataclass(frozen=True)
class Scenario:
    """One row of the table."""

    id: str
    title: str
    node: str = ""  # the program that plays it on Node
    elsewhere: tuple[str, ...] = ()
    differs: str = ""
    not_offered: str = ""

    @property
    def tests(self) -> tuple[str, ...]:
        """The ids of the tests that prove it."""
        return (*tests_by_scenario().get(self.id.lower(), ()), *self.elsewhere)


@dataclass(frozen=True)
class Headline:
    """One row of the first table."""

    title: str
    scenario: str


@cache
def declared() -> tuple[list[Scenario], list[Headline]]:
    """What scenarios.toml says."""
    text = tomllib.loads((FOLDER / "scenarios.toml").read_text(encoding="utf-8"))
    found = [Scenario(**{**row, "elsewhere": tuple(row.get("elsewhere", ()))}) for row in text["scenario"]]
    return found, [Headline(**row) for row in text["headline"]]


@cache
def sentences(path: str) -> dict[str, str]:
    """What each test of a file proves, by its name."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    docs = {node.name: (ast.get_docstring(node) or "").partition("\n\n")[0] for node in functions}
    return {name: " ".join(text.split()) for name, text in docs.items() if name.startswith("test_")}


@cache
def tests_by_scenario() -> dict[str, tuple[str, ...]]:
    """The tests of the folder of conformance, by the scenario in their names."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(FOLDER.glob("test_*.py")):
        name = str(path.relative_to(ROOT))
        for test in sentences(name):
            if match := re.match(r"test_(t\d\d[a-z]?)_", test):
                found[match[1]] = (*found.get(match[1], ()), f"{name}::{test}")
    return found


def sentence_of(test: str) -> str:
    """What one test proves; LookupError when there is none of that id."""
    path, _, name = test.partition("::")
    if not (ROOT / path).exists() or name not in sentences(path):
        raise LookupError(
            f"tests/conformance/scenarios.toml names {test}, which does not exist: name another one there"
        )
    return sentences(path)[name]


@cache
def recorded() -> dict[str, dict[str, object]]:
    """What Node did, by scenario; "version" is its own."""
    found: dict[str, dict[str, object]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def played() -> list[Scenario]:
    """The scenarios that a Node program plays."""
    return [scenario for scenario in declared()[0] if scenario.node]


def play(scenario: Scenario, node: str = "node") -> dict[str, object]:
    """Run a scenario on Node; what it says."""
    command = [node, str(FOLDER / "node" / scenario.node), scenario.id]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"holds": False, "said": "the program had to be killed"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} said nothing: {done.stderr[-500:]}")
    said: dict[str, object] = json.loads(lines[0])
    return said


def version_of(node: str = "node") -> str:
    """Node's version; FileNotFoundError when there is none."""
    return subprocess.run([node, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def record(only: Sequence[str]) -> None:
    """Run everything, or only these scenarios, on Node and write down what it said."""
    said: dict[str, object] = {**(recorded() if only else {}), "version": version_of()}
    for scenario in played():
        if not only or scenario.id in only:
            said[scenario.id] = play(scenario)
            print(scenario.id, said[scenario.id])
    said = {id_: said[id_] for id_ in ("version", *(scenario.id for scenario in played()))}
    RECORD.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- the tables ---------------------------------------------------------------------------------------------------
def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def shown_tests(scenario: Scenario) -> str:
    """The tests, one a line: their files are named by the first line of each."""
    return "<br>".join(
        f"`{Path(test.partition('::')[0]).name}` `{test.partition('::')[2]}`" for test in scenario.tests
    )


def shown_node(scenario: Scenario) -> str:
    """What Node does."""
    if not scenario.node:
        return "left to its users" if scenario.id.startswith("U") else "not played"
    said = recorded()[scenario.id]
    return ("" if said["holds"] else "**no:** ") + escaped(str(said["said"]))


def shown_ours(scenario: Scenario) -> str:
    """What zcluster does."""
    if scenario.not_offered:
        return f"not offered: {scenario.not_offered}"
    text = "<br>".join(escaped(sentence_of(test)) for test in scenario.tests)
    return text + (f"<br>*Differs: {scenario.differs}.*" if scenario.differs else "")


def escaped(text: str) -> str:
    """Text in which nothing is taken for a tag, an emphasis, or an option of ours."""
    return re.sub(r"(?<![\w`-])--([a-z-]+)", lambda found: f"`--{found[1]}`", text.replace("<", "&lt;"))


def headline_part() -> str:
    """What Node's users suffer from most."""
    scenarios = {scenario.id: scenario for scenario in declared()[0]}
    rows = []
    for row in declared()[1]:
        scenario = scenarios[row.scenario]
        rows.append([row.title, escaped(str(recorded()[scenario.id]["said"])), shown_ours(scenario), scenario.id])
    return table(["", f"Node {recorded()['version']}", "zcluster", "Proven by"], rows)


def conformance_part() -> str:
    """All scenarios."""
    rows = [
        [scenario.id, scenario.title, shown_node(scenario), shown_ours(scenario), shown_tests(scenario)]
        for scenario in declared()[0]
    ]
    return table(["", "Scenario", f"Node {recorded()['version']}", "zcluster", "Proven by"], rows)


PARTS: dict[str, Callable[[], str]] = {"conformance": conformance_part, "headline": headline_part}


def main() -> int:
    """Record what Node does, or say how the table stands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", action="store_true", help="run the programs with the node of this machine, record")
    parser.add_argument("only", nargs="*", metavar="TNN", help="scenarios to run again; all others stay as recorded")
    arguments = parser.parse_args()
    if arguments.node:
        record(arguments.only)
        return 0
    for scenario in declared()[0]:
        proven = f"{len(scenario.tests)} tests" if scenario.tests else "not offered"
        print(f"{scenario.id:5} {scenario.title:50} {proven}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

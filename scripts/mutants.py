"""Run mutmut over zcluster/core in a copy of the project, and say which mutants tests/core has not noticed.

A mutant is the core with one operator, argument, literal or assignment changed. Each is run against the tests that
call the function it is in, the quick ones first, until one fails. mutmut puts all mutants of a function beside it and
forks one process per mutant, so nothing is imported again: that is what makes thousands of them a matter of minutes.

It leaves alone what is not in a function (constants, fields and their defaults) and functions with decorators;
properties are therefore written without one in the copy.
"""

import argparse
import ast
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPY = ROOT / ".mutants"
CORE = Path("zcluster/core")
MEMORY_BYTES = 4 << 30  # of address space for each process: a loop that has lost its end may also collect something
# A loop that has lost its end is ended by the limit for one test, or by that for all: 6 x (1 s + their usual time).
SETTINGS = """\
[mutmut]
source_paths = zcluster
only_mutate = zcluster/core/*.py
also_copy =
    scripts
    conftest.py
timeout_multiplier = 6
timeout_constant = 1
track_dependencies = false
pytest_add_cli_args_test_selection =
    tests/core
pytest_add_cli_args =
    --timeout=30
    --deselect=tests/core/test_sim.py::test_a_broken_core_is_found
"""
# They play whole clusters for 20 s, which each mutant of the fleet that goes unnoticed would have to live through.
NO_SEARCHES = """\
    --deselect=tests/core/test_sim.py
    --deselect=tests/core/test_fleet_world.py
"""
# Whether an example fails is all that matters: the smallest one is not looked for.
CONFTEST = """\
from hypothesis import Phase, settings

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")
"""
PROSE = re.compile(r"""f?"[^"]* [^"]*"|f?'[^']* [^']*'""")


def copy_project(searches: bool) -> None:
    """Bring .mutants up to date with the working tree; what has not changed keeps its time, and so its results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    contents = {Path(name): (ROOT / name).read_bytes() for name in listed if name and (ROOT / name).is_file()}
    contents[Path("setup.cfg")] = (SETTINGS + ("" if searches else NO_SEARCHES)).encode()
    contents[Path("conftest.py")] = CONFTEST.encode()
    for name, content in contents.items():
        if name.parent == CORE and name.suffix == ".py":
            content = without_property_decorators(content.decode()).encode()
        path = COPY / name
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if os.access(ROOT / name, os.X_OK):
            path.chmod(0o755)


def without_property_decorators(text: str) -> str:
    """`@property def x` as `def x`, with `x = property(x)` below it."""
    lines = text.splitlines()
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and [ast.unparse(one) for one in node.decorator_list] == ["property"]
    ]
    for node in sorted(found, key=lambda one: -one.lineno):
        assert node.end_lineno is not None
        lines.insert(node.end_lineno, f"    {node.name} = property({node.name})")
        del lines[node.lineno - 2]
    return "\n".join(lines) + "\n"


def results() -> dict[str, dict[str, int | None]]:
    """What became of each mutant, by module."""
    found = {}
    for path in sorted((COPY / "mutants" / CORE).glob("*.py.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes:
            found[path.name.partition(".")[0]] = codes
    return found


def fate(code: int | None) -> str:
    """What the exit code of its tests says of a mutant."""
    if code in (0, 5, 33):
        return "survived"  # 33: no test calls the function, nor (5) was one found
    if code is None:
        return "not run"
    return "killed" if code in (1, 2, 3) else "timed out"  # by a signal: its processor time, its memory


def run(jobs: int, patterns: list[str]) -> None:
    """Have mutmut make the mutants and run those that match."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    mutmut = Path(sys.executable).parent / "mutmut"
    log = COPY / "log"
    print(f"running; its progress is in {log.relative_to(ROOT)}", flush=True)
    with log.open("w") as out:
        done = subprocess.run(
            [mutmut, "run", "--max-children", str(jobs), *patterns], cwd=COPY, stdout=out, stderr=out
        )
    if done.returncode:
        sys.exit("mutmut failed:\n" + log.read_text(encoding="utf-8").rpartition("\r")[2][-3000:])


def changed(module: str, name: str) -> tuple[str, str]:
    """The lines that a mutant takes away, and those it puts in their place."""
    from mutmut.mutation.diff_apply import get_diff_for_mutant  # it reads the settings of the directory we are in

    lines = get_diff_for_mutant(name, path=CORE / f"{module}.py").splitlines()[2:]
    return tuple("\n".join(line[1:].rstrip() for line in lines if line.startswith(sign)) for sign in "-+")


def is_wording(before: str, after: str) -> bool:
    """Whether it changes only what an error or a line of the log says, not whether there is one."""
    if PROSE.sub("", before) == PROSE.sub("", after):
        return True
    return before.lstrip().startswith("raise ") or not PROSE.sub("", before).strip(" \n,()")


def report(modules: list[str]) -> None:
    """Print the table, and write down the survivors."""
    os.chdir(COPY)
    print(
        f"{'module':18}{'mutants':>9}{'killed':>9}{'timed out':>11}{'survived':>10}{'of it wording':>15}{'score':>8}"
    )
    sums: Counter[str] = Counter()
    texts = []
    for module, codes in results().items():
        if modules and module not in modules:
            continue
        row = Counter(fate(code) for code in codes.values())
        row["mutants"] = len(codes)
        for name, code in codes.items():
            if fate(code) == "survived":
                before, after = changed(module, name)
                wording = is_wording(before, after)
                row["wording"] += wording
                kind = "wording" if wording else "no test calls it" if code == 33 else ""
                texts.append(f"{name.removeprefix('zcluster.core.')}  {kind}\n- {before}\n+ {after}\n")
        sums += row
        print(line(module, row))
    print(line("all", sums))
    Path("survivors.txt").write_text("\n".join(texts), encoding="utf-8")
    print("survivors: .mutants/survivors.txt")


def line(name: str, row: "Counter[str]") -> str:
    """One line of the table; the score leaves out what was not run."""
    ran = row["mutants"] - row["not run"]
    score = f"{100 * (row['killed'] + row['timed out']) / ran:.1f} %" if ran else "-"
    cells = f"{row['killed']:>9}{row['timed out']:>11}{row['survived']:>10}{row['wording']:>15}{score:>8}"
    return f"{name:18}{ran:>9}{cells}" + (f"  ({row['not run']} not run)" if row["not run"] else "")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("module", nargs="*", help="of zcluster/core, such as ledger (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants that are run at once (default: 2)")
    parser.add_argument("--again", action="store_true", help="what the last run did not kill, with the tests of now")
    parser.add_argument("--searches", action="store_true", help="also the tests that play whole clusters: hours")
    parser.add_argument("--report", action="store_true", help="run nothing, print the table of the last run")
    given = parser.parse_args()
    known = {path.stem for path in (ROOT / CORE).glob("*.py")}
    if unknown := sorted(set(given.module) - known):
        parser.error(f"there is no module {unknown[0]!r} in {CORE}")
    if not given.report:
        patterns = [f"zcluster.core.{module}.*" for module in given.module]
        if given.again:
            (COPY / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # which test calls what: they may be new
            chosen = given.module or known
            patterns = [
                name
                for module, codes in results().items()
                for name, code in codes.items()
                if module in chosen and fate(code) != "killed"
            ]
        elif COPY.exists():
            shutil.rmtree(COPY)
        copy_project(given.searches)
        run(given.jobs, patterns)
    report(given.module)
    return 0


if __name__ == "__main__":
    sys.exit(main())

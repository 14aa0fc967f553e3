"""Write the generated parts of docs/*.md and README.md from the code, or (--check) say which of them are not current.

A generated part stands between two comments, `<!-- scripts/docs: NAME -->` and `<!-- scripts/docs: end -->`;
everything around it is written by hand. Exit code 1 when --check finds a difference.
"""

import argparse
import ast
import difflib
import inspect
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import bench_page
import click
import conformance
import nemesis_faults

from zcluster import accessformat, config
from zcluster.cli import all_commands
from zcluster.core import fleet_worker, mail, messages
from zcluster.http import limits

ROOT = Path(__file__).resolve().parent.parent
PART = re.compile(r"(?<=<!-- scripts/docs: )(?!end )([a-z-]+)( -->\n).*?(?=<!-- scripts/docs: end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def comments(source: str) -> dict[int, str]:
    """Every comment of a module by its line, without the mark."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def comment_of(field: ast.AnnAssign, said: dict[int, str]) -> str:
    """The comment beside a field."""
    return next((said[line] for line in range(field.lineno, (field.end_lineno or 0) + 1) if line in said), "")


def reason_of(field: ast.AnnAssign, said: dict[int, str], lines: Sequence[str]) -> str:
    """Why a default is what it is: the comment that stands above the field, or else the one beside it."""
    above: list[str] = []
    while lines[field.lineno - 2 - len(above)].lstrip().startswith("#"):
        above.insert(0, said[field.lineno - 1 - len(above)])
    return " ".join(above) or comment_of(field, said)


def fields_of(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    """The declared fields of a class."""
    yield from (statement for statement in node.body if isinstance(statement, ast.AnnAssign))


def classes(module: ModuleType) -> tuple[dict[int, str], list[ast.ClassDef]]:
    """The comments and the classes of a module."""
    source = inspect.getsource(module)
    return comments(source), [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


# ---- options ------------------------------------------------------------------------------------------------------
def reasons() -> dict[str, str]:
    """Why the default of each option is what it is."""
    said, nodes = classes(config)
    lines = inspect.getsource(config).splitlines()
    declared = fields_of(next(node for node in nodes if node.name == "Config"))
    return {ast.unparse(field.target): reason_of(field, said, lines) for field in declared}


def shown_default(option: config.Option) -> str:
    """A default as it would be typed."""
    if option.default is None:
        return "required"
    if "auto" in option.metavar:
        return "`auto`"
    if option.type is bool:
        return "on" if option.default else "off"
    text = ", ".join(option.default) if option.multiple else option.default
    return f"`{text:g}`" if isinstance(text, float) else f"`{text}`" if text != "" else ""


def shown_limits(option: config.Option) -> str:
    """What a value may be."""
    if option.choices:
        return ", ".join(f"`{choice}`" for choice in option.choices)
    meta = get_args(get_type_hints(config.Config, include_extras=True)[option.field])[1]
    if meta.ge is None:
        return ""
    if "auto" in option.metavar:  # 0 is how it is stored
        return f"1 to {meta.le}, or `auto`"
    return f"{meta.ge:g} to {meta.le:g} s" if option.type is float else f"{meta.ge} to {meta.le}"


def options_part() -> str:
    """The table of all options."""
    why = reasons()
    rows = []
    for option in config.options():
        names = [f"`{flag}`" for flag in option.flags] or [f"`{option.metavar}`"]
        alone = f" Alone: {option.alone}." if option.alone else ""
        meaning = option.help + alone + (f"<br>*On the default: {why[option.field]}.*" if why[option.field] else "")
        env = "<br>".join(f"`{name}`" for name in (option.variable, option.env) if name)
        fixed = f"no: {option.fixed}" if option.fixed else "yes"
        shown = [shown_default(option), shown_limits(option), fixed, meaning]
        rows.append(["<br>".join(names), f"`{option.field}`", env, *shown])
    return table(["Flag", "In Python", "Environment", "Default", "Limits", "Reload", "Meaning"], rows)


def commands_part() -> str:
    """The commands beside `run`."""
    rows = []
    for name, command in all_commands().items():
        if name == "run":
            continue
        words = [f"zcluster {name}"]
        parameters = command.params
        if "app" in (parameter.name for parameter in parameters):  # it takes what `run` does
            words.append("[APP] [options of run]")
            known = {parameter.name for parameter in all_commands()["run"].params}
            parameters = [parameter for parameter in parameters if parameter.name not in known]
        for parameter in parameters:
            value = f" {parameter.metavar}" if parameter.metavar else ""
            is_option = isinstance(parameter, click.Option)
            words.append(f"[{parameter.opts[0]}{value}]" if is_option else value.strip())
        notes = [f"`{p.opts[0]}`: {p.help}" for p in parameters if isinstance(p, click.Option)]
        rows.append([f"`{' '.join(words)}`", "<br>".join([inspect.cleandoc(command.help or ""), *notes])])
    return table(["Command", "What it does"], rows)


def settable_limits() -> set[str]:
    """The bounds that a worker takes from the configuration."""
    tree = ast.parse((ROOT / "zcluster" / "bodies" / "worker.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Limits"]
    return {keyword.arg or "" for call in calls for keyword in call.keywords}


def limits_part() -> str:
    """The engine's bounds that are no options."""
    said, nodes = classes(limits)
    lines = inspect.getsource(limits).splitlines()
    settable = settable_limits()
    defaults = {field.name: field.default for field in fields(limits.Limits)}
    rows = []
    for field in fields_of(next(node for node in nodes if node.name == "Limits")):
        name = ast.unparse(field.target)
        if name not in settable:
            default: Any = defaults[name]
            rows.append([f"`{name}`", f"{default:,}", reason_of(field, said, lines)])
    return table(["Bound", "Value", "What for, and why this much"], rows)


# ---- the HTTP engine ----------------------------------------------------------------------------------------------
def atoms_part() -> str:
    """What may stand in a format of the access log."""
    rows = [[f"`%({atom})s`", meaning] for atom, meaning in accessformat.ATOMS.items()]
    rows += [[f"`%({{NAME}}{letter})s`", f"the {what} NAME"] for letter, what in accessformat.NAMED.items()]
    return table(["Atom", "What stands there"], rows)


def json_part() -> str:
    """The members of a line in JSON: each follows the literal that ends with its key."""
    meanings = {**accessformat.ATOMS, "iso": "date and time, 2026-11-22T14:05:09+00:00", "pid": "process id"}
    meanings |= {letter: f"the {what}" for letter, what in accessformat.NAMED.items()}
    pieces, rows = accessformat.JSON, []
    for before, piece in zip(pieces[::2], pieces[1::2], strict=False):
        key, quote = before.literal.rpartition(":")[0].rpartition(",")[2].strip('{"'), before.literal[-1]
        name = f" `{piece.name}`" if piece.name else ""
        rows.append([f"`{key}`", "string" if quote == '"' else "number", meanings[piece.atom] + name])
    return table(["Key", "Type", "What stands there"], rows)


def modules_part() -> str:
    """What each module of the engine says of itself: the first sentence, and the invariant."""
    rows = []
    for path in sorted((ROOT / "zcluster" / "http").glob("*.py")):
        if path.stem != "__init__":
            paragraphs = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")
            first, *invariant = (" ".join(text.split()) for text in paragraphs)
            held = next((text for text in invariant if text.startswith("Invariant: ")), "").removeprefix(
                "Invariant: "
            )
            rows.append([f"`{path.name}`", first, held[:1].upper() + held[1:]])
    return table(["Module", "What it is for", "Invariant"], rows)


# ---- messages -----------------------------------------------------------------------------------------------------
def messages_part(
    wanted: Callable[[str], bool], module: ModuleType = messages, above: str = "common to several messages"
) -> str:
    """One table per section of a module whose heading is wanted; `above`: what stands before the first one is."""
    said, nodes = classes(module)
    headings = {line: text.strip(" -") for line, text in said.items() if text.endswith("----")}
    headings |= {line: "" for line, text in said.items() if not text.strip("- ")}
    text, shown = "", ""
    rows: list[list[str]] = []
    for node in nodes:
        line = max((at for at in headings if at < node.lineno), default=0)
        heading = headings.get(line, above)
        if not wanted(heading):
            continue
        if heading != shown:
            text, rows, shown = text + finish(shown, rows), [], heading
        parts = [
            f"`{ast.unparse(f.target)}`: {ast.unparse(f.annotation).strip(chr(39))}"
            + (f" ({comment_of(f, said)})" if comment_of(f, said) else "")
            for f in fields_of(node)
        ]
        rows.append([f"`{node.name}`", " ".join((ast.get_docstring(node) or "").split()), "<br>".join(parts)])
    return text + finish(shown, rows)


def finish(heading: str, rows: list[list[str]]) -> str:
    """A section: its heading and its table."""
    return f"\n**{heading}**\n\n{table(['Message', 'What it says, and when', 'Fields'], rows)}" if rows else ""


# ---- the fleet ----------------------------------------------------------------------------------------------------
def states_part() -> str:
    """The states of a worker: a Mermaid diagram of what changes them, and a table of what does not."""
    moves: dict[tuple[str, str], list[str]] = {}
    for (state, trigger), after in fleet_worker.TRANSITIONS.items():
        moves.setdefault((state, after), []).append(trigger)
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {fleet_worker.ASKED}"]
    for (state, after), triggers in moves.items():
        if state != after:
            lines.append(f"    {state} --> {after}: {', '.join(triggers)}")
    lines += [f"    {fleet_worker.DEAD} --> [*]", "```", ""]
    same = [[state, ", ".join(moves[state, state])] for state in fleet_worker.STATES if (state, state) in moves]
    return "\n".join(lines) + "\n" + table(["State", "May be told again without effect on it"], same)


def faults_part() -> str:
    """What the nemesis does, and what clients may notice of it."""
    rows = []
    for fault in nemesis_faults.FAULTS.values():
        failing = "those under way in a worker that is killed" if fault.costs else "none"
        counted = "the end of the fault" if fault.lasts else "its beginning"
        rows.append([fault.name, fault.seen, failing, counted])
    return table(["Fault", "What is done, and what is seen", "Requests that may fail", "Time counts from"], rows)


def bus(heading: str) -> bool:
    """Whether a section of core/messages.py is about ZeroMQ."""
    return heading.startswith(("ctl", "pub", "evt"))


PARTS: dict[str, Callable[[], str]] = {
    "options": options_part,
    "commands": commands_part,
    "limits": limits_part,
    "atoms": atoms_part,
    "json": json_part,
    "modules": modules_part,
    "common": lambda: messages_part(lambda heading: heading.startswith("common")),
    "bus": lambda: messages_part(bus),
    "mail": lambda: messages_part(lambda _heading: True, mail, "ctl and pub: what users say to each other"),
    "control": lambda: messages_part(lambda heading: not bus(heading) and not heading.startswith("common")),
    "states": states_part,
    "faults": faults_part,
    **conformance.PARTS,
    **bench_page.PARTS,
}


def current(text: str) -> str:
    """A page with its generated parts as the code has them now."""
    return PART.sub(lambda found: f"{found[1]}{found[2]}{PARTS[found[1]]()}", text)


def main() -> int:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a page is not current")
    check = parser.parse_args().check
    used: set[str] = set()
    stale = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = path.read_text(encoding="utf-8")
        used.update(found[1] for found in PART.finditer(before))
        after = current(before)
        if after == before:
            continue
        stale.append(path)
        if check:
            name = str(path.relative_to(ROOT))
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, "the code")
            )
        else:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    for name in sorted(PARTS.keys() - used):
        print(f"part {name!r} stands on no page")
    if check and stale:
        print("run scripts/docs to make these pages current")
    return 1 if (check and stale) or PARTS.keys() - used else 0


if __name__ == "__main__":
    sys.exit(main())

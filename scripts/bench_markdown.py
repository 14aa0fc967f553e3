"""The figures of scripts/bench as Markdown, computed from a report alone: medians of rounds, goals beside them."""

from collections.abc import Iterable, Sequence

from bench_report import Report, Row, Taken, number


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, figures to the right."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines = [head, marks, *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def servers(rows: Iterable[Row]) -> list[str]:
    """The columns of these rows, in the order they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def figures(rows: Sequence[Row], first: str = "") -> str:
    """A column for each server."""
    names = servers(rows)
    return table([first, *names], ([row.measure, *(number(row.values.get(n, ())) for n in names)] for row in rows))


def machine(report: Report) -> str:
    """What a reader must know to compare."""
    return table(["", ""], [[label, text] for label, text in report.machine.items()]).replace("---:", "---")


def goals(report: Report, sections: Iterable[str]) -> str:
    """What these sections' figures should be, and what they are."""
    wanted = set(sections)
    rows = []
    for goal in (goal for goal in report.goals if goal.section in wanted):
        sign = "at most" if goal.at_most else "at least"
        value = "" if goal.value is None else number([goal.value])
        verdict = "**missed**" if goal.verdict == "MISSED" else goal.verdict
        rows.append([goal.section, goal.text, f"{sign} {number([goal.bound])}", value, verdict])
    return table(["Section", "Figure", "Goal", "Measured", ""], rows) if rows else ""


def section(report: Report, name: str) -> str:
    """Everything about one section."""
    taken = report.sections[name]
    text = f"### {name}\n\n{taken.title}\n\n"
    if any(row.section == name for row in report.rows):
        text += figures([row for row in report.rows if row.section == name]) + "\n"
    if told := goals(report, [name]):
        text += told + "\n"
    text += f"{how(taken)}\n"
    notes = [note.text for note in report.notes if note.section == name]
    notes += [f"**Failed**: {note.text}" for note in report.failures if note.section == name]
    return text + ("\n" + "".join(f"- {' '.join(note.split())}\n" for note in notes) if notes else "")


def how(taken: Taken) -> str:
    """How these figures were taken."""
    text = f"Medians of at most {taken.rounds} rounds of at most {taken.seconds:g} s, {taken.date}."
    return f"{text} **A quick look (`--quick`), not a measurement.**" if taken.quick else text


def document(report: Report) -> str:
    """The whole report."""
    text = "# What scripts/bench measured\n\n" + machine(report) + "\n"
    if report.goals:
        text += "## Goals\n\n" + goals(report, report.sections) + "\n"
    return text + "## Sections\n\n" + "\n".join(section(report, name) for name in report.sections)

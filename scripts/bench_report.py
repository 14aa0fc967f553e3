"""Figures as they are measured: every round is kept, medians are shown, and each goal stands beside its figure.

Invariant: a comparison is the median of the rounds' own ratios, never a ratio of figures from different minutes.
"""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One measure of some servers, each with a value per round."""

    section: str
    measure: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Goal:
    """What a figure should be. `value` is None when a program to compare with is missing."""

    section: str
    text: str
    value: float | None
    bound: float
    at_most: bool

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return "met" if (self.value <= self.bound if self.at_most else self.value >= self.bound) else "MISSED"


@dataclass(frozen=True)
class Taken:
    """How the figures of a section were taken."""

    title: str
    date: str
    rounds: int
    seconds: float
    quick: bool


@dataclass(frozen=True)
class Note:
    """Something that was left out or went wrong in a section."""

    section: str
    text: str


@dataclass
class Report:
    """All figures of a run, and what there is to say about them."""

    machine: Mapping[str, str]
    sections: dict[str, Taken] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    failures: list[Note] = field(default_factory=list)
    current: str = ""  # the section that is being measured

    def row(self, section: str, measure: str, values: Mapping[str, Sequence[float]]) -> None:
        self.rows.append(Row(section, measure, dict(values)))

    def goal(self, section: str, text: str, value: float | None, bound: float, at_most: bool = True) -> None:
        self.goals.append(Goal(section, text, value, bound, at_most))

    def note(self, text: str) -> None:
        """Something that was left out or went wrong: printed at once and kept."""
        self.notes.append(Note(self.current, text))
        print(f"  note: {text}", flush=True)

    def fail(self, text: str) -> None:
        """Figures that could not be had, through a fault of zcluster or of this program."""
        self.failures.append(Note(self.current, text))
        print(f"  FAILED: {text}", flush=True)

    def table(self, section: str) -> str:
        """The rows of a section, a column for each server, then its goals."""
        rows = [row for row in self.rows if row.section == section]
        names = list(dict.fromkeys(name for row in rows for name in row.values))
        if not names:
            return "  no figures"
        widths = {name: max(11, len(name) + 2) for name in names}
        left = max(46, *(len(row.measure) + 2 for row in rows))
        lines = [" " * left + "".join(f"{name:>{widths[name]}}" for name in names)]
        for row in rows:
            cells = (f"{number(row.values.get(name, ())):>{widths[name]}}" for name in names)
            lines.append(f"  {row.measure:<{left - 2}}{''.join(cells)}")
        for goal in (goal for goal in self.goals if goal.section == section):
            sign = "<=" if goal.at_most else ">="
            value = "-" if goal.value is None else number([goal.value])
            lines.append(f"  goal: {goal.text:<50} {sign} {number([goal.bound]):<5}: {value} {goal.verdict}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Everything, rounds included, as JSON."""
        goals = [{**asdict(goal), "value": finite(goal.value), "verdict": goal.verdict} for goal in self.goals]
        rows = [{**asdict(row), "values": {k: [*map(finite, v)] for k, v in row.values.items()}} for row in self.rows]
        told = {"notes": [*map(asdict, self.notes)], "failures": [*map(asdict, self.failures)]}
        sections = {name: asdict(taken) for name, taken in self.sections.items()}
        whole = {"machine": self.machine, "sections": sections, "rows": rows, "goals": goals, **told}
        path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Report":
        """What `write` wrote; ValueError, KeyError or TypeError when it is something else."""
        whole = json.loads(path.read_text())
        rows = [Row(**{**row, "values": _with_infinity(row["values"])}) for row in whole["rows"]]
        goals = [Goal(**{key: value for key, value in goal.items() if key != "verdict"}) for goal in whole["goals"]]
        sections = {name: Taken(**taken) for name, taken in whole["sections"].items()}
        notes, failures = ([Note(**note) for note in whole[name]] for name in ("notes", "failures"))
        return cls(whole["machine"], sections, rows, goals, notes, failures)

    def with_others_of(self, old: "Report", order: Sequence[str]) -> "Report":
        """This run's sections, and those of an older one that it does not have, in this order."""
        both = {**old.sections, **self.sections}
        told = Report({**old.machine, **self.machine}, {name: both[name] for name in order if name in both})
        kept = (old.sections.keys() - self.sections.keys()) & set(order)
        rows = [*self.rows, *(row for row in old.rows if row.section in kept)]
        goals = [*self.goals, *(goal for goal in old.goals if goal.section in kept)]
        told.rows = sorted(rows, key=lambda row: order.index(row.section))
        told.goals = sorted(goals, key=lambda goal: order.index(goal.section))
        told.notes = [*self.notes, *(note for note in old.notes if note.section in kept)]
        told.failures = [*self.failures, *(note for note in old.failures if note.section in kept)]
        return told


def number(values: Sequence[float]) -> str:
    """The median with three digits that count."""
    if not values:
        return "-"
    value = statistics.median(values)
    if value == 0 or isinstance(value, int):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _with_infinity(values: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    return {name: [math.inf if value is None else value for value in rounds] for name, rounds in values.items()}


def finite(value: float | None) -> float | None:
    """JSON knows no infinity."""
    return value if value is not None and math.isfinite(value) else None


def ratio(values: Mapping[str, Sequence[float]], one: str, other: str) -> float | None:
    """`one` divided by `other`, round by round, the median of it; None when either was not measured."""
    if not (values.get(one) and values.get(other)):
        return None
    return statistics.median(a / b if b else math.inf for a, b in zip(values[one], values[other], strict=True))


def in_turn(subjects: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """A B C A B C ...: what drifts on the machine meets all of them."""
    results: dict[str, list[T]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, measure in subjects.items():
            results[name].append(measure())
    return results

"""Whether a series of measurements stays where it is, and a drawing of where it would be after a day.

A line is fitted by least squares. It grows when it rises by more than chance explains (its slope is four standard
errors) and by more than a floor over the whole run: one descriptor, thread or file; 256 KiB of memory.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WARM = 0.25  # of the samples: caches fill, the allocator takes what it needs
LEAST = 8  # samples: fewer are shown, not judged
ERRORS = 4.0  # standard errors; by chance one slope of 30,000 is so steep
FLOOR = {"KiB": 256.0}  # in other units 1

PANEL = (420, 150)  # pixels
MARGIN = (64, 30)


@dataclass(frozen=True)
class Series:
    """One quantity over events (reloads, deaths), without those of the warm-up."""

    name: str
    unit: str  # "KiB", or "" for a number
    events: Sequence[float]
    values: Sequence[float]

    @property
    def line(self) -> tuple[float, float, float]:
        """Height at event 0, slope, and the standard error of the slope."""
        n, x_mean, y_mean = len(self.events), _mean(self.events), _mean(self.values)
        spread = sum((x - x_mean) ** 2 for x in self.events)
        if n < 3 or not spread:
            return y_mean, 0.0, 0.0
        slope = sum((x - x_mean) * (y - y_mean) for x, y in zip(self.events, self.values, strict=True)) / spread
        start = y_mean - slope * x_mean
        rest = sum((y - start - slope * x) ** 2 for x, y in zip(self.events, self.values, strict=True))
        return start, slope, math.sqrt(rest / (n - 2) / spread)

    @property
    def growth(self) -> float:
        """By how much the line rises over the run."""
        return self.line[1] * (self.events[-1] - self.events[0])

    @property
    def is_judged(self) -> bool:
        return len(self.events) >= LEAST

    @property
    def grows(self) -> bool:
        _, slope, error = self.line
        return self.is_judged and self.growth >= FLOOR.get(self.unit, 1.0) and slope > ERRORS * error

    def after(self, events: float) -> tuple[float, float, float]:
        """Where the line is then, and the same with a slope that is two standard errors smaller and larger."""
        start, slope, error = self.line
        middle = start + slope * events
        width = 2 * error * max(0.0, events - _mean(self.events))
        return middle, middle - width, middle + width


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def without_warm_up(name: str, unit: str, events: Sequence[float], values: Sequence[float]) -> Series:
    """A series of all samples but the first."""
    first = int(len(events) * WARM)
    return Series(name, unit, events[first:], values[first:])


def drawing(rows: Sequence[tuple[str, float, Sequence[Series]]]) -> str:
    """An SVG: per row a title, the events of 24 hours, and its series, each in a panel of its own."""
    columns = max(len(series) for _, _, series in rows)
    step_x, step_y = PANEL[0] + MARGIN[0] + 10, PANEL[1] + 2 * MARGIN[1]
    parts = []
    for row, (title, day, series) in enumerate(rows):
        for column, one in enumerate(series):
            shift = f"translate({column * step_x + MARGIN[0]} {row * step_y + MARGIN[1]})"
            parts.append(f'<g transform="{shift}">{_panel(title, day, one)}</g>')
    width, height = columns * step_x + 10, len(rows) * step_y
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    return f"{head} {style}\n" + "\n".join(parts) + "\n</svg>\n"


def _panel(title: str, day: float, series: Series) -> str:
    """Points that were measured, the line through them, and its band to the end of the day."""
    width, height = PANEL
    end = max(day, series.events[-1])
    middle, low, high = series.after(end)
    top = 1.25 * max(*series.values, high)

    def at(x: float, y: float) -> str:
        return f"{x / end * width:.1f},{height - max(0.0, y) / top * height:.1f}"

    last = series.events[-1]
    now = series.after(last)
    dots = "".join(
        '<circle cx="{}" cy="{}" r="1.6" fill="#235"/>'.format(*at(x, y).split(","))
        for x, y in zip(series.events, series.values, strict=True)
    )
    band = " ".join((at(last, now[1]), at(end, low), at(end, high), at(last, now[2])))
    unit = f" ({series.unit})" if series.unit else ""
    return (
        f'<text y="-8" font-weight="bold">{series.name}{unit}</text>'
        f'<path d="M0,0V{height}H{width}" fill="none" stroke="#888"/>'
        f'<polygon points="{band}" fill="#fa5" opacity="0.5"/>'
        f'<polyline points="{at(series.events[0], series.after(series.events[0])[0])} {at(end, middle)}" '
        f'fill="none" stroke="#c40" stroke-dasharray="5 3"/>{dots}'
        f'<text x="-6" y="10" text-anchor="end">{top:,.0f}</text><text x="-6" y="{height}" text-anchor="end">0</text>'
        f'<text y="{height + 14}">0</text><text x="{width}" y="{height + 14}" text-anchor="end">'
        f"{end:,.0f} {title} = 24 h: {middle:,.0f} ({low:,.0f} to {high:,.0f})</text>"
    )

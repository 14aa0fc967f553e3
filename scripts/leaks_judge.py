"""Whether a series of measurements stays where it is, and a drawing of where it would be after a day.

The first half of the samples is warm-up: caches fill, the allocator takes what it needs, a megabyte at a time.
Through the rest goes the line with the median of all slopes between two samples (Theil and Sen): one step, or one
outlier, does not move it; what leaks does. It grows when chance does not explain it (the lower end of the 99.9 %
interval is above zero) and when it rises by more than a floor from the first sample to the last.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WARM = 0.5
LEAST = 8  # samples: fewer are shown, not judged
DEVIATIONS = 3.3  # of the normal distribution, for 99.9 %
FLOOR = {"KiB": 256.0}  # in other units 1: a descriptor, a thread, a file

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
        """The slope, and the ends of the interval around it."""
        points = list(zip(self.events, self.values, strict=True))
        slopes = sorted((y - v) / (x - u) for (u, v), (x, y) in itertools.combinations(points, 2))
        if not slopes:
            return 0.0, 0.0, 0.0
        n = len(points)
        width = DEVIATIONS * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)  # of Kendall's statistic
        low, high = int((len(slopes) - width) / 2), int((len(slopes) + width) / 2)
        return statistics.median(slopes), slopes[max(0, low)], slopes[min(len(slopes) - 1, high)]

    @property
    def growth(self) -> float:
        """By how much the line rises over the samples."""
        return self.line[0] * (self.events[-1] - self.events[0])

    @property
    def is_judged(self) -> bool:
        return len(self.events) >= LEAST

    @property
    def grows(self) -> bool:
        return self.is_judged and self.growth >= FLOOR.get(self.unit, 1.0) and self.line[1] > 0

    def after(self, events: float) -> tuple[float, float, float]:
        """Where the line is then, and those of the ends of the interval, through the middle of the samples."""
        x, y = statistics.median(self.events), statistics.median(self.values)
        middle, low, high = (y + slope * (events - x) for slope in self.line)
        return middle, low, high


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

"""Small charts as inline SVG: their colours are the page's, so they follow it into the dark, and no script draws them.

A chart is about as wide as a phone, and a page sets as many side by side as fit. The class of a line or dot, such as
``m0``, gives it its colour, and lets the page hide it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from dreamer_lpm.report.curves import Curve

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 28
LABELS = 132  # to the left of a dot chart
ROW = 26
GLYPH = 7  # width of a digit in a tick's label


@dataclass(frozen=True)
class Line:
    """A curve and what it is called. ``dots``: single points (x, y) beneath it."""

    css: str
    label: str
    curve: Curve | None = None
    dots: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Dots:
    """A row of a dot chart: each seed, and their IQM with its interval."""

    css: str
    label: str
    seeds: dict[int, float]
    value: float
    low: float | None = None
    high: float | None = None


@dataclass
class _Axis:
    """A nice span of numbers, and where each lies in pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float] = field(default_factory=list)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def number(value: float, percent: bool = False) -> str:
    r"""A figure as it is read: three digits or so, a true minus sign, no line break before "%".

    >>> number(-1234.5), number(0.253, percent=True), number(0.0012)
    ('−1,234', '25\u202f%', '0.0012')
    """
    if percent:
        text = f"{100 * value:z.0f}\u202f%"
    elif value == 0:
        text = "0"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    elif abs(value) >= 0.1:
        text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    else:
        text = f"{value:.2g}"
    return text.replace("-", "−")


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from ``low`` or below to ``high`` or above, 1, 2 or 5 of a power of ten apart.

    >>> ticks(0, 0.93)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = max(high - low, 1e-12) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    last_step: float,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    chance: float | None = None,
) -> str:
    """Curves over env steps, with each seed thin and the interval as a band. ``title`` is for screen readers.

    ``chance``: a dashed line across the chart.
    """
    low, high = limits or span(
        [line.curve for line in lines if line.curve], [line.dots[1] for line in lines if line.dots]
    )
    y = _axis(low, high, HEIGHT - BOTTOM, TOP)
    x = _axis(0, last_step, LEFT, WIDTH - RIGHT, exact=True)
    parts = [_gridline(y(t), _tick(t, y, percent)) for t in y.ticks]
    parts += [_step_tick(x(t), t) for t in x.ticks]
    if chance is not None:
        at = y(chance)
        parts.append(f'<line class="ref" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    parts += [_dots_of(line, line.dots, x, y) for line in lines if line.dots is not None]
    parts += [_seeds_of(line, line.curve, x, y) for line in lines if line.curve is not None]
    parts += [_curve_of(line, line.curve, x, y) for line in lines if line.curve is not None]
    if chance is not None:  # last, or the curves would run through the word
        parts.append(
            f'<text class="ref-label" x="{WIDTH - RIGHT}" y="{y(chance) - 4:.1f}" text-anchor="end">chance</text>'
        )
    return _svg(WIDTH, HEIGHT, title, parts)


def dot_chart(
    rows: Sequence[Dots],
    *,
    title: str,
    percent: bool = False,
    limits: tuple[float, float] | None = None,
    chance: float | None = None,
) -> str:
    """One row for each method: every seed a dot, the IQM a bar, its interval a band. ``chance``: a dashed line."""
    values = [v for row in rows for v in (*row.seeds.values(), row.value, *_ends(row))]
    values += [] if chance is None else [chance]
    low, high = limits or (min(values), max(values))
    top = 8 if chance is None else 22
    height = top + ROW * len(rows) + BOTTOM
    x = _axis(low, high, LABELS, WIDTH - 18)
    bottom = height - BOTTOM
    parts = [f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{bottom}"/>' for t in x.ticks]
    labels = [_tick(t, x, percent) for t in x.ticks]
    room = (x.end - x.start) / (len(labels) - 1)
    every = math.ceil((max(map(len, labels)) + 1) * GLYPH / room)  # long numbers: every second label, or fewer
    parts += [
        f'<text class="tick" x="{x(t):.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
        for t, label in zip(x.ticks[::every], labels[::every], strict=True)
    ]
    if chance is not None:
        at = x(chance)
        side = "start" if at < (LABELS + WIDTH) / 2 else "end"
        parts.append(
            f'<line class="ref" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{bottom}"/><text class="ref-label" '
            f'x="{at + (4 if side == "start" else -4):.1f}" y="{top - 8}" text-anchor="{side}">chance</text>'
        )
    parts += [_dot_row(row, top + ROW * (i + 0.5), x, percent) for i, row in enumerate(rows)]
    return _svg(WIDTH, height, title, parts)


def meter(value: float, low: float | None, high: float | None, chance: float, *, css: str, title: str) -> str:
    """A share in [0, 1] with its interval, and a notch at the chance level, small enough for a table's cell."""
    width, height = 150, 16
    x = _Axis(0, 1, 4, width - 4)
    parts = [f'<rect class="track" x="4" y="6" width="{width - 8}" height="4" rx="2"/>']
    if low is not None and high is not None:
        left, wide = x(max(low, 0)), max(x(min(high, 1)) - x(max(low, 0)), 1)
        parts.append(f'<rect class="band" x="{left:.1f}" y="4" width="{wide:.1f}" height="8" rx="4"/>')
    parts.append(f'<line class="notch" x1="{x(chance):.1f}" x2="{x(chance):.1f}" y1="1" y2="15"/>')
    parts.append(f'<circle class="dot" cx="{x(min(max(value, 0), 1)):.1f}" cy="8" r="4.5"/>')
    return (
        f'<svg class="meter {css}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _ends(row: Dots) -> list[float]:
    return [v for v in (row.low, row.high) if v is not None]


def _axis(low: float, high: float, start: float, end: float, *, exact: bool = False) -> _Axis:
    """``exact`` ends where the data does; else the ends are round numbers."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # equal but for rounding, which no tick could tell apart
        wide = max(0.5, 0.05 * abs(high))
        low, high = low - wide, high + wide
    marks = ticks(low, high)
    if exact:
        return _Axis(low, high, start, end, [t for t in marks if low <= t <= high])
    return _Axis(marks[0], marks[-1], start, end, marks)


def span(curves: Sequence[Curve], more: Sequence[np.ndarray] = ()) -> tuple[float, float]:
    """The lowest and the highest of what will be drawn of the curves, and of ``more``."""
    every = np.concatenate([part for c in curves for part in (c.low, c.high, *c.seeds.values())] + [*more])
    return float(every.min()), float(every.max())


def _tick(value: float, axis: _Axis, percent: bool) -> str:
    if percent:
        return number(value, percent=True)
    step = axis.ticks[1] - axis.ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}".replace("-", "−")


def _gridline(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _step_tick(x: float, step: float) -> str:
    label = f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'


def _points(xs: np.ndarray, ys: np.ndarray, x: _Axis, y: _Axis) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(xs, ys, strict=True))


def _seeds_of(line: Line, curve: Curve, x: _Axis, y: _Axis) -> str:
    band = np.concatenate([curve.steps, curve.steps[::-1]]), np.concatenate([curve.high, curve.low[::-1]])
    thin = "".join(
        f'<polyline class="seed" points="{_points(curve.steps, values, x, y)}">'
        f"<title>{escape(line.label)}, seed {seed}</title></polyline>"
        for seed, values in curve.seeds.items()
        if len(curve.seeds) > 1
    )
    return f'<g class="{line.css}"><polygon class="band" points="{_points(*band, x, y)}"/>{thin}</g>'


def _curve_of(line: Line, curve: Curve, x: _Axis, y: _Axis) -> str:
    return (
        f'<g class="{line.css}"><polyline class="mean" points="{_points(curve.steps, curve.value, x, y)}">'
        f"<title>{escape(line.label)}</title></polyline></g>"
    )


def _dots_of(line: Line, dots: tuple[np.ndarray, np.ndarray], x: _Axis, y: _Axis) -> str:
    drawn = "".join(
        f'<circle class="point" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2"/>' for a, b in zip(*dots, strict=True)
    )
    return f'<g class="{line.css}">{drawn}</g>'


def _dot_row(row: Dots, y: float, x: _Axis, percent: bool) -> str:
    label = row.label if len(row.label) <= 18 else f"{row.label[:8]}…{row.label[-9:]}"  # names often differ at an end
    parts = [
        f'<text class="row" x="{LABELS - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}'
        f"<title>{escape(row.label)}</title></text>"
    ]
    if row.low is not None and row.high is not None:
        wide = max(x(row.high) - x(row.low), 1)
        parts.append(f'<rect class="band" x="{x(row.low):.1f}" y="{y - 6:.1f}" width="{wide:.1f}" height="12" rx="3"/>')
    for i, (seed, value) in enumerate(row.seeds.items()):
        off = (i % 3 - 1) * 3.0 if len(row.seeds) > 1 else 0.0  # so that equal seeds are all seen
        parts.append(
            f'<circle class="point" cx="{x(value):.1f}" cy="{y + off:.1f}" r="3.2">'
            f"<title>{escape(row.label)}, seed {seed}: {number(value, percent)}</title></circle>"
        )
    at = x(row.value)
    parts.append(f'<line class="iqm" x1="{at:.1f}" x2="{at:.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}"/>')
    return f'<g class="{row.css}">{"".join(parts)}</g>'

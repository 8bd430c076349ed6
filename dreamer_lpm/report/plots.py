"""Curves of a run, drawn from ``metrics.jsonl`` alone, so that they can be remade at any time. No torch, no display."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from dreamer_lpm.report.curves import SMOOTHING, series, trailing_mean
from dreamer_lpm.report.metrics import Row, read_metrics
from dreamer_lpm.report.strict_json import write_whole
from dreamer_lpm.types import UserError

CURVES_FILE = "curves.png"

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2563eb", "#ea580c", "#15803d", "#9333ea", "#6b7280"

Points = tuple[np.ndarray, np.ndarray]
Panel = Callable[[Axes], None]


def plot_run(run_dir: Path) -> Path:
    """Draw ``run_dir/curves.png`` and return its path; a panel whose figures the run does not have is left out.

    Raises UserError if ``run_dir`` has no metrics, or none yet that can be drawn.
    """
    rows = read_metrics(run_dir)
    panels = _panels(rows)
    if not panels:
        raise UserError(f"{run_dir} has nothing to draw yet: let the run finish an episode first.")
    figure = _figure(panels, title=run_dir.resolve().name, last_step=max(row["step"] for row in rows))
    path = run_dir / CURVES_FILE
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=110))
    return path


def _figure(panels: Sequence[tuple[str, str, Panel]], *, title: str, last_step: int) -> Figure:
    """Lay two panels in a row; the first, the returns, takes a whole row if that leaves no hole."""
    wide = len(panels) % 2
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(11, 0.6 + 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    grid = figure.add_gridspec(rows, 2)
    for index, (name, unit, draw) in enumerate(panels):
        cell = grid[0, :] if wide and index == 0 else grid[(index + wide) // 2, (index + wide) % 2]
        axes = figure.add_subplot(cell)
        draw(axes)
        axes.set_title(name, fontsize=11, loc="left")
        axes.set_ylabel(unit, fontsize=9)
        axes.set_xlabel("env steps", fontsize=9)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, max(last_step, 1) * 1.02)  # one span for all, so that panels compare at a glance
        handles, labels = axes.get_legend_handles_labels()
        if len(handles) > 1:
            axes.legend(handles, labels, fontsize=8, frameon=False)
    return figure


def _panels(rows: Sequence[Row]) -> list[tuple[str, str, Panel]]:
    """Title, y label and drawing of every panel that has data."""
    bonus = [
        ("TV on", ORANGE, series(rows, "train", "bonus/tv_on")),
        ("TV off", BLUE, series(rows, "train", "bonus/tv_off")),
    ]
    if not any(len(steps) for _, _, (steps, _) in bonus):
        bonus = [("all steps", BLUE, series(rows, "train", "bonus/mean"))]
    world = [
        (name, colour, series(rows, "train", f"loss/{key}"))
        for name, colour, key in (
            ("reconstruction", BLUE, "recon"),
            ("KL", ORANGE, "dyn"),
            ("reward", GREEN, "reward"),
            ("continue", PURPLE, "cont"),
        )
    ]
    error = [("error predictor", PURPLE, series(rows, "train", "loss/error_predictor"))]
    candidates = [
        ("Return of the task", "return", _returns(rows)),
        ("Time in front of the TV", "share of steps", _tv_share(rows)),
        ("Coverage", "visited cells of the state grid", _coverage(rows)),
        ("Intrinsic bonus", "mean per step", _lines(bonus)),
        ("World-model losses", "loss (log scale)", _lines(world, log=True)),
        ("Error-predictor loss", "loss", _lines(error)),
    ]
    return [(name, unit, draw) for name, unit, draw in candidates if draw is not None]


def _returns(rows: Sequence[Row]) -> Panel | None:
    training = series(rows, "episode", "return")
    evaluations = [
        (label, colour, series(rows, "eval", "return_mean", arm), series(rows, "eval", "return_std", arm))
        for label, colour, arm in (("evaluation", ORANGE, "as_trained"), ("evaluation, TV off", GREEN, "tv_off"))
    ]
    if not len(training[0]) and not any(len(mean[0]) for _, _, mean, _ in evaluations):
        return None

    def draw(axes: Axes) -> None:
        _dots_and_mean(axes, training, BLUE, "training episode")
        for label, colour, (steps, mean), (_, spread) in evaluations:
            if len(steps):
                error = spread if len(spread) == len(mean) else None
                axes.errorbar(steps, mean, yerr=error, color=colour, marker="o", ms=5, lw=1.5, capsize=3, label=label)

    return draw


def _tv_share(rows: Sequence[Row]) -> Panel | None:
    training = series(rows, "episode", "tv_share")
    evaluation = series(rows, "eval", "tv_share", "as_trained")
    dreams = series(rows, "train", "dream/tv_share")
    chance = series(rows, "episode", "tv_chance")[1]
    if not any(len(steps) for steps, _ in (training, evaluation, dreams)):
        return None

    def draw(axes: Axes) -> None:
        _dots_and_mean(axes, training, BLUE, "training episode")
        if len(dreams[0]):
            axes.plot(*dreams, color=PURPLE, lw=1.2, marker="o" if len(dreams[0]) < 3 else "", label="in dreams")
        if len(evaluation[0]):
            axes.plot(*evaluation, color=ORANGE, marker="o", ms=5, lw=1.5, label="evaluation")
        if len(chance):
            axes.axhline(chance[-1], color=GREY, ls="--", lw=1.2, label=f"chance level {chance[-1]:.2f}")
        axes.set_ylim(-0.03, 1.03)

    return draw


def _coverage(rows: Sequence[Row]) -> Panel | None:
    steps, visited = series(rows, "episode", "coverage")
    if not len(steps):
        return None

    def draw(axes: Axes) -> None:
        axes.plot(steps, visited, color=GREEN, lw=1.8, marker="o" if len(steps) < 3 else "")
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    return draw


def _lines(series: Sequence[tuple[str, str, Points]], *, log: bool = False) -> Panel | None:
    present = [(label, colour, points) for label, colour, points in series if len(points[0])]
    if not present:
        return None

    def draw(axes: Axes) -> None:
        for label, colour, (steps, values) in present:
            axes.plot(steps, values, color=colour, lw=1.4, marker="o" if len(steps) < 3 else "", label=label)
        if log and all((values > 0).all() for _, _, (_, values) in present):
            axes.set_yscale("log")
        elif not log:
            axes.axhline(0, color=GREY, lw=0.8)

    return draw


def _dots_and_mean(axes: Axes, points: Points, colour: str, label: str) -> None:
    """Draw every episode as a dot, and the mean of the last five as a line."""
    steps, values = points
    if len(steps):
        axes.plot(steps, values, ".", color=colour, alpha=0.5, ms=6, label=label)
    if len(steps) > SMOOTHING:
        whole = slice(SMOOTHING - 1, None)
        axes.plot(steps[whole], trailing_mean(values)[whole], color=colour, lw=2, label=f"mean of {SMOOTHING}")

"""Curves from metrics.jsonl alone: every panel that has data, none that has not."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dreamer_lpm.report.metrics import MetricsLog, read_metrics
from dreamer_lpm.report.plots import _figure, _panels, plot_run
from dreamer_lpm.types import UserError


def write_run(run_dir: Path, *, tv: bool, episodes: int) -> None:
    with MetricsLog(run_dir) as log:
        for episode in range(1, episodes + 1):
            step = 200 * episode
            tv_episode = {"tv_share": 0.5 / episode, "tv_chance": 0.44, "coverage": 0.06 * episode} if tv else {}
            log.write(step, "episode", {"return": -1000.0 + step, "length": 100, **tv_episode})
            by_tv = {"bonus/tv_on": 0.01, "bonus/tv_off": 0.2, "dream/tv_share": 0.3} if tv else {}
            losses = {"loss/recon": 100.0 / episode, "loss/kl": 1.5, "loss/reward": 0.5, "loss/cont": 0.01}
            log.write(step, "train", {**losses, "loss/error_predictor": 0.3, "bonus/mean": 0.1, **by_tv})
        for arm in ("as_trained", "tv_off") if tv else ("as_trained",):
            values = {
                "arm": arm,
                "return_mean": -200.0,
                "return_std": 20.0,
                "returns": [-180.0, -220.0],
                "tv_share": 0.1,
            }
            log.write(200 * episodes, "eval", values)


def axes_of(run_dir: Path) -> dict[str, Axes]:
    rows = read_metrics(run_dir)
    figure: Figure = _figure(_panels(rows), title="run", last_step=max(row["step"] for row in rows))
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def labels(axes: Axes) -> set[str]:
    return set(axes.get_legend_handles_labels()[1])


def test_curves_are_one_whole_png(tmp_path: Path) -> None:
    write_run(tmp_path, tv=True, episodes=10)
    path = plot_run(tmp_path)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as image:
        image.load()
        assert image.width > 1000
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert {item.name for item in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png"}


def test_a_tv_run_shows_all(tmp_path: Path) -> None:
    write_run(tmp_path, tv=True, episodes=10)
    axes = axes_of(tmp_path)
    assert list(axes) == [
        "Return of the task",
        "Time in front of the TV",
        "Coverage",
        "Intrinsic bonus",
        "World-model losses",
        "Error-predictor loss",
    ]
    assert labels(axes["Return of the task"]) == {"training episode", "mean of 5", "evaluation", "evaluation, TV off"}
    shares = {"training episode", "mean of 5", "evaluation", "in dreams", "chance level 0.44"}
    assert labels(axes["Time in front of the TV"]) == shares
    np.testing.assert_allclose(axes["Coverage"].lines[0].get_ydata(), 0.06 * np.arange(1, 11))
    assert axes["Coverage"].get_ylim() == (0, 1)
    assert labels(axes["Intrinsic bonus"]) == {"TV on", "TV off"}
    assert axes["World-model losses"].get_yscale() == "log"


def test_lines_carry_the_figures_of_the_file(tmp_path: Path) -> None:
    write_run(tmp_path, tv=True, episodes=7)
    lines = {str(line.get_label()): line for line in axes_of(tmp_path)["Return of the task"].lines}
    np.testing.assert_allclose(lines["training episode"].get_xdata(), 200.0 * np.arange(1, 8))
    np.testing.assert_allclose(lines["training episode"].get_ydata(), -1000 + 200.0 * np.arange(1, 8))
    np.testing.assert_allclose(lines["mean of 5"].get_xdata(), [1000, 1200, 1400])
    np.testing.assert_allclose(lines["mean of 5"].get_ydata(), [-400, -200, 0])


def test_a_run_without_tv_has_no_tv_panel(tmp_path: Path) -> None:
    write_run(tmp_path, tv=False, episodes=3)
    with MetricsLog(tmp_path / "bare") as log:
        log.write(200, "episode", {"return": -900.0, "length": 200})
    assert list(axes_of(tmp_path / "bare")) == ["Return of the task"]
    axes = axes_of(tmp_path)
    assert labels(axes["Intrinsic bonus"]) == {"all steps"}
    assert labels(axes["Return of the task"]) == {"training episode", "evaluation"}


@pytest.mark.parametrize("episodes", [1, 2, 6])
def test_few_points_draw_without_a_warning(tmp_path: Path, episodes: int) -> None:
    write_run(tmp_path, tv=True, episodes=episodes)
    assert plot_run(tmp_path).stat().st_size > 10_000


def test_gaps_and_zeros_are_left_out_or_shown_on_a_plain_scale(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.write(100, "train", {"loss/recon": math.nan, "loss/cont": 0.0})
        log.write(200, "train", {"loss/recon": 2.0, "loss/cont": 0.0})
    axes = axes_of(tmp_path)["World-model losses"]
    assert axes.get_yscale() == "linear"  # a logarithm would hide the zeros
    lines = {str(line.get_label()): line for line in axes.lines}
    np.testing.assert_allclose(lines["reconstruction"].get_xdata(), [200])


def test_nothing_to_draw_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        plot_run(tmp_path)
    with MetricsLog(tmp_path) as log:
        log.write(10, "train", {"loss/actor": 1.0})
    with pytest.raises(UserError, match="nothing to draw yet"):
        plot_run(tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_a_run_of_before_dreams_and_coverage_were_measured_is_still_drawn(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (100, 200):
            log.write(step, "episode", {"return": -1.0, "length": 100, "tv_share": 0.5, "tv_chance": 0.25})
    axes = axes_of(tmp_path)
    assert list(axes) == ["Return of the task", "Time in front of the TV"]
    assert labels(axes["Time in front of the TV"]) == {"training episode", "chance level 0.25"}


def test_dreams_that_nothing_could_be_said_of_are_left_out(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step, share in ((100, math.nan), (200, 0.5), (300, math.nan), (400, 0.25)):
            log.write(step, "train", {"dream/tv_share": share})
    (line,) = axes_of(tmp_path)["Time in front of the TV"].lines
    np.testing.assert_allclose(line.get_xdata(), [200, 400])

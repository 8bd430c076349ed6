"""When the TV was left for good, on runs whose answer is plain to see."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamer_lpm.report.measures import escape_step, late_mean, late_tv_share

ON, HALF, OFF = [50, 50], [25, 50], [0, 50]


@pytest.mark.parametrize(
    ("bins", "chance", "step"),
    [
        ([OFF] * 20, 0.25, 0),  # never above
        ([HALF] * 20, 0.5, 0),  # at chance is not above
        ([HALF] * 20, 0.49, None),  # above to the end
        ([OFF] * 15 + [ON] * 5, 0.25, None),  # captured late
        ([ON] * 10 + [OFF] * 20, 0.0, 1000),  # every window that begins later is clean
        ([ON] * 10 + [OFF] * 20, 0.5, 800),  # one with two TV bins is not: 0.4
        ([ON] * 5 + [OFF] * 20 + [ON] * 5 + [OFF] * 20, 0.0, 3000),  # the last visit counts
        ([OFF] * 4, 0.25, None),  # shorter than a window: nobody can say
        ([], 0.25, None),
    ],
)
def test_escape(bins: list[list[int]], chance: float, step: int | None) -> None:
    assert escape_step(bins, chance) == step


@given(st.lists(st.tuples(st.integers(0, 50), st.just(50)), min_size=5, max_size=40), st.sampled_from([0.1, 0.25, 0.7]))
def test_escape_is_what_it_says(bins: list[tuple[int, int]], chance: float) -> None:
    """Every window from that step on is at or below chance, and the one before is not."""
    above = [sum(on for on, _ in bins[i : i + 5]) / 250 > chance + 1e-9 for i in range(len(bins) - 4)]
    step = escape_step(bins, chance)
    if step is None:
        assert above[-1]
    else:
        assert not any(above[step // 100 :])
        assert step == 0 or above[step // 100 - 1]


@pytest.mark.parametrize(("on", "chance"), [(29, 0.29), (14, 0.14), (57, 0.57), (7, 0.07)])
def test_a_share_of_exactly_chance_is_not_above_it_however_it_rounds(on: int, chance: float) -> None:
    assert escape_step([(on, 100)] * 5, chance) == 0
    assert escape_step([(on, 100)] * 4 + [(on + 1, 100)], chance) is None


def test_bins_of_unequal_or_no_steps_weigh_as_their_steps() -> None:
    """Many envs side by side pass a bin in one stride."""
    assert escape_step([(10, 10), (0, 0), (0, 0), (0, 0), (0, 90)], 0.1) == 0
    assert escape_step([(10, 10), (0, 0), (0, 0), (0, 0), (0, 89)], 0.1) is None
    assert escape_step([(0, 0)] * 5, 0.1) == 0


@pytest.mark.parametrize(
    ("bins", "step"),
    [
        ([[64, 64], *[[0, 0]] * 9] * 3, None),  # on at all steps
        ([[64, 64], *[[0, 0]] * 9, [0, 64], *[[0, 0]] * 9], 100),
        ([[0, 64], *[[0, 0]] * 9, [64, 64], *[[0, 0]] * 9], None),
    ],
)
def test_windows_without_steps_say_nothing(bins: list[list[int]], step: int | None) -> None:
    """With a thousand envs a stride passes several windows."""
    assert escape_step(bins, 0.25) == step


def test_the_last_quarter_of_the_tv() -> None:
    assert late_tv_share([ON] * 30 + [HALF] * 10, 4000) == 0.5
    assert late_tv_share([ON] * 29 + [HALF] * 10 + [OFF], 4000) == pytest.approx(0.45)
    assert late_tv_share([[3, 10], [1, 2]], 160) == 0.5  # to the bin
    assert late_tv_share([[3, 10]], 10) == 0.3
    assert late_tv_share([], 0) is None


def test_the_last_quarter_of_a_metric() -> None:
    rows = [{"step": step, "kind": "train", "a": float(step)} for step in range(100, 1001, 100)]
    assert late_mean(rows, "a", 1000) == 900.0
    assert late_mean(rows, "b", 1000) is None
    rows[-1]["a"] = math.nan
    assert late_mean(rows, "a", 1000) == 850.0
    assert late_mean([*rows, {"step": 1000, "kind": "eval", "a": 0.0}], "a", 1000) == 850.0
    assert late_mean(rows[:3], "a", 1000) is None

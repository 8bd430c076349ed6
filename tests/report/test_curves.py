"""Curves of seeds whose episodes end at different steps."""

from __future__ import annotations

import numpy as np
import pytest

from dreamer_lpm.report.curves import POINTS, curve, series, trailing_mean


def test_series_takes_what_is_there() -> None:
    rows = [
        {"step": 1, "kind": "episode", "return": 2.0},
        {"step": 2, "kind": "episode", "return": float("nan")},
        {"step": 3, "kind": "train", "return": 9.0},
        {"step": 4, "kind": "eval", "arm": "tv_off", "return": 5.0},
        {"step": 5, "kind": "episode", "return": "text"},
    ]
    steps, values = series(rows, "episode", "return")
    assert (steps.tolist(), values.tolist()) == ([1], [2])
    assert series(rows, "eval", "return", "as_trained")[0].size == 0
    assert series(rows, "eval", "return", "tv_off")[1].tolist() == [5]


def test_trailing_mean_looks_back_only() -> None:
    values = np.random.default_rng(0).normal(size=30)
    expected = [values[max(0, i - 4) : i + 1].mean() for i in range(30)]
    assert trailing_mean(values) == pytest.approx(np.array(expected))


def test_curve_is_drawn_where_every_seed_was() -> None:
    line = {seed: (np.arange(start, end + 1.0), 2 * np.arange(start, end + 1.0)) for seed, start, end in
            ((0, 0, 100), (1, 20, 120), (2, 10, 90))}  # fmt: skip
    found = curve(line, smooth=False)
    assert found is not None
    assert (found.steps[0], found.steps[-1], len(found.steps)) == (20, 90, POINTS)
    assert found.value == pytest.approx(2 * found.steps)
    assert set(found.seeds) == {0, 1, 2}


def test_no_curve_without_a_common_stretch() -> None:
    here, there = (np.array([1.0, 2.0]), np.zeros(2)), (np.array([3.0, 4.0]), np.zeros(2))
    assert curve({0: here, 1: there}) is None
    assert curve({0: (np.array([1.0]), np.array([1.0]))}) is None
    assert curve({}) is None

"""What both testbeds share."""

import math
from pathlib import Path
from types import ModuleType

import pytest


def test_interval_is_students(testbed: ModuleType) -> None:
    mean, half = testbed.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    # t of two degrees of freedom is known in closed form: p(|t| > x) = 1 - x / sqrt(2 + x^2).
    x = half * math.sqrt(3)
    assert 1 - x / math.sqrt(2 + x * x) == pytest.approx(0.05)


def test_one_seed_has_no_interval(testbed: ModuleType) -> None:
    mean, half = testbed.interval([4.0])
    assert mean == 4.0
    assert math.isnan(half)
    assert [testbed.told(mean, half), testbed.told(mean, 0.5, "+.1f")] == ["4.00", "+4.0 ± 0.5"]


def test_rows_come_back(testbed: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    assert testbed.read_rows(path) == []
    testbed.write_rows(path, [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}])
    assert testbed.read_rows(path) == [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]

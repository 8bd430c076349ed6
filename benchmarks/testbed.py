"""What the testbeds share: the interval of a mean, and the file that says what made a result."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

from dreamer_lpm.report.strict_json import write_atomically, write_json
from dreamer_lpm.report.summary import versions

Row = dict[str, Any]


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean of one figure a seed, and half the width of its 95 % interval (Student's t; NaN for a single seed)."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()), float("nan")
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean()), float(half)


def told(middle: float, half: float, form: str = ".2f") -> str:
    """``0.08 ± 0.03``; of a single seed only ``0.08``."""
    return f"{middle:{form}}" + ("" if math.isnan(half) else f" ± {half:{form.lstrip('+')}}")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, every cell a string; none when the file is not there yet."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the CSV in one piece, so that a run stopped half-way leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def write_summary(out: Path, command: str, figures: Mapping[str, Any]) -> None:
    """Write ``out/summary.json``: the command line, the versions and the figures."""
    extra = {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
    write_json(out / "summary.json", {"command": command, "versions": {**versions(), **extra}, **figures})

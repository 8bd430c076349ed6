"""A few of the random kills whose counts are in ``benchmarks/results/faults``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("counts", [["--runs", "3"], ["--runs", "1", "--kills", "4"]])
def test_killed_at_random_and_resumed_equals_uninterrupted(counts: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.kills", *counts, "--out", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    assert out["equal"] == out["runs"] == int(counts[1])
    assert out["kills"] == len(out["moments"]) >= 3

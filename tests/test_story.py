"""The whole of `make story`, with the smallest agents: two runs, and what is drawn from them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TINY = """
--tv-images static --steps 600 --time-limit 50 --prefill 300 --update-every 40 --batch-size 2 --seq-length 6
--world.depth 2 --world.rssm.deter 16 --world.rssm.hidden 16 --world.rssm.stoch 4 --world.rssm.classes 4
--behavior.hidden 16 --behavior.layers 1 --behavior.horizon 3 --behavior.starts 4 --bonus.hidden 16 --bonus.queue 40
--device cpu --precision fp32
"""


@pytest.mark.timeout(600)  # three processes that load torch, on a machine that may be busy
def test_two_runs_become_a_film(tmp_path: Path) -> None:
    out = tmp_path / "story"
    command = [sys.executable, str(ROOT / "benchmarks" / "story.py"), "--out", str(out), *TINY.split()]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}  # also where the package is not installed
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("grid/cells/*/summary.json"))]
    assert [run["curiosity"] for run in runs] == ["lpm_dual", "prediction_error"]
    for run in runs:
        assert f"{run['tv_share_last_quarter']:.0%}".replace("%", " %") in done.stdout
    assert "chance is 25 %" in done.stdout

    with (out / "tv_share.csv").open(newline="") as file:
        [window] = csv.DictReader(file)
    assert window["to_step"] == "500"
    # Each of the run's own episodes has 25 agent steps, so ten of them are the window.
    rows = [json.loads(line) for line in (out / "grid/cells/lpm_dual-remote-0/metrics.jsonl").read_text().splitlines()]
    shares = [row["tv_share"] for row in rows if row["kind"] == "episode" and row["step"] <= 500]
    assert len(shares) == 10
    assert abs(float(window["lpm_dual"]) - sum(shares) / 10) < 1e-3

    with Image.open(out / "story.gif") as film:
        assert film.size == (704, 624)
    assert (out / "story.mp4").stat().st_size > 10_000
    assert (out / "story.png").stat().st_size > 10_000

"""What a grid will take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dreamer_lpm.compare import cost
from dreamer_lpm.report.grid import Cell
from dreamer_lpm.state import State
from tests.tiny_run import TINY


def test_updates_begin_after_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, learn = [0.0], State.learn

    def learning(self: State) -> None:
        clock[0] += 1.0
        learn(self)

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(State, "learn", learning)
    found = cost.timed(replace(TINY, steps=1000, prefill=200, update_every=4.0))
    assert found.seconds == pytest.approx((1000 - 200) / 4)


def test_like_cells_take_the_memory_of_the_largest_and_the_time_of_the_middle_one(tmp_path: Path) -> None:
    cells = []
    for i, peak in enumerate((1e9, 3e9, 2e9)):
        cells.append(Cell("m", "a", i, tmp_path / str(i)))
        cells[-1].folder.mkdir()
        about = {"wall_seconds": 10.0 * i, "peak_memory_bytes": peak}
        (cells[-1].folder / "summary.json").write_text(json.dumps(about))
    found = cost.from_finished(cells)
    assert found is not None
    assert (found.memory, found.seconds) == (3e9, 10.0)

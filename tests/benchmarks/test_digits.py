"""The testbed of digits: what it shows, what it computes, what it writes."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from dreamer_lpm.curiosity import log_mse, mse


def test_learnable_pictures_stay_and_noisy_ones_do_not(digits: ModuleType) -> None:
    stream = digits.Digits(seed=3)
    before, after = stream.draw("learnable", 50)
    assert torch.equal(before, after)
    before, after = stream.draw("noisy", 50)
    for picture, following in zip(before, after, strict=True):
        assert (picture == stream.ones).all(1).any()
        assert (following == stream.others).all(1).any()
    assert len(after.unique(dim=0)) > 40
    assert 0 <= float(after.min()) < float(after.max()) == 1


def test_the_error_is_that_of_the_prediction_made_before(digits: ModuleType) -> None:
    torch.manual_seed(0)
    watched = digits.Watched(digits.Setting(hidden=8, queue=64))
    before, after = digits.Digits(0).draw("noisy", 6)
    wrong = (watched.predictor(before).detach() - after).square().mean(1)
    t = watched.transition(before, after)
    assert torch.allclose(mse(t), wrong)
    assert watched.paid(t)["error"] == pytest.approx(float(wrong.mean()), rel=1e-5)


def test_the_papers_gate_opens_when_the_queue_is_full(digits: ModuleType) -> None:
    torch.manual_seed(0)
    watched = digits.Watched(digits.Setting(hidden=8, queue=64))
    stream = digits.Digits(0)
    t = watched.transition(*stream.draw("noisy", 32))
    for _ in range(2):
        assert watched.paid(t)["lpm_queue_gate"] == 0
        watched.learn(*stream.draw("noisy", 32))
    t = watched.transition(t.feat, t.next_feat)
    with torch.no_grad():
        bonus = watched.lpm.predictor(t.feat, t.action) - log_mse(t)
    assert abs(bonus.mean()) > 0.1
    assert watched.paid(t)["lpm_queue_gate"] == pytest.approx(float(bonus.mean()), rel=1e-5)
    assert watched.paid(t)["lpm"] == 0  # the library's own gate also waits for the fit


@pytest.mark.parametrize(
    ("curve", "update"), [([0, 5, 2, 0.5, 0.5], 15), ([0, 5, 0, 0, 2], None), ([0, 0.9, 0.9, -0.9, 0], 0)]
)
def test_near_zero_means_for_good(digits: ModuleType, curve: list[float], update: int | None) -> None:
    assert digits.near_zero_from(np.array(curve), 10, [0, 5, 10, 15, 20]) == update


def test_a_run_writes_all_and_goes_on_where_it_stopped(digits: ModuleType, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    digits.main(["--seeds", "2", "--updates", "40", "--out", str(whole)])
    rows = (whole / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 9
    assert rows[0].startswith("seed,update,error_learnable,error_noisy,ama_learnable")
    assert (whole / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "table.md").read_text().count("\n") == 2 + 6
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["command"] == "python3 benchmarks/digits.py --seeds 2"
    assert "torch" in summary["versions"]
    assert summary["bonuses"]["error"]["near_zero_from_noisy"] is None

    digits.main(["--seeds", "1", "--updates", "40", "--out", str(pieces)])
    digits.main(["--seeds", "2", "--updates", "40", "--out", str(pieces)])
    assert (pieces / "results.csv").read_text().splitlines() == rows
    with pytest.raises(SystemExit):
        digits.main(["--seeds", "1", "--updates", "45", "--out", str(pieces)])


def test_the_committed_table_follows_from_the_committed_rows(
    digits: ModuleType, testbed: ModuleType, results: Path, page: str
) -> None:
    folder = results / "digits"
    rows = testbed.read_rows(folder / "results.csv")
    at = digits.checkpoints(digits.Setting.updates)
    assert len(rows) == 10 * len(at)
    table = digits.table(digits.figures(rows, at), digits.Setting.updates)
    assert table in (folder / "table.md").read_text(encoding="utf-8")
    assert table in page

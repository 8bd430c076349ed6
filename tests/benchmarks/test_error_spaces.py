"""The testbed of error spaces: who is asked, of what, and what it writes."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dreamer_lpm.curiosity import CuriosityConfig, Dims, Transition, build_curiosity


def transition(error: list[float]) -> Transition:
    """One sequence of as many steps, of which the last crosses the end of an episode."""
    n = len(error)
    seen = torch.rand(1, n, 64, 64, 3)
    mask = torch.tensor([[True] * (n - 1) + [False]])
    steps = Transition(torch.rand(1, n, 5), torch.rand(1, n, 2), torch.rand(1, n, 5), mask, seen, seen, seen)
    seen_embeds = {"target_embed": torch.rand(1, n, 7), "predicted_embed": torch.rand(1, n, 7)}
    return replace(steps, error=torch.tensor([error]), kl=torch.rand(1, n), **seen_embeds)


def test_each_bonus_in_each_space_is_the_librarys_and_nobody_is_paid(error_spaces: ModuleType) -> None:
    cfg, dims = CuriosityConfig(hidden=8), Dims(5, 2)
    watching = error_spaces.Onlookers(cfg, dims)
    assert len(watching.each) == 3 * 4
    alone = build_curiosity("lpm", replace(cfg, error_space="kl"), dims)
    assert str(watching.each["lpm_kl"]) == str(alone)
    t = transition([0.1, 0.2, 0.3])
    assert float(watching.reward(t).abs().max()) == 0
    losses = watching.loss(t)
    assert {key.split("/")[0] for key in losses} == set(watching.each)


def test_what_is_paid_is_counted_by_what_was_on_and_never_across_the_end(error_spaces: ModuleType) -> None:
    watching = error_spaces.Onlookers(CuriosityConfig(hidden=8), Dims(5, 2))
    t = transition([0.1, 0.2, 0.3])
    watching.loss(t)
    watching.each["first"] = SimpleNamespace(reward=lambda t: t.feat[..., 0])  # the library's pay nothing at first
    paid = watching.paid(torch.tensor([[True, False, True]]))
    each = t.feat[0, :, 0]
    assert [int(paid[f"first_{kind}"][1]) for kind in ("on", "off")] == [1, 1]
    assert float(paid["first_on"][0]) == pytest.approx(float(each[0]))
    assert float(paid["first_off"][0]) == pytest.approx(float(each[1]))


def test_too_few_steps_are_refused_before_anything_runs(
    error_spaces: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        error_spaces.main(["--steps", "159", "--out", str(tmp_path / "none")])
    assert "--steps 160 or more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gate", ["gate", "no gate"])
def test_the_env_is_the_studys(error_spaces: ModuleType, gate: str) -> None:
    cfg = error_spaces.config(3, gate, 400)
    assert cfg.env().tv.describe() == (
        "A TV shows photos over the full frame: a new picture on each step that presses an extra button."
    )
    assert (cfg.agent.world.rssm.noise_gate, cfg.seed, cfg.steps) == (gate == "gate", 3, 400)


def test_a_run_writes_all_and_goes_on_where_it_stopped(
    error_spaces: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    error_spaces.main(["--seeds", "2", "--steps", "160", "--out", str(whole)])
    rows = (whole / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 3
    assert rows[0].startswith("gate,seed,step,prediction_error_frame_on,prediction_error_random_on")
    assert (whole / "error_spaces_no_gate.png").read_bytes().startswith(b"\x89PNG")
    assert (whole / "table.md").read_text().count("\n") == 2 + 2 * 3 * 4
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["command"] == "python3 benchmarks/error_spaces.py --seeds 2 --steps 160"
    assert summary["figures"][0]["first_on"][0] > 0

    monkeypatch.setattr(error_spaces, "draw", lambda *args: None)  # a second each
    error_spaces.main(["--seeds", "1", "--steps", "160", "--out", str(pieces)])
    error_spaces.main(["--seeds", "2", "--steps", "160", "--out", str(pieces)])
    assert (pieces / "results.csv").read_text().splitlines() == rows
    with pytest.raises(SystemExit):
        error_spaces.main(["--seeds", "1", "--steps", "200", "--out", str(pieces)])


def test_the_committed_table_follows_from_the_committed_rows(
    error_spaces: ModuleType, testbed: ModuleType, results: Path, page: str
) -> None:
    folder = results / "error_spaces"
    rows = testbed.read_rows(folder / "results.csv")
    assert len(rows) == 2 * 3 * 20
    table = error_spaces.table(error_spaces.figures(rows))
    assert table in (folder / "table.md").read_text(encoding="utf-8")
    assert table in page

"""What the page of the study says is what its committed runs say."""

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

from dreamer_lpm.report.grid import AgainstSham, Grid, read_grid
from dreamer_lpm.report.statistics import Estimate
from tests.report.fake_grid import write_grid

ROOT = Path(__file__).parents[2]


def test_the_page_follows_from_the_committed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn anew by the command that the page gives, which leaves out none of the folders."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    text = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    line = r"^    python3 benchmarks/study.py benchmarks/results/study/{(.*)} --page docs/study.md$"
    command = re.search(line, text, re.MULTILINE)
    assert command
    names = command[1].split(",")
    results = ROOT / "benchmarks" / "results" / "study"
    assert sorted(names) == sorted(folder.name for folder in results.iterdir())
    page = tmp_path / "study.md"
    page.write_text(re.sub(r"(:begin -->).*?(<!-- \w+:end)", r"\1\n\2", text, flags=re.DOTALL), encoding="utf-8")
    folders = [str(results / name) for name in names]
    (tmp_path / "images").mkdir()
    import_module("study").main([*folders, "--page", str(page)])
    assert page.read_text(encoding="utf-8") == text
    assert {p.name for p in tmp_path.glob("images/*")} == {"study_tv_share.png", "study_k1.png"}


def test_a_long_run_that_was_cut_off_is_no_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    study = import_module("study")
    folder = write_grid(tmp_path / "grid", {"lpm": [0.1, 0.2]})
    for path in folder.glob("cells/*/config.json"):
        config = json.loads(path.read_text())["config"]
        path.write_text(json.dumps({"config": {**config, "steps": 12_000, "agent": {"extrinsic": 0}}}))
    assert study.pooled([read_grid(folder)]) == []
    for path in folder.glob("cells/*/config.json"):
        config = json.loads(path.read_text())["config"]
        path.write_text(json.dumps({"config": {**config, "steps": 6_200}}))
    [grid] = study.pooled([read_grid(folder)])
    assert len(grid.cells) == 4


def test_who_learned_nothing_has_nothing_to_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    study = import_module("study")
    grid = read_grid(write_grid(tmp_path / "grid", {"lpm": [0.1] * 3}))
    nothing = AgainstSham("sham", [0, 1, 2], Estimate(0.0, None, None, 3), None, "it learned nothing")
    monkeypatch.setattr(study, "against_sham", lambda *_: nothing)
    row = study.rewarded(grid, ["lpm"], ["sham", "remote"])[-1]
    assert row.split(" | ")[-2] == "-"


def test_a_folder_that_holds_nothing_of_the_study_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    study = import_module("study")
    with pytest.raises(SystemExit):
        study.main([str(tmp_path)])
    assert "holds no grid (no grid.json)" in capsys.readouterr().err
    monkeypatch.setattr(study, "read_grid", lambda folder: Grid(folder, [], {}, [], [], {}))
    with pytest.raises(SystemExit):
        study.main([str(tmp_path)])
    assert "these folders hold no runs of free_random in remote, free_none in remote" in capsys.readouterr().err

"""What the page of the study says is what its committed runs say."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from dreamer_lpm.report.grid import Grid

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

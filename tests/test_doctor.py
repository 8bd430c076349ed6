"""The doctor: well, damaged or unfinished, each told apart, in words and by the exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamer_lpm import cli, doctor
from dreamer_lpm.checkpoint import checkpoints
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.lock import RunLock
from dreamer_lpm.report.strict_json import sealed
from dreamer_lpm.train import read_config
from tests.faults.conftest import finished, quick, run_dir

__all__ = ["finished", "quick", "run_dir"]  # fixtures


def said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit status, and what was said: thing -> (state, words)."""
    capsys.readouterr()
    status = cli.main(["doctor", str(run_dir)])
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.replace("in use", "in_use").splitlines()]
    return status, {what: (state, words) for state, what, words in lines}


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run_dir)): p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def test_a_whole_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run_dir)
    status, found = said(run_dir, capsys)
    assert status == 0
    assert {state for state, _ in found.values()} == {"ok", "note"}
    assert found["config.json"] == ("ok", "CartPole-v1, 100 steps asked for")
    assert found["step_000000090"] == found["step_000000100"] == ("ok", "every file is as it was written")
    assert found["metrics.jsonl"][1].endswith("lines to step 100")
    assert found["summary.json"] == ("ok", "of a run that ended at 100 steps")
    assert found["agent_lpm.pth"] == ("ok", "an agent of 100 steps")
    assert found["agent_best.pth"][1] in ("an agent of 40 steps", "an agent of 80 steps")
    assert found["resume"] == (
        "note",
        f"--resume --run-name mine --runs {run_dir.parent} --steps N (more than 100) goes on at step 100, with "
        "step_000000100",
    )
    assert files(run_dir) == before, "looking changes nothing"


def test_an_agent_with_a_bonus_that_is_not_known_here_is_not_damaged(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    curiosity = read_config(run_dir)["config"]["agent"]["curiosity"]
    monkeypatch.delitem(REGISTRY, curiosity)
    status, found = said(run_dir, capsys)
    assert status == 0
    assert found["agent_lpm.pth"][0] == "note"
    assert "One of your own is known once" in found["agent_lpm.pth"][1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, Path.unlink])
@pytest.mark.parametrize(
    ("name", "what", "resumes"),
    [
        ("checkpoints/step_000000100/state.pt", "step_000000100", 90),
        ("checkpoints/step_000000100/state.json", "step_000000100", 90),
        ("checkpoints/step_000000100/config.json", "step_000000100", 90),
        ("checkpoints/step_000000100/manifest.json", "step_000000100", 90),
        ("checkpoints/step_000000090/state.pt", "step_000000090", 100),
        ("metrics.jsonl", "metrics.jsonl", 100),
        ("agent_lpm.pth", "agent_lpm.pth", 100),
    ],
)
def test_one_file_damaged(
    name: str, what: str, resumes: int, harm: Callable[[Path], None], run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "agent_lpm.pth":
        harm = flip  # a run that is not finished has none
    harm(run_dir / name)
    status, found = said(run_dir, capsys)
    assert status == 1
    assert [key for key, (state, _) in found.items() if state == "damaged"] == [what]
    if (name, harm) == ("metrics.jsonl", Path.unlink):
        assert found["resume"][1] == "refused until metrics.jsonl is restored: it ends before step 100"
    else:
        assert f"goes on at step {resumes}," in found["resume"][1]


def test_a_run_that_asks_for_more_goes_on_without_steps(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "config.json"
    about = json.loads(path.read_text())
    about["config"]["steps"] = 200
    path.write_text(json.dumps(sealed({k: v for k, v in about.items() if k != "sha256"})))
    assert "--steps" not in said(run_dir, capsys)[1]["resume"][1]


def test_a_config_that_is_gone_is_no_missing_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "config.json").unlink()
    status, found = said(run_dir, capsys)
    assert (status, found["config.json"][0]) == (1, "damaged")
    assert "config.json is gone; put back its copy: cp " in found["config.json"][1]


def test_a_damaged_config_names_the_copy_to_put_back_and_that_mends_it(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run_dir / "config.json")
    status, found = said(run_dir, capsys)
    assert found["resume"] == ("note", "refused until config.json is restored")
    words = found["config.json"][1]
    assert (status, found["config.json"][0]) == (1, "damaged")
    copy = run_dir / "checkpoints" / "step_000000100" / "config.json"
    assert words == f"{run_dir}/config.json is damaged; put back its copy: cp {copy} {run_dir}/config.json."
    (run_dir / "config.json").write_bytes(copy.read_bytes())
    assert said(run_dir, capsys)[0] == 0


def test_a_summary_that_was_cut_short(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / "summary.json"
    path.write_text(path.read_text()[:-20])
    status, found = said(run_dir, capsys)
    assert (status, found["summary.json"][0]) == (1, "damaged")


def test_everything_damaged(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in checkpoints(run_dir):
        flip(folder / "state.pt")
    status, found = said(run_dir, capsys)
    assert (status, found["resume"][1]) == (1, "nothing can be resumed: every checkpoint is damaged")


def test_nothing_saved_yet_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    about = sealed({"config": {"env_name": "CartPole-v1", "steps": 9}})
    (tmp_path / "mine" / "config.json").write_text(json.dumps(about))
    status, found = said(tmp_path / "mine", capsys)
    assert status == 0
    again = f"--resume --run-name mine --runs {tmp_path}"
    assert found["resume"][1] == f"nothing was saved yet: {again} begins again at step 0"


def test_a_run_in_use(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "in_use" not in said(run_dir, capsys)[1]
    with RunLock(run_dir):
        status, found = said(run_dir, capsys)
    assert status == 0
    assert found["in_use"][0] == "note"


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} holds no run")


def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMER_LPM_DATA", str(tmp_path))
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("device", "threads", "memory", "disk", "TV", "torch", "numpy"):
        assert f"ok       {word} " in said
    assert "none here: a run tries https://" in said
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    assert f"CIFAR-10 from {tmp_path}/cifar-10-binary.tar.gz" in "".join(f.words for f in doctor.examine_machine())

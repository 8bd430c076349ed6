"""What happens to a run as a whole: a full disk, a stop in an evaluation, an old checkpoint, another's files."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dreamer_lpm.train as train_module
from dreamer_lpm import checkpoint
from dreamer_lpm.config import RunConfig
from dreamer_lpm.evaluate import load
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.settings import from_plain
from dreamer_lpm.state import State
from dreamer_lpm.train import Stopped, read_config, train
from dreamer_lpm.types import UserError
from tests.faults.conftest import RUN
from tests.tiny_run import differences, everything

OLD_RUN = Path(__file__).parent / "fixtures" / "run_0_1_0"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that has no more room: a write beyond ``size`` bytes of a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What no longer fits: the optimizer, which is empty at the first checkpoint; already the pictures; a later checkpoint.
@pytest.mark.parametrize(("size", "begin", "kept"), [(250_000, 0, 30), (5_000, 0, 0), (250_000, 40, 40)])
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_when_there_is_room(
    size: int, begin: int, kept: int, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    if begin:
        train(replace(RUN, steps=begin), tmp_path)
    with pytest.raises(UserError) as told, files_of_at_most(size):
        train(RUN, tmp_path, resume=begin > 0)
    message = str(told.value)
    assert message.startswith(f"{tmp_path} could not be written (File too large) at step ")
    whole = f"the checkpoint step_{kept:09d} is whole" if kept else "nothing was saved yet"
    assert message.endswith(f"; {whole}: make room there, then go on with --resume.")
    assert "\n" not in message
    saved, damaged = checkpoint.load_newest(tmp_path)
    assert (saved.step if saved else 0, damaged) == (kept, [])
    assert not list(tmp_path.rglob("*.tmp"))
    train(RUN, tmp_path, resume=True)
    assert differences(everything(tmp_path), everything(finished[0])) == []


def test_a_full_disk_is_told_even_if_the_logs_cannot_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_module.MetricsLog, "write", full)
    monkeypatch.setattr(train_module.Progress, "__exit__", full)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\) .* make room there"):
        train(RUN, tmp_path)


@pytest.mark.parametrize("error", [OSError("ffmpeg could not write it: killed"), UserError("No ffmpeg here: get it.")])
def test_a_film_that_cannot_be_written_ends_no_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any, **more: Any) -> Path:
        raise error

    monkeypatch.setattr(train_module, "episode_video", broken)
    report = train(RUN, tmp_path)
    assert report.video is None
    assert report.summary["env_steps"] == RUN.steps
    assert f"No film: {error}" in capsys.readouterr().out


def test_a_stop_that_ends_the_encoder_too_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler tells all processes of a job."""

    def ended(*args: Any, **more: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError("ffmpeg could not write it: ")

    monkeypatch.setattr(train_module, "episode_video", ended)
    with pytest.raises(Stopped):
        train(replace(RUN, checkpoint_every=0), tmp_path)
    assert [checkpoint.step_of(folder) for folder in checkpoint.checkpoints(tmp_path)] == [40]


@pytest.mark.parametrize("where", ["evaluate", "record", "episode_video"])
def test_a_signal_ends_an_evaluation_and_whoever_goes_on_repeats_it(
    where: str, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last evaluation too, when all training is done."""
    play = getattr(train_module, where)
    for number in (2, 3):
        played = []

        def playing(*args: Any, watch: Any, number: int = number, played: list[int] = played, **more: Any) -> Any:
            played.append(1)
            left = 3 if len(played) == number else None

            def watching() -> None:
                nonlocal left
                if left is not None:
                    assert left > 0, "it went on"
                    left -= 1
                    if left == 1:
                        os.kill(os.getpid(), signal.SIGTERM)
                watch()

            return play(*args, watch=watching, **more)

        with monkeypatch.context() as patch:
            patch.setattr(train_module, where, playing)
            with pytest.raises(Stopped):
                train(RUN, tmp_path / str(number))
        assert len([row for row in read_metrics(tmp_path / str(number)) if row["kind"] == "eval"]) == number - 1
        train(RUN, tmp_path / str(number), resume=True)
        assert differences(everything(tmp_path / str(number)), everything(finished[0])) == []


def test_the_best_agent_of_the_evaluations_on_the_way_is_kept(finished: tuple[Path, Path]) -> None:
    run_dir = finished[0]
    rows = [row for row in read_metrics(run_dir) if row["kind"] == "eval"]
    assert [row["step"] for row in rows] == [40, 80, 100]
    best = max(rows[:-1], key=lambda row: float(row["return_mean"]))
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["best_on_the_way"] == {"step": best["step"], "return": best["return_mean"]}
    assert load(run_dir / "agent_best.pth").about["steps"] == best["step"]


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_checkpoints_are_kept_as_asked_for_and_no_rows_that_none_of_them_needs(
    keep: int, tmp_path: Path
) -> None:
    cfg = replace(RUN, keep_checkpoints=keep, eval_every=0, checkpoint_every=20, replay_capacity=30, prefill=100)
    train(cfg, tmp_path)
    steps = [int(folder.name.removeprefix("step_")) for folder in checkpoint.checkpoints(tmp_path)]
    assert steps == [60, 80, 100][-keep:]
    needed = {path for folder in checkpoint.checkpoints(tmp_path) for path in pieces(folder)}
    assert {path.name for path in (tmp_path / "replay").iterdir()} == needed
    first = min(checkpoint.span(Path(name))[0] for name in needed)
    assert first > 0, "rows that the memory has forgotten stay on the disk"


def pieces(folder: Path) -> list[str]:
    return list(json.loads((folder / "manifest.json").read_text())["replay"])


def test_another_runs_checkpoint_is_not_taken_for_ones_own(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Though it is whole in itself."""
    mine = Path(shutil.copytree(finished[0], tmp_path / "mine"))
    other = finished[1]
    for folder in ("checkpoints", "replay"):
        shutil.rmtree(mine / folder)
        shutil.copytree(other / folder, mine / folder)
    with pytest.raises(UserError, match=r"Every checkpoint .* is damaged.*it belongs to another run"):
        train(RUN, mine, resume=True)
    newest = "step_000000100"
    shutil.rmtree(mine / "checkpoints")
    shutil.rmtree(mine / "replay")
    shutil.copytree(finished[0] / "replay", mine / "replay")
    shutil.copytree(finished[0] / "checkpoints", mine / "checkpoints")
    shutil.rmtree(mine / "checkpoints" / newest)
    shutil.copytree(other / "checkpoints" / newest, mine / "checkpoints" / newest)
    saved, [why] = checkpoint.load_newest(mine, str(read_config(mine)["run"]))
    assert saved is not None
    assert saved.step == 90
    assert why == f"{newest}: it belongs to another run"


def test_a_checkpoint_of_version_0_1_0_goes_on(tmp_path: Path) -> None:
    """It was stopped at step 60."""
    run_dir = Path(shutil.copytree(OLD_RUN, tmp_path / "mine"))
    before = read_metrics(run_dir)
    saved = checkpoint.load_newest(run_dir)[0]
    assert saved is not None
    weight = saved.tensors["agent"]["world.rssm.core_in.weight"]
    cfg = from_plain(RunConfig, read_config(run_dir)["config"])
    state = State(cfg, None)
    state.restore(saved)
    assert (state.step, state.tally.updates, len(state.replay)) == (60, 5, 63)
    assert torch.equal(state.agent.state_dict()["world.rssm.core_in.weight"], weight)
    state.envs.close()
    train(replace(cfg, steps=80), run_dir, resume=True)
    rows = read_metrics(run_dir)
    assert rows[: len(before)] == before
    assert rows[-1]["step"] == 80
    manifest = json.loads((run_dir / "checkpoints" / "step_000000080" / "manifest.json").read_text())
    assert manifest["schema"] == checkpoint.SCHEMA


def test_metrics_that_were_changed_are_told_and_training_goes_on(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"kind": "episode"', '"kind": "episodf"', 1))
    train(replace(RUN, steps=110), run_dir, resume=True)
    assert "metrics.jsonl is not as it was written: the training goes on whole" in capsys.readouterr().out


def test_a_run_in_use_is_not_begun_twice(tmp_path: Path) -> None:
    with train_module.RunLock(tmp_path), pytest.raises(UserError, match="is in use by process"):
        train(RUN, tmp_path)


def test_a_killed_process_is_named_by_the_next(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / ".lock").write_text("4711")
    train(RUN, run_dir, resume=True)
    assert "Process 4711, which had this run, was killed." in capsys.readouterr().out
    assert not (run_dir / ".lock").exists()

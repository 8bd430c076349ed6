"""A whole run whose envs live in processes of their own: the same bits, and a worker's death is counted and told."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dreamer_lpm.train as train_module
from dreamer_lpm.envs import episode_seed
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.report.video import EpisodeTrace
from dreamer_lpm.train import EVAL_SEED, Stopped, train
from tests.faults.deadly import ENV_ID
from tests.tiny_run import TINY, WITH_TV, differences, everything

RUN = replace(WITH_TV, steps=120, checkpoint_every=50)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, what: Any) -> None:
    """Do ``what`` with the run's envs once, when it has taken ``step`` env steps."""
    count, done = train_module._Run._count, []

    def counting(self: Any, row: dict[str, np.ndarray]) -> None:
        count(self, row)
        if self.state.step >= step and not done:
            done.append(step)
            what(self.state.envs)

    monkeypatch.setattr(train_module._Run, "_count", counting)


def test_workers_change_no_bit_of_a_run_nor_of_one_that_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RUN, tmp_path / "here")
    with monkeypatch.context() as patch:
        at_step(patch, 70, lambda envs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            train(replace(RUN, env_workers=2), tmp_path / "there")
    report = train(replace(RUN, env_workers=1), tmp_path / "there", resume=True)
    assert differences(everything(tmp_path / "here"), everything(tmp_path / "there")) == []
    assert report.summary["env_restarts"] == 0


def test_a_worker_that_is_killed_before_the_first_step_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due, done = train_module._Run._update_is_due, []

    def killing(self: Any) -> bool:
        if not done:
            done.append(self.state.step)
            os.kill(self.state.envs._workers[0]._process.pid, signal.SIGKILL)
        return due(self)

    monkeypatch.setattr(train_module._Run, "_update_is_due", killing)
    report = train(replace(RUN, env_workers=1), tmp_path)
    assert done == [0]
    assert (report.summary["env_steps"], report.summary["env_restarts"]) == (120, 1)


def test_a_worker_that_is_killed_is_told_and_counted_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(monkeypatch, 70, lambda envs: os.kill(envs._workers[0]._process.pid, signal.SIGKILL))
    report = train(replace(RUN, env_workers=1), tmp_path)
    assert report.summary["env_steps"] == 120
    assert report.summary["env_restarts"] == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "The worker of envs 0 to 1 was killed by signal 9 and was started again; their episodes end here." in said
    episodes = [row for row in read_metrics(tmp_path) if row["kind"] == "episode"]
    short = [row for row in episodes if row["length"] < 20]
    assert [row["step"] for row in short] == [70, 70], "both of its episodes were cut off, and no other"


def test_an_env_that_kills_its_process_in_an_evaluation_ends_that_episode_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The film's episode is that one, too."""
    monkeypatch.setenv("DEADLY_SEED", str(episode_seed(EVAL_SEED, 0, 0)))
    monkeypatch.setattr(train_module, "plot_run", lambda run_dir: None)
    films: list[EpisodeTrace] = []
    monkeypatch.setattr(train_module, "episode_video", lambda path, trace, **more: films.append(trace))
    cfg = replace(TINY, env_name=f"tests.faults.deadly:{ENV_ID}", action_repeat=1, steps=60, env_workers=1)
    report = train(cfg, tmp_path)
    assert report.summary["env_steps"] == 60
    assert report.summary["eval_returns"] == [1.0, 1.0], "the worker's other env shared its fate"
    assert [len(film.obs) for film in films] == [3], "the first picture, one step, and the end"
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "The worker of envs 0 to 1 was killed by signal 9 and was started again; their episodes end here. "
        "It was evaluating: its episodes ended there."
    ) in said

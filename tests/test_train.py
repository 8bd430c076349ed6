"""A whole run, small: what it leaves behind, that it can be stopped anywhere, and that watching it changes nothing."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dreamer_lpm
import dreamer_lpm.config as config_module
import dreamer_lpm.state as state_module
import dreamer_lpm.train as train_module
import dreamer_lpm.types as types_module
from dreamer_lpm import checkpoint, forecast
from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.config import RunConfig
from dreamer_lpm.envs import Envs, coverage
from dreamer_lpm.envs.workers import Worker
from dreamer_lpm.evaluate import Scores, export_agent
from dreamer_lpm.noisy_tv import TVImages, TVSpec
from dreamer_lpm.noisy_tv.images import Pool
from dreamer_lpm.presets import preset
from dreamer_lpm.probe import TVProbe
from dreamer_lpm.report.measures import late_tv_share
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.report.strict_json import sealed
from dreamer_lpm.report.video import EpisodeTrace
from dreamer_lpm.settings import from_plain
from dreamer_lpm.state import State
from dreamer_lpm.together import train_together
from dreamer_lpm.train import Job, Report, Stopped, train
from dreamer_lpm.types import STOPS, UserError
from tests.tiny_run import TINY, WITH_TV, differences, everything, metrics, write_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves and videos have tests of their own, and take longer than these runs."""
    monkeypatch.setattr(train_module, "plot_run", lambda run_dir: run_dir / "curves.png")
    monkeypatch.setattr(train_module, "episode_video", lambda path, trace, **more: path)


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Raise the signal as soon as the run has taken ``step`` env steps."""
    count, sent = train_module._Run._count, []

    def counting(self: Any, row: dict[str, np.ndarray]) -> None:
        count(self, row)
        if self.state.step >= step and not sent:
            sent.append(step)
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(train_module._Run, "_count", counting)


class Killed(BaseException):
    """As SIGKILL: nothing of the run gets to do anything any more."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    count = train_module._Run._count

    def counting(self: Any, row: dict[str, np.ndarray]) -> None:
        count(self, row)
        if self.state.step >= step:
            raise Killed

    monkeypatch.setattr(train_module._Run, "_count", counting)


# --- stop and resume --------------------------------------------------------------------------------------------------

RUNS = {
    "plain": TINY,
    "tv": replace(WITH_TV, steps=200, eval_every=70, agent=replace(TINY.agent, curiosity="lpm_dual")),
    "paired": replace(WITH_TV, steps=130, agent=replace(TINY.agent, curiosity="lpm_paired")),
    "remote": replace(
        TINY, noisy_tv=True, tv=TVSpec(trigger="remote", persistence="sticky", pool=3), replay_capacity=70, steps=130
    ),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each of ``RUNS`` becomes when nobody disturbs it; made when first asked for."""

    class Made(dict[str, dict[str, Any]]):
        def __missing__(self, name: str) -> dict[str, Any]:
            run_dir = tmp_path_factory.mktemp(name)
            train(RUNS[name], run_dir)
            self[name] = everything(run_dir)
            return self[name]

    return Made()


@pytest.mark.parametrize(
    ("name", "at"), [("plain", 25), ("plain", 101), ("tv", 77), ("tv", 140), ("remote", 90), ("paired", 90)]
)
def test_stopped_and_resumed_equals_uninterrupted(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    want, cfg = uninterrupted[name], RUNS[name]
    with monkeypatch.context() as patch:
        stop_at(patch, at)
        with pytest.raises(Stopped) as stopped:
            train(cfg, tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    assert "the run is saved, and goes on with train(cfg, run_dir, resume=True)" in str(stopped.value)
    assert at <= newest_step(tmp_path) <= at + cfg.num_envs
    torch.manual_seed(4711)  # nothing may hang on generators that no checkpoint holds
    train(cfg, tmp_path, resume=True)
    assert differences(everything(tmp_path), want) == []


def test_a_resumed_run_keeps_its_settings_in_python_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(WITH_TV, precision="auto", threads=0)
    with monkeypatch.context() as patch:
        patch.setattr(config_module, "pick_precision", lambda wanted, device: "fp32")
        stop_at(patch, 60)
        with pytest.raises(Stopped):
            train(cfg, tmp_path)
    monkeypatch.setattr(config_module, "pick_precision", lambda wanted, device: wanted.replace("auto", "bf16"))
    for other in (replace(cfg, update_every=9.0), replace(cfg, agent=replace(cfg.agent, lpm_eta=7.0))):
        with pytest.raises(UserError, match=r"keeps its settings, and '(update_every|agent\.lpm_eta)' differs"):
            train(other, tmp_path, resume=True)
    assert train(replace(cfg, steps=170), tmp_path, resume=True).summary["precision"] == "fp32"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 5e1}, "'steps' must be a whole number"),
        ({"seed": np.int64(3)}, "'seed' must be a whole number"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_a_config_made_in_python_is_as_strict_as_flags(wrong: dict[str, Any], words: str, tmp_path: Path) -> None:
    """What was trained with another could not be read again."""
    with pytest.raises(UserError, match=words):
        train(replace(TINY, **wrong), tmp_path / "run")


def test_without_checkpoints_a_run_that_was_stopped_once_is_finished_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = replace(TINY, checkpoint_every=0)
    with monkeypatch.context() as patch:
        stop_at(patch, 60)
        with pytest.raises(Stopped):
            train(cfg, tmp_path)
    train(cfg, tmp_path, resume=True)
    assert newest_step(tmp_path) == 160


def test_an_interrupt_that_ends_at_once_leaves_the_folder_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: train_module.Wants) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Wants, "serve", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:  # a notebook keeps it, and all that it came through
            train(TINY, tmp_path)
    assert train(replace(TINY, steps=40), tmp_path).summary["env_steps"] == 40
    assert kept.value


def test_a_run_names_all_the_code_that_had_a_part_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no commit that was made while it ran."""
    monkeypatch.setattr(train_module, "own_revision", lambda: "first")
    with monkeypatch.context() as patch:
        stop_at(patch, 40)
        with pytest.raises(Stopped):
            train(TINY, tmp_path)
    monkeypatch.setattr(train_module, "own_revision", lambda: "second")
    assert train(TINY, tmp_path, resume=True).summary["git_revision"] == "first, second"


def newest_step(run_dir: Path) -> int:
    return int(checkpoint.checkpoints(run_dir)[-1].name.removeprefix("step_"))


@pytest.mark.parametrize("name", ["plain", "tv", "remote"])
def test_killed_after_a_checkpoint_and_resumed_equals_uninterrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    """Rows, pictures and pieces that the dead run wrote after its last checkpoint leave no trace."""
    want, cfg = uninterrupted[name], replace(RUNS[name], checkpoint_every=50)
    with monkeypatch.context() as patch:
        kill_at(patch, 128)
        with pytest.raises(Killed):
            train(cfg, tmp_path)
    assert newest_step(tmp_path) < 128
    assert read_metrics(tmp_path)[-1]["step"] > newest_step(tmp_path), "the test needs lines that must go"
    train(cfg, tmp_path, resume=True)
    assert differences(everything(tmp_path), want) == []


def test_a_memory_overwritten_on_the_way_to_a_checkpoint_comes_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    """The first checkpoint holds the last 70 of some 100 rows, the second the few that came after it."""
    cfg = replace(RUNS["remote"], checkpoint_every=90)
    with monkeypatch.context() as patch:
        stop_at(patch, 115)
        with pytest.raises(Stopped):
            train(cfg, tmp_path)
    assert len(checkpoint.checkpoints(tmp_path)) == 2
    train(cfg, tmp_path, resume=True)
    assert differences(everything(tmp_path), uninterrupted["remote"]) == []


def test_killed_before_the_first_checkpoint_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    with monkeypatch.context() as patch:
        kill_at(patch, 90)
        with pytest.raises(Killed):
            train(TINY, tmp_path)
    with pytest.raises(UserError, match="already holds a run: go on with --resume"):
        train(TINY, str(tmp_path))  # a folder's name will do
    train(TINY, tmp_path, resume=True)
    assert differences(everything(tmp_path), uninterrupted["plain"]) == []


def test_a_finished_run_goes_further_as_if_it_had_never_ended(
    tmp_path: Path, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    cfg = RUNS["tv"]
    train(replace(cfg, steps=120), tmp_path)
    train(cfg, tmp_path, resume=True)
    assert differences(everything(tmp_path), uninterrupted["tv"]) == []


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(TINY, tmp_path)
    before = everything(tmp_path)
    train(TINY, tmp_path, resume=True)
    assert differences(everything(tmp_path), before) == []


def test_a_finished_run_without_checkpoints_keeps_what_it_has(tmp_path: Path) -> None:
    train(replace(TINY, checkpoint_every=0), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is finished and kept no checkpoint to go on from"):
        train(replace(TINY, checkpoint_every=0, steps=200), tmp_path, resume=True)
    after = {path: path.read_bytes() for path in before}
    assert {p.name for p in before if before[p] != after[p]} <= {".lock"}


def test_what_will_have_no_effect_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(replace(TINY, steps=40, prefill=40, tv=TVSpec(trigger="remote"), tv_images="auto"), tmp_path / "a")
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no TV, whatever tv.* and --tv-images say: add --noisy-tv." in said
    assert "Nothing will be learned: 40 steps end within the first 40" in said
    train(replace(TINY, steps=60, prefill=10, num_envs=10, replay_capacity=1000), tmp_path / "b")
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no TV, whatever" in said, "tv_images alone, too"
    assert "Nothing will be learned: 60 steps end within the first 60" in said


def test_a_setting_that_the_trigger_does_not_read_is_said() -> None:
    def said(**tv: Any) -> list[str]:
        return list(train_module.vain(replace(WITH_TV, tv=TVSpec(**tv))))

    assert said(probability=0.9, noop=1) == ["The TV's trigger 'action' does not read tv.noop, tv.probability."]
    assert said(trigger="remote", threshold=0.5) == ["The TV's trigger 'remote' does not read tv.threshold."]
    assert said(trigger="passive", probability=0.9) == said(threshold=0.5, tv_action=1, tv_component=0) == []


@pytest.mark.parametrize(("slowdown", "told"), [(81.0, True), (1.4, False)])
def test_a_cpu_that_emulates_bf16_is_told_of(monkeypatch: pytest.MonkeyPatch, slowdown: float, told: bool) -> None:
    monkeypatch.setattr(train_module, "bf16_slowdown", lambda: slowdown)
    words = "A product takes 81.0 times as long in bf16 as in fp32 on this CPU: leave --precision out."
    assert list(train_module.vain(replace(WITH_TV, precision="bf16"))) == ([words] if told else [])
    assert list(train_module.vain(replace(WITH_TV, precision="fp32"))) == []


def test_the_pool_is_drawn_once_for_all_envs_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    choose = Pool._choose

    def choosing(self: Pool, shape: tuple[int, int, int]) -> list[np.ndarray]:
        drawn.append(1)
        return choose(self, shape)

    monkeypatch.setattr(Pool, "_choose", choosing)
    tv = replace(WITH_TV.tv, trigger="always", pool=3)
    train(replace(WITH_TV, tv=tv, num_envs=2, eval_every=80, eval_episodes=3), tmp_path)
    assert drawn == [1]


def test_time_and_pace_are_those_of_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second for each step, and no time for anything else."""
    at = [0.0]
    step = Envs.step

    def stepping(self: Envs, actions: np.ndarray) -> Any:
        at[0] += 0.25
        return step(self, actions)

    monkeypatch.setattr(train_module.time, "monotonic", lambda: at[0])
    monkeypatch.setattr(Envs, "step", stepping)
    cfg = replace(TINY, log_every=70, checkpoint_every=0)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 130)
        with pytest.raises(Stopped):
            train(cfg, tmp_path)
    report = train(cfg, tmp_path, resume=True)
    rows = [row for row in read_metrics(tmp_path) if "wall_steps_per_s" in row]
    assert [row["step"] for row in rows] == [70, 140]
    assert [row["wall_steps_per_s"] for row in rows] == pytest.approx([4.0, 4.0], rel=0.2)
    played = 2 * 20 / 4  # seconds of the last evaluation, at most
    assert 160 / 4 <= report.summary["wall_seconds"] <= 160 / 4 + played


def test_films_may_be_left_out_from_here_on(tmp_path: Path) -> None:
    first = train(TINY, tmp_path)
    more = train(replace(TINY, pictures=False, steps=200), tmp_path, resume=True)
    assert first.summary["env_steps"] < more.summary["env_steps"] == 200


def test_a_control_has_no_chance_to_be_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for control, told in (("sham", False), (None, True)):
        tv = TVSpec(control=control, persistence="sticky")
        train(replace(TINY, steps=20, prefill=20, noisy_tv=True, tv=tv), tmp_path / str(control))
        assert ("Random play without pictures finds out" in " ".join(capsys.readouterr().out.split())) == told


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """Every worker that is made."""
    found: list[Worker] = []
    begin = Worker.__init__

    def beginning(self: Worker, *args: Any) -> None:
        found.append(self)
        begin(self, *args)

    monkeypatch.setattr(Worker, "__init__", beginning)
    return found


@pytest.mark.parametrize("free", [0, 10**13], ids=["too little memory", "enough"])
def test_a_state_that_cannot_be_leaves_no_process(
    free: int, made: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(forecast, "free_memory", lambda device: free)
    monkeypatch.setattr(state_module, "Replay", refuse)
    with pytest.raises(UserError, match=r"Memory does not suffice|does not fit into memory") as refused:
        State(replace(TINY, env_workers=1), None)
    assert refused.tb, "its frames are alive, as those of --seeds are"
    assert [worker._process.poll() is None for worker in made] == [False]


@pytest.mark.parametrize(
    ("every", "told"), [(50, "the checkpoint step_000000050 is whole"), (0, "nothing was saved yet")]
)
def test_what_an_env_raises_keeps_its_traceback_and_says_what_is_saved(
    every: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Envs.step

    def stumbling(self: Envs, action: np.ndarray) -> dict[str, np.ndarray]:
        if self.env_steps == 70:
            raise ZeroDivisionError("in an env of one's own")
        return step(self, action)

    monkeypatch.setattr(Envs, "step", stumbling)
    with pytest.raises(ZeroDivisionError) as found:
        train(replace(TINY, checkpoint_every=every), tmp_path)
    assert found.value.__notes__ == [f"{tmp_path} was at step 70; {told}. Once that is mended, go on with --resume."]


def test_a_refused_run_leaves_no_process(tmp_path: Path, made: list[Worker]) -> None:
    cfg = replace(TINY, steps=60, checkpoint_every=0)
    train(cfg, tmp_path)
    with pytest.raises(UserError, match="kept no checkpoint") as refused:
        train(replace(cfg, steps=200, env_workers=1), tmp_path, resume=True)
    assert refused.tb, "its frames are alive, as those of --seeds are"
    assert [worker._process.poll() is None for worker in made] == [False]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], uninterrupted: dict[str, dict[str, Any]]
) -> None:
    cfg = replace(TINY, checkpoint_every=70)
    train(cfg, tmp_path)
    (checkpoint.checkpoints(tmp_path)[-1] / "state.pt").write_bytes(b"damaged")
    capsys.readouterr()
    train(cfg, tmp_path, resume=True)
    said = capsys.readouterr().out
    assert "Passed over a damaged checkpoint: step_000000160: state.pt is not as it was written" in said
    assert "Resumed at 140 steps." in said
    assert differences(everything(tmp_path), uninterrupted["plain"]) == []


def test_the_comparison_sees_a_single_bit(tmp_path: Path, uninterrupted: dict[str, dict[str, Any]]) -> None:
    """Another seed of the replay alone, or one generator less in the checkpoint, would not pass for equal."""
    train(replace(TINY, checkpoint_every=100), tmp_path)
    saved = checkpoint.load_newest(tmp_path)[0]
    assert saved is not None
    shutil.rmtree(checkpoint.checkpoints(tmp_path)[-1])
    first = checkpoint.checkpoints(tmp_path)[-1]
    manifest = json.loads((first / "manifest.json").read_text())
    del manifest["sha256"]
    state = json.loads((first / "state.json").read_text())
    state["rng"]["state"]["state"] ^= 1
    (first / "state.json").write_text(json.dumps(state))
    manifest["files"]["state.json"] = checkpoint.sha256(first / "state.json")
    (first / "manifest.json").write_text(json.dumps(sealed(manifest)))
    train(TINY, tmp_path, resume=True)
    different = differences(everything(tmp_path), uninterrupted["plain"])
    assert any("/tensors/agent" in where for where in different)


def test_only_ctrl_c_can_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one does what it always did, for those who cannot wait; the echo of the first and other stops do not."""
    # Shells start background jobs with SIGINT ignored; this test then has to bring Python's own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with train_module.Signals() as signals:
            signals.note()
            signal.raise_signal(signal.SIGINT)
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(signum)
            monkeypatch.setattr(types_module, "INSISTS_AFTER", 0.0)
            for signum in (signal.SIGTERM, signal.SIGHUP):
                signal.raise_signal(signum)
            assert signals.caught == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_resume_needs_a_run_and_a_start_needs_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to resume"):
        train(TINY, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


def test_a_run_is_not_resumed_for_fewer_steps_than_it_has(tmp_path: Path) -> None:
    cfg = replace(TINY, steps=33, num_envs=2, action_repeat=2, eval_every=0)
    report = train(cfg, tmp_path / "run")
    assert report.summary["env_steps"] == 36, "the last steps of all envs pass the end"
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"36 steps behind it, and --steps 32 asks for fewer: with --steps 36 it is "):
        train(replace(cfg, steps=32), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    assert train(cfg, tmp_path / "run", resume=True).summary["env_steps"] == 36


def test_an_exported_agent_is_no_run_to_resume(tmp_path: Path) -> None:
    state = State(TINY, None)
    export_agent(tmp_path / "out", state.agent, {})
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"out is an exported agent and no run; name a run's folder\."):
        train(replace(TINY, steps=30), tmp_path / "out", resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# --- processes, as users stop them ------------------------------------------------------------------------------------


@pytest.fixture
def process_env() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SDL_VIDEODRIVER": "dummy"}


def started(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_process_is_stopped_and_goes_on(signum: signal.Signals, tmp_path: Path, process_env: dict[str, str]) -> None:
    """SIGTERM, Ctrl-C and SIGKILL at whatever step they hit; in the end, the same bits as without them."""
    config = write_config(tmp_path, env_name="Pendulum-v1", steps=100_000)
    command = [str(ROOT / "train_lpm.py"), "--config", str(config), "--noisy-tv", "--run-name", "mine"]
    process = started([*command, "--checkpoint-every", "40"], tmp_path, process_env)
    run_dir = tmp_path / "runs" / "mine"
    wait_for(lambda: len(checkpoint.checkpoints(run_dir)) == 2, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    stopped = newest_step(run_dir)
    assert err == ""
    if signum == signal.SIGKILL:
        assert process.returncode == -signum
    else:
        assert process.returncode == 128 + signum
        assert f"Stopped and saved ({signum.name}). Go on with: python3 train_lpm.py --resume --run-name mine" in out
    cfg = replace(saved_config(run_dir), steps=stopped + 60)
    train(cfg, run_dir, resume=True)
    train(cfg, tmp_path / "uninterrupted")
    assert differences(everything(run_dir), everything(tmp_path / "uninterrupted")) == []


def saved_config(run_dir: Path) -> RunConfig:
    saved = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["config"]
    return from_plain(RunConfig, saved)


# --- what a run leaves behind -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    run_dir = tmp_path_factory.mktemp("runs") / "mine"
    cfg = replace(WITH_TV, eval_every=80, eval_episodes=2, steps=150)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plot_run", lambda run_dir: run_dir / "curves.png")
        patch.setattr(train_module, "episode_video", lambda path, trace, **more: path)
        return run_dir, train(cfg, run_dir)


def test_summary(finished: tuple[Path, Report]) -> None:
    run_dir, report = finished
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(report.summary))
    assert summary["env_steps"] == 150
    assert summary["updates"] == (148 - 40) // 4  # those due before the last step of two envs
    assert 0 < summary["wall_seconds"] < 600
    assert len(summary["eval_returns"]) == 4
    assert summary["eval_return_mean"] == pytest.approx(np.mean(summary["eval_returns"]))
    assert summary["tv_chance"] == pytest.approx(0.25)
    assert 0.05 < summary["tv_share"] < 0.6
    assert 0 < summary["tv_share_last_quarter"] < 1
    assert summary["escape_step"] is None, "shorter than a window"
    assert summary["coverage_grid"].startswith("angle x angular speed, 24 x 16 cells")
    rows = read_metrics(run_dir)
    assert summary["eval_return_tv_off"] == [row for row in rows if row["kind"] == "eval"][-1]["return_mean"]
    assert summary["coverage"] >= [row for row in rows if row["kind"] == "episode"][-1]["coverage"] > 0
    late = [row for row in rows if row["kind"] == "train" and row["step"] > 0.75 * 150]
    for name, key in (
        ("dream_tv_share", "dream/tv_share"),
        ("probe_accuracy", "probe/accuracy"),
        ("recon_tv_share", "loss/recon_tv_share"),
        ("bonus_tv_on", "bonus/tv_on"),
        ("bonus_tv_off", "bonus/tv_off"),
    ):
        assert summary[name] == pytest.approx(np.nanmean([row[key] for row in late])), name
    assert summary["tv_images"] == {
        "requested": "static", "used": "static", "count": None, "reason": "Uniform noise was asked for by name."
    }  # fmt: skip
    assert (summary["seed"], summary["device"], summary["precision"], summary["threads"]) == (0, "cpu", "fp32", 1)
    assert summary["env_name"] == "Pendulum-v1"
    assert summary["curiosity"] == "lpm"
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["versions"]["dreamer-lpm"] == dreamer_lpm.__version__
    assert summary["git_revision"] is None or len(summary["git_revision"].removesuffix("+dirty")) == 40
    assert summary["peak_memory_bytes"] > 1e8


def test_config_json(finished: tuple[Path, Report]) -> None:
    run_dir, report = finished
    about = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    assert saved_config(run_dir) == replace(WITH_TV, eval_every=80, eval_episodes=2, steps=150)
    assert about["tv_images"] == report.summary["tv_images"]
    assert about["versions"] == report.summary["versions"]


def test_metrics(finished: tuple[Path, Report]) -> None:
    run_dir, report = finished
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row)
    assert kinds.keys() == {"train", "episode", "eval"}
    assert all(row["length"] == 20 and row["tv_chance"] == 0.25 for row in kinds["episode"])
    assert all(0 <= row["tv_share"] <= 1 for row in kinds["episode"])
    assert len(kinds["episode"]) == 2 * (150 // 40)  # two envs, 20 steps each
    assert all(-20 * 16.3 <= row["return"] < 0 for row in kinds["episode"])
    train_row = kinds["train"][-1]
    for key in ("recon", "dyn", "rep", "reward", "cont", "actor", "critic", "error_predictor"):
        assert math.isfinite(train_row[f"loss/{key}"]), key
    assert {"bonus/mean", "bonus/tv_on", "bonus/tv_off", "wall_steps_per_s", "updates"} <= train_row.keys()
    assert 0 <= train_row["dream/tv_share"] <= 1
    assert 0 <= train_row["probe/accuracy"] <= 1
    coverages = [row["coverage"] for row in kinds["episode"]]
    assert coverages == sorted(coverages)
    evals = [(row["step"], row["arm"], len(row["returns"])) for row in kinds["eval"]]
    assert evals == [(80, "as_trained", 2), (80, "tv_off", 2), (150, "as_trained", 4), (150, "tv_off", 4)]
    assert kinds["eval"][-2]["returns"] == report.summary["eval_returns"]
    assert all(row["tv_share"] == 0 for row in kinds["eval"] if row["arm"] == "tv_off")


def test_tensorboard_and_checkpoints_lie_in_the_run(finished: tuple[Path, Report]) -> None:
    run_dir, report = finished
    assert list((run_dir / "tensorboard").glob("events.*"))
    assert newest_step(run_dir) == 150
    assert report.agent == run_dir / "agent_lpm.pth"
    assert report.video == run_dir / "videos" / "eval_iter_150_ep_0.mp4"


OF_THE_TV = ("escape_step", "probe_accuracy")


def test_a_run_without_tv_and_without_curiosity_speaks_of_neither(tmp_path: Path) -> None:
    cfg = replace(TINY, steps=80, agent=replace(TINY.agent, curiosity="none"))
    report = train(cfg, tmp_path)
    rows = metrics(tmp_path)
    assert any(row["kind"] == "train" for row in rows)
    assert [key for row in rows for key in row if "tv" in key or "bonus" in key or "probe" in key] == []
    of_neither = [key for key in report.summary if "tv_" in key or "bonus" in key or key in OF_THE_TV]
    assert len(of_neither) == 11
    assert [report.summary[key] for key in of_neither] == [None] * 11
    assert report.summary["coverage"] == [row for row in rows if row["kind"] == "episode"][-1]["coverage"] > 0


def test_a_run_shorter_than_its_prefill_still_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an env whose grid nobody has drawn; it has no coverage, which is another thing than a coverage of 0."""
    monkeypatch.setattr(coverage, "GRIDS", {})
    report = train(replace(TINY, steps=10, time_limit=5), tmp_path)
    assert (report.summary["coverage"], report.summary["coverage_grid"]) == (None, None)
    episodes = [row for row in metrics(tmp_path) if row["kind"] == "episode"]
    assert len(episodes) == 2
    assert not any("coverage" in row for row in episodes)
    assert (report.summary["env_steps"], report.summary["updates"]) == (10, 0)
    assert report.agent.is_file()


def test_a_tv_that_is_always_on_has_a_share_of_one(tmp_path: Path) -> None:
    """The first picture of an episode is no step, though the TV may show there too."""
    report = train(replace(TINY, steps=60, noisy_tv=True, tv=TVSpec(trigger="always")), tmp_path)
    assert (report.summary["tv_share"], report.summary["tv_chance"]) == (1.0, 1.0)
    assert {row["tv_share"] for row in read_metrics(tmp_path) if row["kind"] == "episode"} == {1.0}


RANDOM = replace(WITH_TV, steps=130, prefill=1000)  # measured, and nothing learned


def test_cells_and_tv_steps_are_those_counted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill counts, resets do not; each TV step falls to its own 100 env steps."""
    visited, bins = set[int](), [[0, 0], [0, 0]]
    step = Envs.step

    def stepping(self: Envs, actions: np.ndarray) -> dict[str, np.ndarray]:
        row = step(self, actions)
        if self.seed != train_module.EVAL_SEED:
            for lane, is_first, tv_on in zip(self._lanes, row["is_first"], row["tv_on"], strict=True):
                if not is_first:
                    angle, speed = lane.env.unwrapped.state  # type: ignore[attr-defined]
                    turned = math.atan2(math.sin(angle), math.cos(angle)) / math.pi
                    visited.add(math.floor((turned + 1) * 12) * 16 + min(math.floor(speed + 8), 15))
                    at = 0 if self.env_steps <= 100 else 1
                    bins[at][0] += bool(tv_on)
                    bins[at][1] += 1
        return row

    monkeypatch.setattr(Envs, "step", stepping)
    report = train(RANDOM, tmp_path)
    tally = everything(tmp_path)["tally"]
    assert set(tally["visited"]) == visited
    assert len(tally["visited"]) == len(visited) > 10
    assert tally["tv_bins"] == bins
    assert report.summary["coverage"] == len(visited) / (24 * 16)
    assert report.summary["tv_share_last_quarter"] == late_tv_share(bins, 130)


def test_a_sham_shows_no_tv_and_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []
    evaluate = train_module.evaluate

    def counting(*args: Any, **more: Any) -> Any:
        played.append(evaluate(*args, **more))
        return played[-1]

    monkeypatch.setattr(train_module, "evaluate", counting)
    report = train(replace(WITH_TV, steps=80, tv=TVSpec(trigger="remote", control="sham")), tmp_path)
    assert len(played) == 1
    assert [row["arm"] for row in metrics(tmp_path) if row["kind"] == "eval"] == ["as_trained", "tv_off"]
    assert report.summary["eval_return_tv_off"] == report.summary["eval_return_mean"]
    assert (report.summary["tv_share"], report.summary["tv_share_last_quarter"]) == (0.0, 0.0)
    assert (report.summary["dream_tv_share"], report.summary["probe_accuracy"]) == (None, None)


def test_what_auto_found_is_recorded_and_kept_by_whoever_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_images(source: str, data_dir: Path | None = None) -> Any:
        asked.append(source)
        used = {"auto": "photos" if len(asked) == 1 else "cifar10"}.get(source, source)
        noise = train_module_load("static")[0]
        return noise, TVImages(source, used, 3, f"{used} for {source}")

    train_module_load = train_module.load_images
    monkeypatch.setattr(train_module, "load_images", load_images)
    cfg = replace(TINY, steps=50, noisy_tv=True, tv_images="auto")
    for resume in (False, True):
        cfg = saved_config(tmp_path) if resume else cfg
        report = train(cfg, tmp_path, resume=resume)
        want = {"requested": "auto", "used": "photos", "count": 3, "reason": "photos for auto"}
        assert report.summary["tv_images"] == want
        assert json.loads((tmp_path / "config.json").read_text())["tv_images"] == want
    assert asked == ["auto", "photos"]


def test_a_control_needs_no_pictures(tmp_path: Path) -> None:
    tv = replace(WITH_TV.tv, control="sham")
    report = train(replace(WITH_TV, steps=50, tv=tv, tv_images=f"folder:{tmp_path / 'nowhere'}"), tmp_path / "run")
    assert (report.summary["tv_images"], report.summary["tv_share"]) == (None, 0.0)


# --- evaluation and reporting change nothing --------------------------------------------------------------------------


def test_evaluation_does_not_change_training(tmp_path: Path, uninterrupted: dict[str, dict[str, Any]]) -> None:
    want = uninterrupted["tv"]
    train(replace(RUNS["tv"], eval_every=0, eval_episodes=2, log_every=57), tmp_path)
    got = everything(tmp_path)
    for what in ("tensors", "envs", "rng", "memory", "agent"):
        a, b = (
            {k: v for k, v in x[what].items() if k != "sums"} if what == "tensors" else x[what] for x in (got, want)
        )
        assert differences(a, b) == []
    assert len(got["metrics"]) != len(want["metrics"])


def test_the_probe_changes_no_bit_of_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, dict[str, Any]]
) -> None:
    """Told the opposite of the truth about every frame, it says other things, and nobody listens."""
    want = uninterrupted["remote"]
    take = TVProbe.take
    monkeypatch.setattr(TVProbe, "take", lambda self, replayed, tv_on, dreamed: take(self, replayed, ~tv_on, dreamed))
    train(RUNS["remote"], tmp_path)
    got = everything(tmp_path)
    different = {where.split("/")[1] for where in differences(got, want)}
    assert different == {"tensors", "metrics"}
    for name in ("agent", "optimizer", "generator", "carry", "sums"):
        assert differences(got["tensors"][name], want["tensors"][name]) == [], name


def steps_of_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled, as a run goes, with the env step of each update."""
    at: list[int] = []
    learn = State.learn

    def learning(self: State) -> None:
        at.append(self.step)
        learn(self)

    monkeypatch.setattr(State, "learn", learning)
    return at


def test_updates_wait_for_the_prefill_and_keep_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = steps_of_updates(monkeypatch)
    train(replace(TINY, steps=80, update_every=2.5), tmp_path)
    assert at[0] > 40
    assert len(at) == 16
    assert all(abs((step - 40) / 2.5 - number) <= 1 for number, step in enumerate(at, start=1))


def test_many_envs_do_not_learn_their_first_rows_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole sequence of 8 envs takes longer than the prefill; what was due meanwhile is not made up for at once."""
    at = steps_of_updates(monkeypatch)
    train(replace(WITH_TV, num_envs=8, action_repeat=2, prefill=8, steps=200), tmp_path)
    first = 6 * 8 * 2
    assert first < at[0] <= first + 8 * 2
    assert max(at.count(step) for step in at) <= 8 * 2 / 4 + 1
    assert len(at) == (192 - first) // 4  # those due before the last step


# --- settings of a run ------------------------------------------------------------------------------------------------


def rssm(**changes: Any) -> AgentConfig:
    return replace(TINY.agent, world=replace(TINY.agent.world, rssm=replace(TINY.agent.world.rssm, **changes)))


def policy(**changes: Any) -> AgentConfig:
    return replace(TINY.agent, behavior=replace(TINY.agent.behavior, **changes))


def stages(*each: tuple[int, int, int]) -> AgentConfig:
    return replace(TINY.agent, world=replace(TINY.agent.world, stages=each))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be above 0, not 0"),
        ({"batch_size": -1}, "batch_size must be above 0, not -1"),
        ({"update_every": 0.0}, "update_every must be above 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        (
            {"seq_length": 1000, "agent": replace(TINY.agent, curiosity="none")},
            "raise it to 1001, or lower seq_length",
        ),
        ({"batch_size": 9}, "A bonus.queue of 40 cannot hold the 45 transitions of a batch; raise it."),
        ({"num_envs": 500}, "raise it to 3500, or lower seq_length"),
        ({"agent": replace(TINY.agent, world_lr=-1.0)}, "world_lr must be 0 or more, not -1.0"),
        (
            {"agent": replace(TINY.agent, behavior=BehaviorConfig(horizon=0))},
            "behavior.horizon must be 1",
        ),
        (
            {"agent": replace(TINY.agent, world=replace(TINY.agent.world, recon_knee=0.0))},
            "world.recon_knee must be above 0",
        ),
        ({"agent": replace(TINY.agent, clip=0.0)}, "clip must be above 0"),
        ({"agent": rssm(unimix=0.0)}, "world.rssm.unimix must be above 0"),
        ({"agent": policy(unimix=0.0)}, "behavior.unimix must be above 0"),
        ({"agent": policy(return_rate=0.0)}, "behavior.return_rate must be above 0"),
        ({"agent": policy(gamma=1.01)}, "behavior.gamma must be 1 or less, not 1.01"),
        ({"agent": policy(slow_rate=3.0)}, "behavior.slow_rate must be 1 or less"),
        ({"agent": replace(TINY.agent, bonus=replace(TINY.agent.bonus, rate=0.0))}, "bonus.rate must be above 0"),
        ({"agent": replace(TINY.agent, bonus=replace(TINY.agent.bonus, rate=1.1))}, "bonus.rate must be 1 or less"),
        ({"seq_length": 1}, "seq_length must be 2 or more, not 1"),
        ({"agent": rssm(classes=257)}, "world.rssm.classes must be 256 or less, not 257"),
        ({"agent": rssm(unimix=1.0)}, "world.rssm.unimix must be below 1, not 1.0"),
        ({"agent": policy(unimix=1.0)}, "behavior.unimix must be below 1, not 1.0"),
        (
            {"agent": policy(min_std=0.0)},
            "behavior.min_std must be above 0 and at most behavior.max_std, 1.0, not 0.0",
        ),
        (
            {"agent": policy(max_std=0.05)},
            "behavior.min_std must be above 0 and at most behavior.max_std, 0.05, not 0.1",
        ),
        ({"agent": stages()}, "world.stages must name one stage or more"),
        ({"agent": stages((8, 0, 1))}, "stage 1 of world.stages (8 0 1) must be 1 or more"),
        (
            {"agent": stages((8, 4, 1), (3, 2, 2))},
            "The kernel of stage 2 of world.stages (3 2 2) must be its stride or larger by an even number",
        ),
        ({"agent": stages((2, 4, 1))}, "The kernel of stage 1 of world.stages (2 4 1) must be its stride"),
        (
            {"agent": stages((8, 4, 1), (5, 3, 1))},
            "The stride of stage 2 of world.stages (5 3 1) must divide the 16 pixels a side that reach it",
        ),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        replace(TINY, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"seq_length": 2},
        {"agent": rssm(classes=256, unimix=0.99)},
        {"agent": policy(unimix=0.99)},
        {"batch_size": 9, "agent": replace(TINY.agent, curiosity="lpm_dual")},  # has no queue
        {"agent": policy(min_std=1.0), "env_name": "Pendulum-v1", "fast_render": True},
        {"agent": stages((4, 4, 1), (4, 2, 2), (3, 1, 1))},
    ],
)
def test_what_is_just_possible_learns(changes: dict[str, Any], tmp_path: Path) -> None:
    train(replace(TINY, steps=60, **changes), tmp_path)
    share = [row["health/entropy"] for row in metrics(tmp_path) if "health/entropy" in row]
    assert share
    assert all(-0.001 <= x <= 1.001 for x in share)


def test_a_replay_that_no_memory_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lower replay_capacity"):
        train(replace(TINY, replay_capacity=10**15, steps=10**15), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("trigger", ["action", "remote"])
def test_the_tv_switched_off_leaves_the_agents_actions(trigger: Any) -> None:
    """An agent that learned with a button keeps the button; it does nothing."""
    cfg = replace(WITH_TV, tv=TVSpec(trigger=trigger))
    assert cfg.env(tv_on=False).tv == replace(cfg.env().tv, control="sham")
    without = replace(WITH_TV, tv=TVSpec(trigger=trigger, control="off"))
    assert without.env(tv_on=False) == without.env()


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_world_model_of_the_tiny_preset_learns_the_pendulum(tmp_path: Path) -> None:
    """3,000 steps of the clean Pendulum; the losses of an untrained model fall by a clear factor."""
    cfg = replace(preset("tiny"), steps=3000, prefill=500, device="cpu", threads=1, eval_every=0, eval_episodes=1)
    train(cfg, tmp_path)
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    first, last = rows[0], rows[-1]
    print({key: (first[key], last[key]) for key in ("loss/recon", "loss/reward")})
    assert last["loss/recon"] < first["loss/recon"] / 3
    assert last["loss/reward"] < first["loss/reward"] / 2


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """The handlers of signals are as they were, whatever a run did."""
    before = [signal.getsignal(s) for s in STOPS]
    yield
    assert [signal.getsignal(s) for s in STOPS] == before


def test_the_best_agent_is_of_the_first_highest_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    returns = iter([1.0, 3.0, 3.0, 2.0, 0.0])
    monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: Scores([next(returns)], [1], [0.0]))
    summary = train(replace(TINY, steps=90, eval_every=20, pictures=False), tmp_path).summary
    assert summary["best_on_the_way"] == {"step": 40, "return": 3.0}


def test_the_film_shows_the_tv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    films: list[EpisodeTrace] = []
    monkeypatch.setattr(train_module, "episode_video", lambda path, trace, **_: films.append(trace))
    train(replace(WITH_TV, steps=40, tv=TVSpec(trigger="always")), tmp_path)
    assert films[-1].tv_on is not None
    assert films[-1].tv_on.all()


def test_a_disk_too_small_is_told_before_anything_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=1000))
    with pytest.raises(UserError, match=r"The disk of .* does not suffice"):
        train(TINY, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_takes_as_many_threads_as_it_says(tmp_path: Path) -> None:
    for threads in (1, 2):
        train(replace(TINY, steps=20, threads=threads, pictures=False), tmp_path / str(threads))
        assert torch.get_num_threads() == threads


def test_the_time_to_save_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, save = [0.0], State.save

    def saving(self: State, *args: Any) -> None:
        clock[0] += 5.0
        save(self, *args)

    monkeypatch.setattr(train_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(State, "save", saving)
    summary = train(replace(TINY, steps=90, checkpoint_every=30, pictures=False), tmp_path).summary
    assert summary["saving_seconds"] == 15.0


def test_runs_of_one_process_share_its_time(tmp_path: Path) -> None:
    cfg = replace(TINY, steps=60, pictures=False)
    alone = train(cfg, tmp_path / "alone").summary
    assert alone["shared_seconds"] == pytest.approx(alone["wall_seconds"])
    for report in train_together([Job(replace(cfg, seed=s), tmp_path / str(s), together=2) for s in (1, 2)]):
        assert isinstance(report, Report)
        assert report.summary["shared_seconds"] == pytest.approx(report.summary["wall_seconds"] / 2)


def test_a_run_goes_on_in_its_own_arithmetic_after_others_had_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, str]] = []
    monkeypatch.setattr(train_module, "use_arithmetic", lambda *how: used.append(how))
    run = object.__new__(train_module._Run)
    run.cfg, run.state = TINY, None  # type: ignore[assignment]
    assert len(list(run._want(None))) == 1
    assert used == [(TINY.device, TINY.precision)]


def test_the_steps_since_the_last_whole_bin_say_nothing_of_escape() -> None:
    run = object.__new__(train_module._Run)
    run.state = SimpleNamespace(tally=SimpleNamespace(tv_bins=[[0, 100]] * 5 + [[1, 2]]), step=502)  # type: ignore[assignment]
    run.tv_chance = 0.0
    assert run._escape()["escape_step"] == 0

"""A NaN or an infinity at each place where it can come in: caught in its own step, never saved, and gone back from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

import dreamer_lpm.train as train_module
from dreamer_lpm import checkpoint
from dreamer_lpm import guard as guard_module
from dreamer_lpm.agent import Agent
from dreamer_lpm.guard import check_finite
from dreamer_lpm.state import State
from dreamer_lpm.train import train
from dreamer_lpm.types import NotFinite, UserError
from dreamer_lpm.world import WorldModel
from tests.faults.conftest import RUN
from tests.tiny_run import differences, everything

# The env's 80th step and the 12th update lie between the checkpoints of steps 60 and 90.
# Evaluations, which would take more steps of the same env, are off.
CFG = replace(RUN, eval_every=0, rollback_lr=1.0)
STEP, UPDATE = 80, 12
Inject = Callable[[pytest.MonkeyPatch, float, int], None]


def at_step(patch: pytest.MonkeyPatch, change: Callable[[Any], Any], times: int) -> None:
    step, taken = CartPoleEnv.step, []

    def stepping(self: CartPoleEnv, action: Any) -> Any:
        result = step(self, action)
        taken.append(1)
        return change(result) if STEP <= len(taken) < STEP + times else result

    patch.setattr(CartPoleEnv, "step", stepping)


def in_observation(patch: pytest.MonkeyPatch, bad: float, times: int) -> None:
    at_step(patch, lambda result: (np.full_like(result[0], bad), *result[1:]), times)


def in_reward(patch: pytest.MonkeyPatch, bad: float, times: int) -> None:
    at_step(patch, lambda result: (result[0], bad, *result[2:]), times)


def in_loss(patch: pytest.MonkeyPatch, bad: float, times: int) -> None:
    losses, called = WorldModel.losses, []

    def poisoned(self: WorldModel, batch: Any, lesson: Any) -> Any:
        found = losses(self, batch, lesson)
        called.append(1)
        if UPDATE <= len(called) < UPDATE + times:
            found["reward"] = found["reward"] * bad
        return found

    patch.setattr(WorldModel, "losses", poisoned)


def in_gradient(patch: pytest.MonkeyPatch, bad: float, times: int) -> None:
    update, called = Agent.update, []

    def poisoned(self: Agent, batch: Any, uniform: Any) -> Any:
        called.append(1)
        if not UPDATE <= len(called) < UPDATE + times:
            return update(self, batch, uniform)
        weight = next(self.behavior.actor.parameters())
        hook = weight.register_hook(lambda grad: grad * bad)
        try:
            return update(self, batch, uniform)
        finally:
            hook.remove()

    patch.setattr(Agent, "update", poisoned)


PLACES: list[tuple[Inject, str]] = [
    (in_observation, "The observation of CartPole-v1 is not finite"),
    (in_reward, "CartPole-v1 (env 0, episode"),
    (in_loss, "update 12: loss/reward"),
    (in_gradient, "update 12: grad/actor not finite"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:

    run_dir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plot_run", lambda run_dir: run_dir / "curves.png")
        patch.setattr(train_module, "episode_video", lambda path, trace, **more: path)
        train(CFG, run_dir)
    return everything(run_dir)


@pytest.mark.parametrize(("inject", "words"), PLACES)
def test_caught_in_its_own_step_and_gone_back_from_to_the_last_bit(
    inject: Inject,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: dict[str, Any],
) -> None:
    """With its learning rates kept (rollback_lr=1) and a fault that does not come again, going back leaves no trace."""
    caught: list[int] = []
    states: list[State] = []
    begin = State.__init__

    def beginning(self: State, *args: Any) -> None:
        if states:
            caught.append(states[-1].step)
        states.append(self)
        begin(self, *args)

    monkeypatch.setattr(State, "__init__", beginning)
    inject(monkeypatch, math.nan, 1)
    report = train(CFG, tmp_path)
    said = capsys.readouterr().out
    # The env's 80th step is one too many to be counted: it was refused.
    step = {in_observation: STEP - 1, in_reward: STEP - 1}.get(inject, caught[0])
    assert caught == [step]
    assert words in said
    assert "Back to the last checkpoint, with 1 of the learning rates (step" in said
    assert "Resumed at 60 steps." in said
    assert report.summary["rollbacks"] == 1
    got = everything(tmp_path)
    got["tally"]["rollbacks"] = 0
    assert differences(got, undisturbed) == []
    if inject in (in_loss, in_gradient):
        assert states[0].tally.updates == UPDATE - 1, "not in the update that was bad"
        with np.load(tmp_path / "not_finite" / f"batch_at_step_{step:09d}.npz") as batch:
            assert batch["obs"].shape == (2, 6, 64, 64, 3)


def test_it_learns_more_slowly_each_time_and_in_the_end_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates: list[float] = []
    learn = State.learn

    def learning(self: State) -> None:
        rate = self.agent.optimizer.param_groups[0]["lr"]
        if rates[-1:] != [rate]:
            rates.append(rate)
        learn(self)

    monkeypatch.setattr(State, "learn", learning)
    in_loss(monkeypatch, math.inf, 1000)
    with pytest.raises(UserError) as told:
        train(replace(CFG, rollbacks=2, rollback_lr=0.5), tmp_path)
    message = str(told.value)
    assert message.startswith("A number that is none at step ")
    assert "loss/reward" in message
    assert "after 2 rollbacks the run gives up; the checkpoint step_000000060 is whole. What it learned from" in message
    assert "\n" not in message
    world_lr = CFG.agent.world_lr
    assert rates == [world_lr, world_lr / 2, world_lr / 4]
    assert capsys.readouterr().out.count("Back to the last checkpoint") == 2
    saved, damaged = checkpoint.load_newest(tmp_path)
    assert saved is not None
    assert (saved.step, damaged) == (60, [])
    check_finite(saved.tensors)


def test_a_run_without_a_checkpoint_goes_back_to_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], undisturbed: dict[str, Any]
) -> None:
    in_gradient(monkeypatch, math.inf, 1)
    train(replace(CFG, checkpoint_every=1000), tmp_path)
    assert "Back to the beginning, for nothing was saved yet, with 1 of the learning rates" in capsys.readouterr().out
    got = everything(tmp_path)
    got["tally"]["rollbacks"] = 0
    assert differences(got, undisturbed) == []


def test_a_disk_too_full_for_the_evidence_does_not_keep_a_run_from_going_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_module, "save_batch", full)
    in_loss(monkeypatch, math.nan, 1)
    assert train(CFG, tmp_path).summary["rollbacks"] == 1


def test_no_agent_is_played_or_written_that_nobody_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device tells only when it is asked, and with neither metrics nor checkpoints nobody else would ask."""
    monkeypatch.setattr(guard_module, "TOLD_AT_ONCE", ())
    in_loss(monkeypatch, math.nan, 1)
    report = train(replace(CFG, checkpoint_every=0, log_every=1000), tmp_path)
    assert report.summary["rollbacks"] == 1
    check_finite(torch.load(report.agent, weights_only=True)["weights"])


def weights(state: State) -> torch.Tensor:
    return next(state.agent.parameters()).detach()


def moments(state: State) -> torch.Tensor:
    moment = torch.zeros(2)
    state.agent.optimizer.state[next(state.agent.parameters())] = {"exp_avg": moment}
    return moment


def memory(state: State) -> torch.Tensor:
    state.observe("random")
    return state.replay.data["deter"]


@pytest.mark.parametrize("where", [weights, moments, memory])
def test_a_state_that_is_bad_is_never_written(tmp_path: Path, where: Callable[[State], torch.Tensor]) -> None:
    """Whatever the guard did not see: a last look before anything is saved."""
    state = State(CFG, None)
    state.row = state.envs.reset_row()
    tensor = where(state)
    tensor[(0,) * tensor.ndim] = math.nan
    with pytest.raises(NotFinite):
        state.save(tmp_path, "run", 0)
    assert list(tmp_path.iterdir()) == []
    tensor[(0,) * tensor.ndim] = 0.0
    state.save(tmp_path, "run", 0)
    assert len(checkpoint.checkpoints(tmp_path)) == 1
    state.envs.close()

"""The world model, overfitted to a few episodes of the counter env: its rewards, ends and dreams have known values."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamer_lpm.envs import Envs
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world import Latent, RSSMConfig, WorldConfig, WorldModel
from tests.probes.counter_env import CounterEnv
from tests.world.tiny import codes

LENGTH = 3  # steps of an episode, which pay 1, 2, 3
B, T = 4, 2 * (LENGTH + 1)
CONFIG = WorldConfig(rssm=RSSMConfig(deter=32, hidden=32, stoch=4, classes=4), depth=4)


def episodes(ends: str) -> Batch:
    """Two whole episodes of each of four counter envs that all do the same."""
    envs = Envs(partial(CounterEnv, length=LENGTH, ends=ends, action_size=1), B, seed=0)  # type: ignore[arg-type]
    rows = [envs.reset_row(), *(envs.step(np.full((B, 1), 0.5, np.float32)) for _ in range(T - 1))]
    fields = {key: torch.from_numpy(np.stack([row[key] for row in rows], 1)) for key in rows[0] if key != "is_last"}
    fields["obs"][:, :, :16, :32] = 0  # blot out which episode it is, so that all are alike
    fields["obs"][:, :, :16, 48:] *= 60  # and brighten the step: 0, 60, 120, 180 of 255
    return Batch(**fields, deter=torch.zeros(B, 32), stoch=torch.zeros(B, 4, dtype=torch.uint8))


class Taught:
    """A world model after a few hundred updates on those episodes, and its losses before and after."""

    def __init__(self, ends: str, updates: int = 150) -> None:
        self.batch = episodes(ends)
        self.generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.world = WorldModel(CONFIG, ActionSpec("continuous", 1))
        optimizer = torch.optim.Adam(self.world.parameters(), lr=3e-3)
        self.history: list[dict[str, float]] = []
        for _ in range(updates):
            losses = self.world.losses(self.batch, self.world.watch(self.batch, self.noise()))
            self.history.append({key: float(x.detach().mean()) for key, x in losses.items()})
            optimizer.zero_grad()
            torch.stack([x.mean() for x in losses.values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(self.world.parameters(), 100)
            optimizer.step()
        lesson = self.world.watch(self.batch, self.noise())
        self.latents, self.predicted = lesson.latents, self.world.predict(lesson.latents)

    def noise(self) -> Tensor:
        return codes(self.world.rssm, self.batch.reward.shape, self.generator)

    def dreamt(self) -> Tensor:
        """Features (LENGTH + 1, B, F) of a dream from the first picture on, by the action that was played."""
        start = Latent(self.latents.deter[:, 0].detach(), self.latents.stoch[:, 0].detach())

        def policy(feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            action = torch.full((B, 1), 0.5)
            return action, action

        noise = codes(self.world.rssm, (LENGTH, B), self.generator)
        return self.world.rssm.imagine(start, policy, noise, torch.zeros(LENGTH, B, 1)).feat


@pytest.fixture(scope="module")
def terminated() -> Taught:
    return Taught("terminated")


@pytest.fixture(scope="module")
def truncated() -> Taught:
    return Taught("truncated", updates=60)


def test_every_loss_falls(terminated: Taught) -> None:
    before, after = terminated.history[0], terminated.history[-1]
    assert after["recon"] < 0.05 * before["recon"]
    assert after["reward"] < 0.3 * before["reward"]
    assert after["cont"] < 0.2 * before["cont"]


def test_reward_head_knows_the_rewards(terminated: Taught) -> None:
    said = terminated.world.reward(terminated.latents.feat).detach()
    assert set(terminated.batch.reward.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0}
    torch.testing.assert_close(said, terminated.batch.reward, rtol=0, atol=0.3)


def test_continue_head_knows_the_terminations(terminated: Taught) -> None:
    said = terminated.world.cont(terminated.latents.feat).detach()
    torch.testing.assert_close(said, (~terminated.batch.is_terminal).float(), rtol=0, atol=0.2)
    assert terminated.batch.is_terminal.sum() == 2 * B


def test_continue_head_takes_no_time_limit_for_an_end(truncated: Taught) -> None:
    said = truncated.world.cont(truncated.latents.feat).detach()
    assert not truncated.batch.is_terminal.any()
    assert said.min() > 0.9


def test_prediction_sees_the_next_step_coming(terminated: Taught) -> None:
    """What the prior expects is nearer to the frame that comes than to that of any other step."""
    seen = terminated.batch.obs.float() / 255
    expected = terminated.predicted
    for step in range(1, LENGTH + 1):
        distance = [float((expected[:, step] - seen[:, other]).square().sum()) for other in range(LENGTH + 1)]
        assert int(np.argmin(distance)) == step, distance


def test_a_dream_pays_the_rewards_that_the_env_would(terminated: Taught) -> None:
    """Imagined from the first picture alone: on entering states 1, 2, 3 it pays 1, 2, 3, and ends with the last."""
    feat = terminated.dreamt()
    reward, cont = terminated.world.reward(feat).detach(), terminated.world.cont(feat).detach()
    torch.testing.assert_close(reward.mean(1), torch.tensor([0.0, 1.0, 2.0, 3.0]), rtol=0, atol=0.5)
    assert cont[:LENGTH].mean() > 0.8
    assert cont[LENGTH].mean() < 0.3

"""The actor-critic in hand-made dreams whose values and best actions are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dreamer_lpm.behavior import Actor, Behavior, BehaviorConfig
from dreamer_lpm.types import ActionSpec

F, B = 3, 64
ONE, ARMS = ActionSpec("continuous", 1), ActionSpec("discrete", 3)
Reward = Callable[[Tensor, Tensor], Tensor]  # (H, B, F) states acted in, (H, B, A) actions executed -> (H, B)


class Trainer:
    """Trains a behavior in dreams that visit random states, whatever is done in them."""

    def __init__(
        self, spec: ActionSpec, reward: Reward, *, cont: float = 1.0, actor: type[Actor] = Actor, **cfg: float
    ):
        self.reward, self.cont = reward, cont
        self.generator = torch.Generator().manual_seed(0)
        config = BehaviorConfig(hidden=16, layers=1, slow_rate=0.1, **cfg)  # type: ignore[arg-type]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.behavior = Behavior(config, F, spec)
            self.behavior.actor = actor(config, F, spec)

    def states(self, *lead: int) -> Tensor:
        return torch.randn(*lead, F, generator=self.generator)

    def sample(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        actor = self.behavior.actor
        return actor.sample(feat, actor.noise(torch.rand(*feat.shape[:-1], actor.spec.size, generator=self.generator)))

    def train(self, updates: int, horizon: int, lr: float = 1e-2) -> Behavior:
        optimizer = torch.optim.Adam([p for p in self.behavior.parameters() if p.requires_grad], lr=lr)
        alive = torch.ones(B, dtype=torch.bool)
        for _ in range(updates):
            feat = self.states(horizon + 1, B)
            with torch.no_grad():
                executed, sampled = self.sample(feat[:-1])
            reward = self.reward(feat[:-1], executed)
            losses = self.behavior.loss(feat, sampled, reward, torch.full_like(reward, self.cont), alive)
            optimizer.zero_grad()
            torch.stack([x.mean() for x in losses.values()]).sum().backward()
            optimizer.step()
            self.behavior.critic.follow()
        return self.behavior


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "gamma", "cont"),
    [(1.0, 0.9, 1.0), (-3.0, 0.8, 1.0), (1.0, 0.9, 0.5), (5.0, 0.99, 0.0), (0.0, 0.9, 1.0)],
)
def test_value_of_a_constant_reward_is_its_geometric_series(reward: float, gamma: float, cont: float) -> None:
    """v = r + gamma c v: discounted by the predicted continuation, and nothing behind a certain end."""
    trainer = Trainer(ARMS, lambda feat, action: torch.full(action.shape[:-1], reward), cont=cont, gamma=gamma)
    value = trainer.train(300, horizon=5).critic(trainer.states(100))
    want = reward / (1 - gamma * cont)
    torch.testing.assert_close(value.detach().mean(), torch.tensor(want), rtol=0.05, atol=0.05)
    torch.testing.assert_close(value.detach(), torch.full((100,), want), rtol=0.1, atol=0.05)


def test_value_depends_on_the_state() -> None:
    """v(s) = r(s) + gamma E[v]: half of the states pay 1 for being left, the others 0, and the next is any."""
    gamma = 0.5
    trainer = Trainer(ARMS, lambda feat, action: (feat[..., 0] > 0).float(), gamma=gamma)
    critic = trainer.train(200, horizon=5).critic
    later = gamma * 0.5 / (1 - gamma)
    feat = trainer.states(200)
    feat = feat[feat[:, 0].abs() > 0.5]
    want = (feat[:, 0] > 0).float() + later
    assert (critic(feat).detach() - want).abs().mean() < 0.1


# --- actions ----------------------------------------------------------------------------------------------------------


class Narrow(Actor):
    """The mutant: a policy that spans half of what the env allows."""

    def sample(self, feat: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        _, sampled = super().sample(feat, noise)
        return sampled.clamp(-0.5, 0.5), sampled

    def mode(self, feat: Tensor) -> Tensor:
        return super().mode(feat) / 2


def learned(reward: Reward, actor: type[Actor] = Actor) -> tuple[Tensor, Tensor]:
    """Mode and executed samples of a continuous bandit, (200, 1) each."""
    trainer = Trainer(ONE, reward, cont=0.0, actor=actor)
    policy = trainer.train(200, horizon=1).actor
    feat = trainer.states(200)
    return policy.mode(feat).detach(), trainer.sample(feat)[0].detach()


@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_continuous_actor_learns_to_use_the_very_end_of_the_range(end: float) -> None:
    mode, executed = learned(lambda feat, action: 10 * end * action[..., 0])
    assert (mode * end > 0.95).all()
    assert (executed == end).float().mean() > 0.4


def test_an_actor_that_cannot_reach_the_end_would_be_seen() -> None:
    mode, executed = learned(lambda feat, action: 10 * action[..., 0], Narrow)
    assert (mode > 0.4).all(), "it learned what it could"
    assert not (mode > 0.95).any()
    assert not (executed == 1).any()


@pytest.mark.parametrize("best", [-0.4, 0.0, 0.6])
def test_continuous_actor_finds_an_inner_optimum(best: float) -> None:
    mode, _ = learned(lambda feat, action: -20 * (action[..., 0] - best).square())
    assert (mode - best).abs().mean() < 0.1


def test_continuous_actor_acts_on_what_it_sees() -> None:
    trainer = Trainer(ONE, lambda feat, action: 10 * torch.sign(feat[..., 0]) * action[..., 0], cont=0.0)
    actor = trainer.train(200, horizon=1).actor
    feat = trainer.states(300)
    feat = feat[feat[:, 0].abs() > 0.5]
    assert (actor.mode(feat)[:, 0] * torch.sign(feat[:, 0]) > 0.7).float().mean() > 0.95


@pytest.mark.parametrize("best", [0, 2])
def test_discrete_actor_finds_the_best_arm(best: int) -> None:
    trainer = Trainer(ARMS, lambda feat, action: 2 * action[..., best] + action[..., 1], cont=0.0)
    actor = trainer.train(150, horizon=1).actor
    feat = trainer.states(500)
    assert (actor.mode(feat).argmax(-1) == best).all()
    share = trainer.sample(feat)[0][:, best].mean()
    assert share > 0.9


def test_an_action_earns_what_it_brings_about_later() -> None:
    """Arm 1 in the first of three steps pays, but only after the third; the states do not show what was chosen."""
    steps = torch.eye(F)[[0, 1, 2, 2]].unsqueeze(1).expand(-1, B, -1)

    def reward(feat: Tensor, action: Tensor) -> Tensor:
        paid = torch.zeros(action.shape[:-1])
        paid[-1] = 3 * action[0, :, 1]
        return paid

    class Steps(Trainer):
        def states(self, *lead: int) -> Tensor:
            return steps

    actor = Steps(ARMS, reward, gamma=0.9).train(150, horizon=3).actor
    probs = actor.log_prob_and_entropy(steps[0, :3], torch.eye(3))[0].exp()
    assert probs[1] > 0.9, probs


@pytest.mark.parametrize("spec", [ONE, ARMS])
def test_a_reward_that_no_action_changes_leaves_the_policy_undecided(spec: ActionSpec) -> None:
    def entropy(reward: Reward) -> float:
        trainer = Trainer(spec, reward, gamma=0.9)
        actor = trainer.train(150, horizon=5, lr=3e-3).actor
        feat = trainer.states(200)
        return float(actor.log_prob_and_entropy(feat, trainer.sample(feat)[1])[1].mean().detach())

    # That of the untrained policy: uniform, or a normal in the middle of its range of stds.
    first = math.log(3) if spec.is_discrete else math.log(0.55) + 0.5 * math.log(2 * math.pi * math.e)
    undecided = entropy(lambda feat, action: 5 * (feat[..., 0] > 0).float())
    decided = entropy(lambda feat, action: 5 * action[..., 0] * (1 if spec.is_discrete else -1))
    assert undecided > first - 0.25
    assert decided < undecided - 0.3

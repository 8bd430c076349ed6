"""Reward and continue heads: what they say untaught, and what they are taught."""

from __future__ import annotations

import torch

from dreamer_lpm.world import ContinueModel, RewardModel


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))


def test_untaught_reward_is_exactly_zero() -> None:
    """A random reward would be the first thing that dreams chase."""
    assert torch.equal(RewardModel(8, 16)(features()), torch.zeros(3, 4))


def test_reward_loss_is_the_cross_entropy_of_the_two_hot() -> None:
    torch.manual_seed(0)
    head = RewardModel(8, 16)
    torch.nn.init.normal_(head.net[-1].weight)  # type: ignore[arg-type]
    reward = torch.linspace(-20, 20, 12).reshape(3, 4)
    want = -(head.dist.encode(reward) * torch.log_softmax(head.net(features()), -1)).sum(-1)
    torch.testing.assert_close(head.loss(features(), reward), want)


def test_continue_loss_is_the_binary_cross_entropy_of_going_on() -> None:
    torch.manual_seed(0)
    head = ContinueModel(8, 16)
    is_terminal = torch.rand(3, 4) < 0.5
    p = head(features())
    assert ((p > 0) & (p < 1)).all()
    want = -torch.where(is_terminal, 1 - p, p).log()
    torch.testing.assert_close(head.loss(features(), is_terminal), want)

"""What the world model says of a state besides its picture: the reward, and whether the episode goes on."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.nets import TwoHot, mlp


class RewardModel(nn.Module):
    """Reward received on entering a state, as a symlog two-hot distribution. (..., F) -> logits (..., bins)."""

    def __init__(self, feat_size: int, hidden: int, layers: int = 1):
        super().__init__()
        self.dist = TwoHot()
        self.net = mlp(feat_size, hidden, layers, self.dist.bins, zero=True)

    def forward(self, feat: Tensor) -> Tensor:
        """Expected reward (...), in the environment's units."""
        return self.dist.mean(self.net(feat).float())

    def loss(self, feat: Tensor, reward: Tensor) -> Tensor:
        """Cross entropy, feat (..., F), reward (...) -> (...)."""
        return self.dist.loss(self.net(feat), reward)


class ContinueModel(nn.Module):
    """Probability that the episode does not *terminate* in a state. (..., F) -> (...) in [0, 1].

    A time limit is no termination.
    """

    def __init__(self, feat_size: int, hidden: int, layers: int = 1):
        super().__init__()
        self.net = mlp(feat_size, hidden, layers, 1)

    def forward(self, feat: Tensor) -> Tensor:
        logits: Tensor = self.net(feat)
        return logits.float().squeeze(-1).sigmoid()

    def loss(self, feat: Tensor, is_terminal: Tensor) -> Tensor:
        """Binary cross entropy, is_terminal (...) bool -> (...)."""
        logits = self.net(feat).float().squeeze(-1)
        return F.binary_cross_entropy_with_logits(logits, (~is_terminal).float(), reduction="none")

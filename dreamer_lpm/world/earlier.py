"""The world model as it was: for a curiosity that asks what has been learned since."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from dreamer_lpm.types import Batch
from dreamer_lpm.world.model import WorldModel


class Earlier(nn.Module):
    """A copy of ``world`` that is taken anew every ``every`` updates, and in between stays as it is.

    A moving average would be smoother and is of no use: an average of models is a *better* model than the newest, and
    what is measured against it is less than the progress that was made.
    """

    age: Tensor

    def __init__(self, world: WorldModel, every: int):
        super().__init__()
        self.world = copy.deepcopy(world).requires_grad_(False)
        self.every = every
        self.register_buffer("age", torch.tensor(float(every)))  # updates since it was taken

    @torch.no_grad()
    def follow(self, world: WorldModel) -> None:
        """Become a copy of ``world`` if it is time to, else a step older. Decides without a look at any value."""
        due = self.age >= self.every
        mine, its = (chain(model.parameters(), model.buffers()) for model in (self.world, world))
        for old, new in zip(mine, its, strict=True):
            old.copy_(torch.where(due, new, old))
        self.age.copy_(torch.where(due, 0.0, self.age + 1))

    @property
    def lag(self) -> Tensor:
        """How far it lies back, () in [0, 1], as a share of the longest that it ever does."""
        return self.age / self.every

    @torch.no_grad()
    def error(self, batch: Batch, noise: Tensor) -> Tensor:
        """As ``WorldModel.foresee``: mean squared error of the frames that it had expected, (B, T).

        noise (B, T, S, C): what the world model of today was given, so that chance tells the two no more apart.
        """
        return self.world.error(self.world.watch(batch, noise))

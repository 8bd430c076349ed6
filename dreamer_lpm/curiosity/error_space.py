"""Where the error of the world model's prediction is measured: one small module a space.

    frame       |o' - o^|^2 / dim                     pixels, the paper's
    random      |f(o') - f(o^)|^2 / dim               f: a frozen random network
    embedding   |e(o') - e(o^)|^2 / dim               e: the world model's own encoder
    kl          KL(posterior || prior)                nats, between latents

with o^ the decoded prior, the prediction made before the frame was seen. Frame and random stay put. Embedding and kl
are measured with a ruler that the world model goes on bending, so their errors may move without anything being learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import IntrinsicReward, Transition, mse, seen
from dreamer_lpm.curiosity.pictures import RandomFeatures

ErrorSpaceName = Literal["frame", "random", "embedding", "kl"]


class ErrorSpace(nn.Module, ABC):
    """A way to measure how wrong a prediction was."""

    floor: float = 1e-8
    """Added before the logarithm: errors below it are all alike."""
    reads_pictures: bool = False
    """Whether it looks at the pictures of a transition themselves."""

    @abstractmethod
    def error(self, t: Transition) -> Tensor:
        """Error of each replayed transition, (...) >= 0."""

    def log_error(self, t: Transition) -> Tensor:
        """log(error + floor), (...)."""
        return torch.log(self.error(t) + self.floor)


class FrameSpace(ErrorSpace):
    """Mean squared error over pixels and channels; its logarithm is :func:`~dreamer_lpm.curiosity.base.log_mse`."""

    def error(self, t: Transition) -> Tensor:
        return mse(t)


class RandomSpace(ErrorSpace):
    """Mean squared error of a frozen random network's features. Blind to most of what a picture's pixels do."""

    reads_pictures = True

    def __init__(self) -> None:
        super().__init__()
        self.features = RandomFeatures()

    def error(self, t: Transition) -> Tensor:
        both: Tensor = self.features(torch.stack([t.small_target, t.small_predicted]))
        return (both[0] - both[1]).square().mean(-1)


class EmbeddingSpace(ErrorSpace):
    """Mean squared error of the world model's own embeddings, which drift while it learns."""

    def error(self, t: Transition) -> Tensor:
        return (seen(t.target_embed).float() - seen(t.predicted_embed).float()).square().mean(-1)


class KLSpace(ErrorSpace):
    """How much the frame changed the model's mind, in nats. 0 where the model declines to look."""

    floor = 0.01  # nats; a declined frame has about 0, whose logarithm would be a cliff

    def error(self, t: Transition) -> Tensor:
        return seen(t.kl).clamp(min=0)


_SPACES: dict[ErrorSpaceName, type[ErrorSpace]] = {
    "frame": FrameSpace,
    "random": RandomSpace,
    "embedding": EmbeddingSpace,
    "kl": KLSpace,
}


def error_space(name: ErrorSpaceName) -> ErrorSpace:
    """The space of that name."""
    return _SPACES[name]()


def reads_error_space(bonus: nn.Module) -> bool:
    """Whether the bonus measures its error in such a space at all."""
    return any(isinstance(part, ErrorSpace) for part in bonus.modules())


def reads_pictures(bonus: nn.Module) -> bool:
    """Whether the bonus, or anything in it, looks at ``Transition.target``, ``predicted`` or ``frame``."""
    return any(part.reads_pictures for part in bonus.modules() if isinstance(part, IntrinsicReward | ErrorSpace))


def needs_earlier(bonus: nn.Module) -> bool:
    """Whether the bonus, or anything in it, needs ``Transition.error_before``."""
    return any(part.needs_earlier for part in bonus.modules() if isinstance(part, IntrinsicReward))


def reads_embeddings(bonus: nn.Module) -> bool:
    """Whether the bonus needs ``Transition.target_embed`` and ``predicted_embed``."""
    return any(isinstance(part, EmbeddingSpace) for part in bonus.modules())

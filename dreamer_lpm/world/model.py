"""The world model: what it learns from sequences (``losses``) and what it expects to see (``predict``).

The recurrent part, with how it watches and dreams, is in ``rssm.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamer_lpm.machine import at_once
from dreamer_lpm.nets import categorical_kl, one_hot
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world.codec import Decoder, Encoder
from dreamer_lpm.world.heads import ContinueModel, RewardModel
from dreamer_lpm.world.rssm import RSSM, Latent, RSSMConfig

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class WorldConfig:
    """Sizes and loss weights of the world model (DreamerV3, eq. 4 and 5)."""

    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    depth: int = 16
    """Width of the convolutions: each stage has a multiple of these channels."""
    stages: tuple[tuple[int, int, int], ...] = ((8, 4, 1), (4, 2, 2), (4, 2, 4))
    """Convolutions as (kernel, stride, channels / depth)."""
    head_layers: int = 1
    """Hidden layers of the reward and continue heads."""
    free_nats: float = 1.0
    """KL below this is not pushed further down (free bits)."""
    dyn_scale: float = 1.0
    """Weight of KL(sg(posterior) || prior): teaches the prior to predict."""
    rep_scale: float = 0.1
    """Weight of KL(posterior || sg(prior)): keeps the posterior predictable."""
    recon_knee: float = 10.0
    """Squared error from which on the reconstruction loss grows only logarithmically.
    It is summed over the pixels in [0, 1]: a blank frame instead of a Pendulum is off by 27."""


class Lesson(NamedTuple):
    """What the world model made of a batch."""

    latents: Latent  # (B, T, ...)
    post: Tensor  # (B, T, S, C) log-probabilities once the frame was seen
    prior: Tensor  # (B, T, S, C) and before
    folded: Tensor  # (B*T, P) the frames as the decoder compares them with its own
    look: Tensor  # (B, T) in [0, 1], how far the posterior looked at each frame
    kl: Tensor  # (B, T) KL(posterior || prior) in nats, detached
    embeds: Tensor  # (B, T, E) of the frames seen, detached


class WorldModel(nn.Module):
    """Encoder, RSSM and heads, joined by one loss."""

    def __init__(self, cfg: WorldConfig, spec: ActionSpec, size: int = 64):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg.depth, cfg.stages, size)
        self.rssm = RSSM(cfg.rssm, spec.size, self.encoder.size)
        self.decoder = Decoder(self.rssm.feat_size, cfg.depth, cfg.stages, size)
        self.reward = RewardModel(self.rssm.feat_size, cfg.rssm.hidden, cfg.head_layers)
        self.cont = ContinueModel(self.rssm.feat_size, cfg.rssm.hidden, cfg.head_layers)

    def start(self, batch: Batch) -> Latent:
        """The stored state before the first step: deter (B, D), stoch (B, S) classes -> Latent."""
        classes = self.cfg.rssm.classes
        stoch = one_hot(batch.stoch.long(), classes, batch.deter.dtype).flatten(-2)
        return Latent(batch.deter, stoch)

    def watch(self, batch: Batch, noise: Tensor, lanes: int = 1) -> Lesson:
        """What :meth:`losses` and :meth:`foresee` go on from, which can then work side by side.

        noise (B, T, S, C): Gumbel, for the samples of the posterior.
        """
        embeds, folded = self._look_at(batch.obs, lanes)
        latents, post, prior, look = self.rssm.observe(self.start(batch), batch.action, embeds, batch.is_first, noise)
        with torch.no_grad():
            kl = categorical_kl(post, prior)
        return Lesson(latents, post, prior, folded, look, kl, embeds.detach())

    def _look_at(self, frames: Tensor, lanes: int) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T, E) of the frames, and the frames as the decoder compares them."""
        half = len(frames) // 2
        if frames.device.type != "cpu" or not half:
            return self.encoder(frames), self.decoder.fold(frames)
        # In halves, whether side by side or not, so that the bits are the same.
        first, (second, folded) = at_once(
            lambda: self.encoder(frames[:half]), lambda: (self.encoder(frames[half:]), self.decoder.fold(frames)), lanes
        )
        return torch.cat([first, second]), folded

    def losses(self, batch: Batch, lesson: Lesson) -> Losses:
        """All losses but the gate's, each (B, T)."""
        post, prior, feat, free = lesson.post, lesson.prior, lesson.latents.feat, self.cfg.free_nats
        losses = {
            "recon": lesson.look * self._robust(self.decoder.error(feat, lesson.folded)),
            "dyn": self.cfg.dyn_scale * categorical_kl(post.detach(), prior).clamp(min=free),
            "rep": self.cfg.rep_scale * categorical_kl(post, prior.detach()).clamp(min=free),
            "reward": self.reward.loss(feat, batch.reward),
            "cont": self.cont.loss(feat, batch.is_terminal),
        }
        shape = batch.reward.shape
        assert all(x.shape == shape for x in losses.values()), {k: v.shape for k, v in losses.items()}
        return losses

    def foresee(self, batch: Batch, lesson: Lesson) -> tuple[Tensor, Losses]:
        """How wrong the frames were that had been expected (see :meth:`predict`), and the loss of who expects that.

        Returns the mean squared error over pixels in [0, 1], (B, T) without a gradient, and the noise gate's loss
        (B, T), if there is a gate. Its gradient reaches the gate alone.
        """
        error = self.error(lesson)
        if self.rssm.gate is None:
            return error, {}
        return error, {"gate": self.rssm.gate.loss(lesson.latents.deter, torch.log(error + 1e-8), batch.is_first)}

    @torch.no_grad()
    def error(self, lesson: Lesson) -> Tensor:
        """Mean squared error over pixels in [0, 1] of the frames that had been expected, (B, T)."""
        expected = Latent(lesson.latents.deter, self.rssm.sample(lesson.prior, None)).feat
        wrong: Tensor = self.decoder.error(expected, lesson.folded)
        return wrong / lesson.folded.shape[-1]

    def _robust(self, error: Tensor) -> Tensor:
        """c log(1 + error / c): the squared error where it is small, its logarithm where it is large (...) -> (...).

        A frame's pull on the weights then falls with its own error, as for a likelihood whose variance fits itself, so
        that a picture nobody can draw does not drown all that can be drawn.
        """
        c = self.cfg.recon_knee
        return c * torch.log1p(error / c)

    @torch.no_grad()
    def predict(self, latents: Latent) -> Tensor:
        """What the model expected to see before it saw: the decoded *mode of the prior*, (..., 64, 64, 3).

        The mode is a codeword that the decoder was trained on; the mean of a one-hot latent is not.
        """
        stoch = self.rssm.sample(self.rssm.prior(latents.deter), None)
        picture: Tensor = self.decoder(Latent(latents.deter, stoch).feat)
        return picture

    def look(self, feat: Tensor) -> Tensor:
        """How far the frame of each dreamed state would be looked at. (..., F) -> (...) in [0, 1]."""
        return self.rssm.look(feat[..., : self.rssm.cfg.deter])

"""Recurrent state-space model with categorical latents (DreamerV2/V3): the memory and the dreams of the world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.nets import (
    EPS,
    BlockLinear,
    arithmetic,
    mlp,
    one_hot_of_largest,
    one_hot_straight_through,
    unimix_log_probs,
)
from dreamer_lpm.world.filtering import Filter, How, ManyFilters, Weights, recur
from dreamer_lpm.world.gate import NoiseGate


class Latent(NamedTuple):
    """The model's state: ``deter`` (..., D) remembers, ``stoch`` (..., S*C) is the flattened one-hot sample."""

    deter: Tensor
    stoch: Tensor

    @property
    def feat(self) -> Tensor:
        """(..., F) = deter and stoch side by side."""
        return torch.cat([self.deter, self.stoch], -1)

    def detach(self) -> Latent:
        return Latent(self.deter.detach(), self.stoch.detach())


class Dream(NamedTuple):
    """Imagined trajectories: state h is the one action h is taken in. H+1 states, H actions."""

    feat: Tensor  # (H+1, B, F)
    action: Tensor  # (H, B, A) as the environment would execute it
    sampled: Tensor  # (H, B, A) as the policy drew it (before clipping)


@dataclass(frozen=True)
class RSSMConfig:
    """Sizes of the recurrent state-space model."""

    deter: int = 256
    """D, units of the recurrent state."""
    hidden: int = 256
    """Width of the layers between."""
    stoch: int = 16
    """S, number of categorical latents."""
    classes: int = 16
    """C, classes of each."""
    blocks: int = 1
    """Block-diagonal groups of the recurrent core (1: dense; DreamerV3 uses 8)."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical."""
    noise_gate: bool = True
    """Decline to look at frames whose prediction is expected to stay wrong (world/gate.py)."""


class RSSM(nn.Module):
    """h' = GRU(h, z, a);  prior p(z' | h');  posterior q(z' | h', embedding).

    The action that *led to* an observation enters the step that ends in it. At ``is_first`` state and action are
    zeroed.
    """

    def __init__(self, cfg: RSSMConfig, action_size: int, embed_size: int):
        super().__init__()
        self.cfg = cfg
        self.together = False  # with other agents, inside of vmap (flock.py)
        self.fused = False  # steps of filtering are compiled
        flat = cfg.stoch * cfg.classes
        self.feat_size = cfg.deter + flat
        self.in_stoch = nn.Linear(flat, cfg.hidden, bias=False)
        self.in_action = nn.Linear(action_size, cfg.hidden)
        self.in_norm = nn.LayerNorm(cfg.hidden, eps=EPS)
        self.core_in = nn.Linear(cfg.hidden, 3 * cfg.deter, bias=False)
        self.core_rec: nn.Module = (
            nn.Linear(cfg.deter, 3 * cfg.deter, bias=False)
            if cfg.blocks == 1
            else BlockLinear(cfg.deter, 3 * cfg.deter, cfg.blocks)
        )
        self.core_norm = nn.LayerNorm(3 * cfg.deter, eps=EPS)
        self.prior_net = mlp(cfg.deter, cfg.hidden, 1, flat)
        self.post_deter = nn.Linear(cfg.deter, cfg.hidden, bias=False)
        self.post_embed = nn.Linear(embed_size, cfg.hidden, bias=False)
        self.post_norm = nn.LayerNorm(cfg.hidden, eps=EPS)
        self.post_out = nn.Linear(cfg.hidden, flat)
        with torch.no_grad():
            # Codes that differ between frames from the first update on. From torch's own small weights they are all
            # noise, the decoder learns to ignore them, and the encoder takes off later.
            self.post_out.weight.mul_(8.0)
        self.gate = NoiseGate(cfg.deter, cfg.hidden) if cfg.noise_gate else None

    def initial(self, lead: tuple[int, ...], device: torch.device) -> Latent:
        """The zero state, for the start of an episode."""
        flat = self.cfg.stoch * self.cfg.classes
        return Latent(torch.zeros(*lead, self.cfg.deter, device=device), torch.zeros(*lead, flat, device=device))

    def core(self, prev: Latent, action_in: Tensor) -> Tensor:
        """One recurrent step. ``action_in`` (..., hidden) is the projected action; returns deter (..., D)."""
        x = F.silu(self.in_norm(self.in_stoch(prev.stoch) + action_in))
        return self._gated(self.core_norm(self.core_in(x) + self.core_rec(prev.deter)), prev.deter)

    def _gated(self, gates: Tensor, before: Tensor) -> Tensor:
        """gates (..., 3 D), deter before the step (..., D) -> after it."""
        blocks = gates.reshape(*gates.shape[:-1], self.cfg.blocks, 3, -1)  # every block gates itself
        reset, candidate, update = (gate.flatten(-2) for gate in blocks.unbind(-2))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)  # biased towards remembering
        return before + update * (candidate - before)

    def prior(self, deter: Tensor) -> Tensor:
        """Log-probabilities of z given the past alone: (..., D) -> (..., S, C)."""
        logits = self.prior_net(deter)
        return unimix_log_probs(logits.unflatten(-1, (self.cfg.stoch, self.cfg.classes)), self.cfg.unimix)

    def posterior(self, deter: Tensor, embed_in: Tensor) -> Tensor:
        """Log-probabilities of z given the past and the picture.

        ``embed_in`` (..., hidden) is the projected embedding.
        """
        logits = self.post_out(F.silu(self.post_norm(self.post_deter(deter) + embed_in)))
        return unimix_log_probs(logits.unflatten(-1, (self.cfg.stoch, self.cfg.classes)), self.cfg.unimix)

    def sample(self, log_probs: Tensor, noise: Tensor | None) -> Tensor:
        """Flattened one-hot sample (mode without noise), straight-through. (..., S, C) -> (..., S*C)."""
        return one_hot_straight_through(log_probs, noise).flatten(-2)

    def see(self, deter: Tensor, embed_in: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior and prior (..., S, C), and how far was looked (...).

        Where the gate declines to look, the posterior falls back to the prior.
        """
        prior, post = self.prior(deter), self.posterior(deter, embed_in)
        look = self.look(deter, is_first)
        if self.gate is None:
            return post, prior, look
        w = look[..., None, None]
        return torch.log(w * post.exp() + (1 - w) * prior.exp()), prior, look

    def observe_step(
        self, prev: Latent, action: Tensor, embed: Tensor, is_first: Tensor, noise: Tensor | None
    ) -> Latent:
        """One filtering step while acting.

        prev (N, ...), action (N, A), embed (N, E), is_first (N,) -> Latent (N, ...).
        """
        keep = (~is_first).to(prev.deter.dtype).unsqueeze(-1)
        prev = Latent(prev.deter * keep, prev.stoch * keep)
        deter = self.core(prev, self.in_action(action * keep))
        return Latent(deter, self.sample(self.see(deter, self.post_embed(embed), is_first)[0], noise))

    def observe(
        self, start: Latent, actions: Tensor, embeds: Tensor, is_first: Tensor, noise: Tensor
    ) -> tuple[Latent, Tensor, Tensor, Tensor]:
        """Filter sequences. start (B, ...), actions (B, T, A), embeds (B, T, E), is_first (B, T), noise (B, T, S, C).

        Returns latents (B, T, ...), the log-probabilities of posterior and prior, each (B, T, S, C), and how far was
        looked at each frame (B, T).
        """
        keep = (~is_first).to(actions.dtype).unsqueeze(-1)
        # Whatever does not depend on the recurrence is projected for all steps in one product.
        action_in = self.in_action(actions * keep)
        embed_in = self.post_embed(embeds)
        kind = ManyFilters if self.together else Filter
        # Detached: no gradient goes there, and if autograd were told of them here, it would wait, on this stream, for
        # the gate's own loss on another.
        gate = () if self.gate is None else tuple(x.detach() for x in self.gate.tensors())
        deter, stoch, post, prior, look = kind.apply(  # type: ignore[no-untyped-call]
            How(self.fused), start.deter, start.stoch, action_in, embed_in, keep, noise.exp(), is_first,
            self.cfg.unimix, *self._weights(), *gate,
        )  # fmt: skip
        return Latent(deter, stoch), torch.log(post), torch.log(prior), look

    def look(self, deter: Tensor, is_first: Tensor | None = None) -> Tensor:
        """How far to look at the coming frame, deter (..., D) -> (...) in [0, 1].

        ``is_first`` (...): which open an episode, and are always looked at; None: none does, as in a dream.
        """
        if self.gate is None:
            return torch.ones_like(deter[..., 0])
        return self.gate.look(deter, is_first)

    def _weights(self) -> Weights:
        """What filtering and dreaming use, by the names they have there."""
        prior: Any = self.prior_net
        core_rec: Any = self.core_rec
        return Weights(
            self.in_stoch.weight, self.in_norm.weight, self.in_norm.bias,
            self.core_in.weight, core_rec.weight, self.core_norm.weight, self.core_norm.bias,
            prior[0].weight, prior[1].weight, prior[1].bias, prior[3].weight, prior[3].bias,
            self.post_deter.weight, self.post_norm.weight, self.post_norm.bias,
            self.post_out.weight, self.post_out.bias,
        )  # fmt: skip

    @torch.no_grad()
    def imagine(
        self,
        start: Latent,
        policy: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        noise: Tensor,
        policy_noise: Tensor,
    ) -> Dream:
        """Roll ``policy(feat, its noise) -> (executed, sampled)`` through the prior, for H steps; weights cast once.

        start (B, ...), noise (H, B, S, C) of the prior's samples, policy_noise (H, B, A).
        """
        w, kind = self._weights(), arithmetic(start.deter.device)
        stoch_in, core_in, core_rec, prior_in, prior_out, prior_bias = (
            x.to(kind) for x in (w.stoch, w.core_in, w.core_rec, w.prior_in, w.prior_out, w.prior_bias)
        )
        classes, flat = noise.shape[-2:], self.cfg.stoch * self.cfg.classes
        deter = start.deter
        feats, actions, samples = [start.feat.to(kind)], [], []
        # The largest of p exp(Gumbel) is that of log p + Gumbel.
        for race, p in zip(noise.exp().unbind(0), policy_noise.unbind(0), strict=True):
            action, sampled = policy(feats[-1], p)
            x = F.linear(feats[-1][:, -flat:], stoch_in) + self.in_action(action)
            x = F.silu(self.in_norm(x.float())).to(kind)
            gates = self.core_norm((F.linear(x, core_in) + recur(feats[-1][:, :-flat], core_rec)).float())
            deter = self._gated(gates, deter)
            hidden = F.silu(self.prior_net[1](F.linear(deter.to(kind), prior_in).float())).to(kind)
            probs = F.linear(hidden, prior_out, prior_bias).float().view(-1, *classes).softmax(-1)
            chosen = one_hot_of_largest((probs + self.cfg.unimix / (1 - self.cfg.unimix) / classes[-1]) * race)
            feats.append(torch.cat([deter.to(kind), chosen.flatten(-2).to(kind)], -1))
            actions.append(action)
            samples.append(sampled)
        return Dream(torch.stack(feats), torch.stack(actions), torch.stack(samples))

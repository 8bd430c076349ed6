"""Learning Progress Motivation and its relatives (Hou, An, Du: "Beyond Noisy-TVs: Noise-Robust Exploration Via
Learning Progress Monitoring", arXiv 2509.25438).

    eps   = log( |o' - f(o, a)|^2 / dim )              error of the world model now (or in another error space)
    g     ~ E[eps of an earlier model | o, a]          the error predictor
    r     = g(o, a) - eps                              paid for error that has *fallen*

Promise before a TV: noise is as hard now as it was before, so r is zero in expectation. Known weakness: what is
mastered pays zero too, and the signed reward nets to about nothing, so LPM alone may explore less than a random policy.
Both terms are in log units: mixing units, clipping at zero, or dropping the lag each re-opens the trap (see the tests).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity.base import Dims, FitGate, IntrinsicReward, Losses, Transition
from dreamer_lpm.curiosity.error_space import ErrorSpaceName, error_space
from dreamer_lpm.nets import exactly, follow, masked_mean
from dreamer_lpm.types import UserError


class ErrorPredictor(nn.Module):
    """Expected log prediction error of taking ``action`` in a state: Linear-ELU three times, then Linear to a scalar.

    Input is the RSSM's stochastic and recurrent state with the action: feat (..., F), action (..., A) -> (...) in nats.
    """

    def __init__(self, feat_size: int, action_size: int, hidden: int = 256):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(feat_size + action_size, hidden), nn.ELU(),
            nn.Linear(hidden, hidden), nn.ELU(),
            nn.Linear(hidden, hidden), nn.ELU(),
            nn.Linear(hidden, 1),
        )  # fmt: skip

    def forward(self, feat: Tensor, action: Tensor) -> Tensor:
        out: Tensor = exactly(self.net[-1], self.net[:-1](torch.cat([feat, action], -1)))
        return out.squeeze(-1)


class LPM(IntrinsicReward):
    """The paper's bonus: r = g - eps, with g fitted to errors that lie one queue back, and a gate until it is.

    The errors pass through a FIFO queue of ``queue`` transitions. Each update trains g on the oldest entries and puts
    the newest in their place, so g always speaks of a model as old as the queue is long. r = 0 until the queue is full
    and g is fitted.
    """

    needs_target = True
    reads_pictures = False
    feats: Tensor
    actions: Tensor
    errors: Tensor
    weights: Tensor
    pushed: Tensor

    def __init__(self, dims: Dims, hidden: int = 256, queue: int = 16384, space: ErrorSpaceName = "frame"):
        super().__init__()
        self.space = error_space(space)
        self.predictor = ErrorPredictor(dims.feat, dims.action, hidden)
        self.gate = FitGate()
        self.queue = queue
        self.register_buffer("feats", torch.zeros(queue, dims.feat))
        self.register_buffer("actions", torch.zeros(queue, dims.action))
        self.register_buffer("errors", torch.zeros(queue))
        self.register_buffer("weights", torch.zeros(queue, dtype=torch.bool))  # false: empty, or not a transition
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        expected: Tensor = self.predictor(t.feat, t.action)
        return self.gate.opened * (expected - self.space.log_error(t))

    def loss(self, t: Transition) -> Losses:
        count = t.mask.numel()
        if count > self.queue:
            raise UserError(f"--bonus.queue {self.queue} cannot hold the {count} transitions of one batch; raise it.")
        slots = (self.pushed + torch.arange(count, device=t.mask.device)) % self.queue
        # Clones: the slots are overwritten below, while backward still needs what they held.
        feat, action = self.feats[slots].clone(), self.actions[slots].clone()
        error, weight = self.errors[slots].clone(), self.weights[slots].clone()
        loss = masked_mean((self.predictor(feat, action) - error).square(), weight)
        with torch.no_grad():
            self.gate.update(loss, ((self.pushed >= self.queue) & weight.any()).to(loss.dtype))
            self.feats[slots] = t.feat.flatten(0, -2)
            self.actions[slots] = t.action.flatten(0, -2)
            self.errors[slots] = self.space.log_error(t).flatten()
            self.weights[slots] = t.mask.flatten()
            self.pushed += count
        return {"error_predictor": loss}


class LPMGuide(IntrinsicReward):
    """The guide's formula to the letter: r = predicted error - actual error.

    The predictor is fitted to the *current* error. Without lag and gate it measures the predictor's own misfit, not the
    world model's progress. Kept for comparison.
    """

    needs_target = True
    reads_pictures = False

    def __init__(self, dims: Dims, hidden: int = 256, space: ErrorSpaceName = "frame"):
        super().__init__()
        self.space = error_space(space)
        self.predictor = ErrorPredictor(dims.feat, dims.action, hidden)

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        expected: Tensor = self.predictor(t.feat, t.action)
        return expected - self.space.log_error(t)

    def loss(self, t: Transition) -> Losses:
        return {
            "error_predictor": masked_mean(
                (self.predictor(t.feat, t.action) - self.space.log_error(t)).square(), t.mask
            )
        }


class LPMDual(IntrinsicReward):
    """Ours: r = g_before - g_now, two conditional expectations.

    So aleatoric noise cancels exactly and dreams need no distillation. g_now is fitted to current errors; g_before
    follows it slowly. Until g_now is fitted they are one, and r = 0.
    Kin of gamma-Progress (Kim et al., arXiv 2007.07853).
    Known weakness: a difference of two fits also pays for what the *fit* learns, most where errors jump from one action
    to the next, as at a TV's button. ``lpm_paired`` has no fits to compare.
    """

    reads_pictures = False

    def __init__(self, dims: Dims, hidden: int = 256, rate: float = 0.01, space: ErrorSpaceName = "frame"):
        super().__init__()
        self.space = error_space(space)
        self.now = ErrorPredictor(dims.feat, dims.action, hidden)
        self.before = copy.deepcopy(self.now).requires_grad_(False)
        self.gate = FitGate()
        self.rate = rate

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        before: Tensor = self.before(t.feat, t.action)
        now: Tensor = self.now(t.feat, t.action)
        return self.gate.opened * (before - now)

    def loss(self, t: Transition) -> Losses:
        loss = masked_mean((self.now(t.feat, t.action) - self.space.log_error(t)).square(), t.mask)
        with torch.no_grad():
            self.gate.update(loss, t.mask.any().to(loss.dtype))
            rate = torch.where(self.gate.opened > 0, self.rate, 1.0)
            follow(self.before, self.now, rate)
        return {"error_predictor": loss}

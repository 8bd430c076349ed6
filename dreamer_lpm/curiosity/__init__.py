"""The bank of curiosities. A new bonus is one file, and one line in ``REGISTRY``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dreamer_lpm.curiosity.ama import AMA
from dreamer_lpm.curiosity.base import Dims, FitGate, IntrinsicReward, Losses, Transition, log_mse, mse
from dreamer_lpm.curiosity.disagreement import Disagreement
from dreamer_lpm.curiosity.error_space import (
    ErrorSpaceName,
    needs_earlier,
    reads_embeddings,
    reads_error_space,
    reads_pictures,
)
from dreamer_lpm.curiosity.gamma_progress import GammaProgress
from dreamer_lpm.curiosity.icm import ICM
from dreamer_lpm.curiosity.lbs import LBS
from dreamer_lpm.curiosity.lpm import LPM, ErrorPredictor, LPMDual, LPMGuide
from dreamer_lpm.curiosity.lpm_optimistic import LPMOptimistic
from dreamer_lpm.curiosity.lpm_paired import LPMPaired
from dreamer_lpm.curiosity.none import NoBonus
from dreamer_lpm.curiosity.prediction_error import PredictionError
from dreamer_lpm.curiosity.rnd import RND
from dreamer_lpm.curiosity.wrappers import Distilled, Normalized, Sum
from dreamer_lpm.types import UserError


@dataclass(frozen=True)
class CuriosityConfig:
    """Sizes and rates that the bonuses share."""

    hidden: int = 256
    """Width of the error predictor and of the distillation head; members of an ensemble are a quarter as wide."""
    queue: int = 16384
    """Transitions in LPM's FIFO queue of earlier errors."""
    rate: float = 0.01
    """Rate at which the delayed copies of lpm_dual, lpm_optimistic and gamma_progress follow.
    lpm_paired takes a new copy of the world model with the update after 1 / rate of them."""
    error_space: ErrorSpaceName = "frame"
    """Where prediction_error, ama and the lpm kinds but lpm_paired measure the error.
    frame: pixels; random: features of a frozen random network; embedding: the encoder's;
    kl: posterior against prior."""
    members: int = 5
    """Networks in the ensembles of disagreement and lpm_optimistic."""
    optimism: float = 1.0
    """Weight of lpm_optimistic's uncertainty; at 0 it is lpm_dual with an ensemble."""

    @property
    def member_hidden(self) -> int:
        """Width of an ensemble's member."""
        return max(1, self.hidden // 4)


_FADING = 1e-4
MOST_WEIGHT = 1_000_000_000
"""Of a rate or a weight; much more is no number any more once it meets another."""
Builder = Callable[[CuriosityConfig, Dims], IntrinsicReward]

# Bonuses whose scale has no meaning are normalised, those that fade away by a scale that forgets slowly; those in nats
# of log error are paid as they are.
REGISTRY: dict[str, Builder] = {
    "none": lambda cfg, dims: NoBonus(),
    "prediction_error": lambda cfg, dims: Normalized(PredictionError(cfg.error_space)),
    "icm": lambda cfg, dims: Normalized(ICM(dims, cfg.hidden)),
    "rnd": lambda cfg, dims: Normalized(RND(cfg.hidden)),
    "disagreement": lambda cfg, dims: Normalized(Disagreement(dims, cfg.member_hidden, cfg.members), rate=_FADING),
    "ama": lambda cfg, dims: Normalized(AMA(dims, cfg.hidden, cfg.error_space)),
    "lbs": lambda cfg, dims: Normalized(LBS()),
    "gamma_progress": lambda cfg, dims: Normalized(GammaProgress(dims, cfg.hidden, cfg.rate), rate=_FADING),
    "lpm": lambda cfg, dims: LPM(dims, cfg.hidden, cfg.queue, cfg.error_space),
    "lpm_guide": lambda cfg, dims: LPMGuide(dims, cfg.hidden, cfg.error_space),
    "lpm_dual": lambda cfg, dims: LPMDual(dims, cfg.hidden, cfg.rate, cfg.error_space),
    "lpm_paired": lambda cfg, dims: LPMPaired(dims, cfg.hidden),
    "lpm_optimistic": lambda cfg, dims: LPMOptimistic(
        dims, cfg.member_hidden, cfg.rate, cfg.error_space, cfg.members, cfg.optimism
    ),
}


class UnknownCuriosity(UserError):  # noqa: N818  the name says what it is
    """No such name in ``REGISTRY``, or not yet: a bonus of one's own comes with its module."""


def build_curiosity(name: str, cfg: CuriosityConfig, dims: Dims) -> IntrinsicReward:
    """The bonus of that name, ready for dreams, or a weighted sum such as ``lpm_dual+0.5*disagreement``.

    Raises UserError when :func:`parse_curiosity` does, or nothing in it has an error to measure in ``cfg.error_space``.
    """
    weights = parse_curiosity(name, cfg)
    parts = {term: (weight, _ready(term, cfg, dims)) for term, weight in weights.items()}
    bonus = parts[name][1] if name in parts else Sum(parts)
    # No bonus at all is the baseline in every space.
    if cfg.error_space != "frame" and not (reads_error_space(bonus) or isinstance(bonus, NoBonus)):
        raise UserError(f"bonus.error_space {cfg.error_space} means nothing to '{name}'; leave it at frame.")
    return bonus


def _ready(name: str, cfg: CuriosityConfig, dims: Dims) -> IntrinsicReward:
    bonus = REGISTRY[name](cfg, dims)
    return Distilled(bonus, dims, cfg.hidden) if bonus.needs_target else bonus


def terms(text: str) -> list[tuple[str, str | None]]:
    """Each name in ``lpm_dual+0.5*disagreement``, with its weight as it is written there, if it is."""
    parts = (term.rpartition("*") for term in text.split("+"))
    return [(name.strip(), weight.strip() if star else None) for weight, star, name in parts]


def parse_curiosity(text: str, cfg: CuriosityConfig) -> dict[str, float]:
    """Names and weights of ``lpm_dual+0.5*disagreement``.

    Raises UserError when it cannot be read as such, a name is not registered, or ``cfg`` has too few members for it.
    """
    weights: dict[str, float] = {}
    for name, weight in terms(text):
        if name not in REGISTRY:
            raise UnknownCuriosity(
                f"Unknown curiosity '{name}'; choose one of: {', '.join(REGISTRY)}. One of your own is known once its "
                "line is in dreamer_lpm/curiosity/__init__.py, or its module, which puts it into REGISTRY, is imported."
            )
        if name in weights:
            raise UserError(f"Curiosity '{text}' names '{name}' twice; add up its weights.")
        weights[name] = 1.0 if weight is None else _weight(weight, text)
    if "disagreement" in weights and cfg.members < 2:  # one alone has no variance
        raise UserError(f"disagreement needs bonus.members of 2 or more, not {cfg.members}.")
    return weights


def _weight(word: str, text: str) -> float:
    try:
        weight = float(word)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MOST_WEIGHT:
        raise UserError(f"'{word}' is no weight in curiosity '{text}'; write a sum as lpm_dual+0.5*disagreement.")
    return weight


__all__ = [
    "AMA", "ICM", "LBS", "LPM", "MOST_WEIGHT", "REGISTRY", "RND", "CuriosityConfig", "Dims", "Disagreement",
    "Distilled", "ErrorPredictor", "FitGate", "GammaProgress", "IntrinsicReward", "LPMDual", "LPMGuide",
    "LPMOptimistic", "LPMPaired", "Losses", "NoBonus", "Normalized", "PredictionError", "Sum", "Transition",
    "UnknownCuriosity", "build_curiosity", "log_mse", "mse", "needs_earlier", "parse_curiosity", "reads_embeddings",
    "reads_pictures", "terms",
]  # fmt: skip

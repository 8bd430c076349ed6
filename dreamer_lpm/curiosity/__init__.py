"""The bank of curiosities. A new bonus is one file, and one line in ``REGISTRY``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dreamer_lpm.curiosity.base import Dims, FitGate, IntrinsicReward, Losses, Transition, log_mse, mse
from dreamer_lpm.curiosity.lpm import LPM, ErrorPredictor, LPMDual, LPMGuide
from dreamer_lpm.curiosity.none import NoBonus
from dreamer_lpm.curiosity.prediction_error import PredictionError
from dreamer_lpm.curiosity.wrappers import Distilled, Normalized
from dreamer_lpm.types import UserError


@dataclass(frozen=True)
class CuriosityConfig:
    """Sizes and rates that the bonuses share."""

    hidden: int = 256
    """Width of the error predictor and of the distillation head."""
    queue: int = 16384
    """Transitions in LPM's FIFO queue of earlier errors."""
    rate: float = 0.01
    """Rate at which lpm_dual's delayed predictor follows."""


Builder = Callable[[CuriosityConfig, Dims], IntrinsicReward]

REGISTRY: dict[str, Builder] = {
    "none": lambda cfg, dims: NoBonus(),
    "prediction_error": lambda cfg, dims: Normalized(PredictionError()),
    "lpm": lambda cfg, dims: LPM(dims, cfg.hidden, cfg.queue),
    "lpm_guide": lambda cfg, dims: LPMGuide(dims, cfg.hidden),
    "lpm_dual": lambda cfg, dims: LPMDual(dims, cfg.hidden, cfg.rate),
}


def build_curiosity(name: str, cfg: CuriosityConfig, dims: Dims) -> IntrinsicReward:
    """The bonus of that name, ready for dreams. Raises UserError when it is not registered."""
    if name not in REGISTRY:
        raise UserError(f"Unknown curiosity '{name}'; choose one of: {', '.join(REGISTRY)}.")
    bonus = REGISTRY[name](cfg, dims)
    return Distilled(bonus, dims, cfg.hidden) if bonus.needs_target else bonus


__all__ = [
    "LPM", "REGISTRY", "CuriosityConfig", "Dims", "Distilled", "ErrorPredictor", "FitGate", "IntrinsicReward",
    "LPMDual", "LPMGuide", "Losses", "NoBonus", "Normalized", "PredictionError", "Transition", "build_curiosity",
    "log_mse", "mse",
]  # fmt: skip

"""Dreamer-LPM: a world-model agent whose curiosity noise cannot fool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer_lpm.evaluate import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `dreamer_lpm.noisy_tv` and the plots work without loading torch.
    if name == "load":
        from dreamer_lpm.evaluate import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Imports that only some sources of pictures need."""

from __future__ import annotations

import importlib
from typing import Any

from dreamer_lpm.noisy_tv.errors import NoisyTVError


def require(module: str, package: str) -> Any:
    """The module. Raises NoisyTVError naming the ``package`` to install when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NoisyTVError(f"these TV pictures need {package}, which is missing: pip install {package}") from error

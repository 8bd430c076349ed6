"""The one error of this package."""

from __future__ import annotations


class NoisyTVError(ValueError):
    """A mistake of the user, or something missing on this machine. The message names the fix."""

"""Inert data that crosses borders between the packages, and the one shape legend.

Shape legend, used in every docstring and assertion:

====  =====================================================
B     batch: sequences in a replay sample, or dreams
T     time: steps of a sequence
H     horizon: imagined steps
N     environments stepped side by side
A     action size (dimensions of a Box, number of choices)
D     size of the recurrent state ``deter``
S, C  categorical latents of ``stoch``, and classes of each
F     size of a feature: ``deter`` and flattened ``stoch``
E     size of an image embedding
====  =====================================================

Nothing here imports torch at run time, so torch-free packages may use it.
"""

from __future__ import annotations

import errno
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple
from unicodedata import category

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""After these a run is saved before it ends; one that is ignored, as SIGHUP is under nohup, stays ignored."""
MISTAKE = 2
"""Exit status of a user's mistake, which another try cannot mend."""
INSISTS_AFTER = 1.0  # seconds
_PASSING = (  # what a disk, a network folder or a machine without room for another process answers
    errno.EAGAIN, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.ENOSPC, errno.ESTALE, errno.ETIMEDOUT,
)  # fmt: skip


def insists(signum: int, since: float) -> bool:
    """Whether a signal that follows the one noted at ``since`` (``time.monotonic``) asks for the end, saved or not.

    Another Ctrl-C alone does, and not the echo of the first: terminals that close, schedulers and whoever kills a whole
    group send the same stop twice.
    """
    return signum == signal.SIGINT and time.monotonic() - since > INSISTS_AFTER


class UserError(ValueError):
    """A mistake the user can mend. Its message is one sentence that names the fix; the command line prints it alone."""


def printable(text: str) -> str:
    """``text`` for a terminal: what is no letter, sign or white space is spelt, lest a name in a file steers it."""
    return "".join(c if c.isprintable() or c in "\t\n" or category(c) == "Zs" else ascii(c)[1:-1] for c in text)


def is_the_machines(error: BaseException) -> bool:
    """Whether a fault of the machine's is behind the error, and no mistake: another try may not meet it."""
    return any(isinstance(e, OSError) and e.errno in _PASSING for e in (error, error.__cause__))


class NotFinite(UserError):  # noqa: N818  the name says what the number is
    """A NaN or an infinity where learning needs a number. The message names it.

    ``batch``: what the update that met it was learning from, field -> array (B, T, ...); None outside of one.
    """

    def __init__(self, message: str, batch: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__(message)
        self.batch = batch


@dataclass(frozen=True)
class ActionSpec:
    """What the actor must produce: ``size`` numbers in [-1, 1], or a one-hot choice among ``size``."""

    kind: Literal["continuous", "discrete"]
    size: int

    @property
    def is_discrete(self) -> bool:
        return self.kind == "discrete"


class Batch(NamedTuple):
    """Sequences from the replay. ``action[:, t]`` led to ``obs[:, t]``; ``is_first`` marks borders between episodes."""

    obs: Tensor  # (B, T, 64, 64, 3) uint8
    action: Tensor  # (B, T, A) float
    reward: Tensor  # (B, T) float
    is_first: Tensor  # (B, T) bool
    is_terminal: Tensor  # (B, T) bool
    tv_on: Tensor  # (B, T) bool; for metrics alone, no loss may read it
    deter: Tensor  # (B, D) state of the step before the first, as it was when acting
    stoch: Tensor  # (B, S) its latent classes, uint8

"""Building blocks of every network: layers, the symlog two-hot scalar, categorical latents, masked means."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

EPS = 1e-3  # of every norm


def symexp(x: Tensor) -> Tensor:
    """sign(x) (exp(|x|) - 1), elementwise: the inverse of symlog, sign(x) ln(1 + |x|) (DreamerV3, eq. 9)."""
    return torch.sign(x) * torch.expm1(x.abs())


class TwoHot(nn.Module):
    """A scalar as a categorical over ``bins`` exponentially spaced values (DreamerV3, eq. 10).

    The bins are ``symexp(linspace(-limit, limit, bins))``. A target becomes the two-hot weights of its two neighbours
    *in raw units*, so the expectation of the distribution is unbiased: E[target] is what :meth:`mean` learns.
    """

    values: Tensor

    def __init__(self, bins: int = 41, limit: float = 10.0):
        super().__init__()
        half = symexp(torch.linspace(0.0, limit, bins // 2 + 1, dtype=torch.float64))[1:].float()
        # Mirrored by construction: a zero-initialised head then says exactly 0.
        self.register_buffer("values", torch.cat([-half.flip(0), torch.zeros(1), half]), persistent=False)

    @property
    def bins(self) -> int:
        return len(self.values)

    def mean(self, logits: Tensor) -> Tensor:
        """Expectation. logits (..., bins) -> (...)."""
        weighted = torch.softmax(logits, -1) * self.values
        n = self.bins // 2
        # Summed from the outside in by pairs, so that symmetric probabilities cancel without rounding.
        return weighted[..., n] + (weighted[..., :n] + weighted[..., n + 1 :].flip(-1)).sum(-1)

    def encode(self, x: Tensor) -> Tensor:
        """Two-hot weights of ``x``, clipped to the outer bins. x (...) -> (..., bins), each row sums to 1."""
        x = x.clamp(self.values[0], self.values[-1])
        above = torch.searchsorted(self.values, x.contiguous()).clamp(1, self.bins - 1)
        low, high = self.values[above - 1], self.values[above]
        weight = ((x - low) / (high - low)).unsqueeze(-1)
        return one_hot(above - 1, self.bins) * (1 - weight) + one_hot(above, self.bins) * weight

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross entropy to the two-hot target. logits (..., bins), target (...) -> (...), >= 0."""
        assert logits.shape[:-1] == target.shape, (logits.shape, target.shape)
        return -(self.encode(target.detach()) * torch.log_softmax(logits.float(), -1)).sum(-1)


def one_hot(index: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Indices (...) -> (..., classes).

    Unlike torch's it does not check their range, which would make the program wait for a device.
    """
    cold = torch.zeros(*index.shape, classes, dtype=dtype, device=index.device)
    return cold.scatter(-1, index.unsqueeze(-1), 1.0)


def unimix_log_probs(logits: Tensor, unimix: float) -> Tensor:
    """Log-probabilities of softmax(logits) mixed with ``unimix`` of the uniform. (..., S, C) -> (..., S, C)."""
    probs = torch.softmax(logits.float(), -1)
    return torch.log(probs * (1 - unimix) + unimix / logits.shape[-1])


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from numbers in [0, 1), elementwise: argmax(log p + gumbel) is a sample of p."""
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def normal(uniform: Tensor) -> Tensor:
    """Standard normal noise from numbers in [0, 1), elementwise; none is further out than 5.3."""
    return math.sqrt(2) * torch.erfinv(2 * uniform.clamp(1e-7, 1 - 1e-7) - 1)


def one_hot_of_largest(x: Tensor) -> Tensor:
    """1 where a row is largest, 0 elsewhere. (..., C) -> (..., C)."""
    # max finds the place three times as fast as argmax on a CPU.
    return torch.zeros_like(x).scatter(-1, x.max(-1, keepdim=True).indices, 1.0)


def arithmetic(device: torch.device) -> torch.dtype:
    """The type in which products are taken: autocast's where that is on, else float32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def exactly(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer(x)`` in float32, under autocast too.

    For answers that are subtracted from each other: of log errors near -8 bfloat16 knows only every 1/32 nat, which is
    as much as progress comes to.
    """
    if x.dtype == torch.float32:  # autocast is off
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def one_hot_straight_through(log_probs: Tensor, noise: Tensor | None) -> Tensor:
    """One-hot sample (or mode, when ``noise`` is None) whose gradient is that of the probabilities.

    (..., C) -> (..., C).
    """
    hard = one_hot_of_largest((log_probs if noise is None else log_probs + noise).detach())
    if not torch.is_grad_enabled():  # not log_probs.requires_grad, which is false of a tensor in a batch of agents
        return hard
    probs = log_probs.exp()
    return hard + (probs - probs.detach())  # in this order the value is exactly one-hot


def categorical_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats, summed over the S independent categoricals. (..., S, C) -> (...)."""
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


@torch.no_grad()
def approach(mean: Tensor, x: Tensor, rate: Tensor | float) -> None:
    """mean += rate (x - mean), in place, all of one shape (rate may be ()): a step of a moving average.

    Not ``lerp_``, for which torch has no batching rule (flock.py).
    """
    mean.add_((x - mean) * rate)


def follow(behind: nn.Module, network: nn.Module, rate: Tensor | float) -> None:
    """A step of a moving average of a network's weights: ``behind`` is a copy of it. Buffers stay."""
    for old, new in zip(behind.parameters(), network.parameters(), strict=True):
        approach(old, new, rate)


class Kept(nn.Module):
    """A copy of a network that is taken anew every 1 / ``rate`` + 1 updates, and in between stays as it was.

    A moving average would be smoother, and is of no use to whoever measures progress against it: an average of networks
    is a *better* one than the newest.
    """

    age: Tensor

    def __init__(self, network: nn.Module, rate: float):
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.rate = rate
        self.register_buffer("age", torch.tensor(-1.0))  # updates since it was taken; ``follow`` comes first

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Become a copy of ``network`` if it is time to, else an update older. Decides without a look at any value."""
        older = self.age + 1
        due = older * self.rate > 1
        mine, its = (chain(x.parameters(), x.buffers()) for x in (self.network, network))
        for old, new in zip(mine, its, strict=True):
            old.copy_(torch.where(due, new, old))
        self.age.copy_(torch.where(due, 0.0, older))

    @property
    def lag(self) -> Tensor:
        """How far it lies back, () in [0, 1], as a share of the longest that it ever does."""
        return self.age * self.rate


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; 0 where it nowhere is. x, mask (same shape) -> ()."""
    assert x.shape == mask.shape, (x.shape, mask.shape)
    weight = mask.to(x.dtype)
    return (x * weight).sum() / weight.sum().clamp(min=1.0)


def mlp(inputs: int, hidden: int, layers: int, outputs: int, *, zero: bool = False) -> nn.Sequential:
    """``layers`` x (Linear, LayerNorm, SiLU), then Linear.

    ``zero`` starts the output at 0, as DreamerV3 does for reward and value.
    """
    blocks: list[nn.Module] = []
    for i in range(layers):
        blocks += [
            nn.Linear(inputs if i == 0 else hidden, hidden, bias=False),
            nn.LayerNorm(hidden, eps=EPS),
            nn.SiLU(),
        ]
    last = nn.Linear(hidden, outputs)
    if zero:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*blocks, last)


class BlockLinear(nn.Module):
    """Linear layer that is block-diagonal over ``blocks`` groups (DreamerV3's recurrent core). (..., I) -> (..., O).

    Raises ValueError when the sizes do not divide by ``blocks``.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"BlockLinear: {inputs} -> {outputs} do not divide into {blocks} blocks")
        self.blocks = blocks
        bound = (inputs // blocks) ** -0.5
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return by_block(x, self.weight)


def by_block(x: Tensor, weight: Tensor) -> Tensor:
    """A product block by block: x (..., I), weight (blocks, I / blocks, O / blocks) -> (..., O)."""
    grouped = x.reshape(-1, len(weight), weight.shape[1]).transpose(0, 1)
    return torch.bmm(grouped, weight).transpose(0, 1).reshape(*x.shape[:-1], -1)

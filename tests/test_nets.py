"""The mathematics of the building blocks, against closed forms and independent implementations in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, OneHotCategorical, kl_divergence

from dreamer_lpm.nets import (
    BlockLinear,
    Kept,
    TwoHot,
    categorical_kl,
    gumbel,
    masked_mean,
    mlp,
    one_hot_straight_through,
    symexp,
    unimix_log_probs,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- symexp -----------------------------------------------------------------------------------------------------------


def test_symexp_undoes_the_signed_logarithm() -> None:
    x = [-1e6, -math.e + 1, -1.0, -1e-6, 0.0, 1e-6, 1.0, math.e - 1, 1e6]
    symlog = torch.tensor([math.copysign(math.log(1 + abs(v)), v) for v in x], dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog), torch.tensor(x, dtype=torch.float64), rtol=1e-9, atol=0)


# --- two-hot ----------------------------------------------------------------------------------------------------------


def test_two_hot_bins_are_symexp_spaced_and_mirrored() -> None:
    dist = TwoHot(bins=41, limit=10.0)
    torch.testing.assert_close(dist.values.double(), symexp(torch.linspace(-10, 10, 41, dtype=torch.float64)))
    assert torch.equal(dist.values, -dist.values.flip(0))
    assert (dist.values.diff() > 0).all()


X = [-3e4, -22025.0, -100.0, -0.3, 0.0, 1e-3, 0.5, 7.0, 1234.5, 22025.0, 3e4]


def test_two_hot_encodes_the_two_neighbours_so_that_the_mean_is_the_target() -> None:
    dist = TwoHot()
    x = torch.tensor(X)
    code = dist.encode(x)
    torch.testing.assert_close(code.sum(-1), torch.ones(len(X)))
    assert (code >= 0).all()
    assert ((code > 0).sum(-1) <= 2).all()
    places = [row.nonzero().squeeze(-1).tolist() for row in code]
    assert all(p[-1] - p[0] <= 1 for p in places), places
    limit = float(dist.values[-1])
    torch.testing.assert_close((code * dist.values).sum(-1), x.clamp(-limit, limit), rtol=1e-5, atol=1e-5)


def test_two_hot_of_a_bin_is_that_bin_alone() -> None:
    dist = TwoHot(bins=11, limit=3.0)
    torch.testing.assert_close(dist.encode(dist.values), torch.eye(11))


def encode_in_symlog_units(dist: TwoHot, x: Tensor) -> Tensor:
    """The mutant: weights by distance in symlog units. Its mean is no longer the target."""
    spaced, y = (torch.sign(v) * torch.log1p(v.abs()) for v in (dist.values, x))
    y = y.clamp(spaced[0], spaced[-1])
    above = torch.searchsorted(spaced, y).clamp(1, dist.bins - 1)
    weight = ((y - spaced[above - 1]) / (spaced[above] - spaced[above - 1])).unsqueeze(-1)
    eye = torch.eye(dist.bins)
    return eye[above - 1] * (1 - weight) + eye[above] * weight


@pytest.mark.parametrize(
    ("encode", "unbiased"), [(TwoHot.encode, True), (encode_in_symlog_units, False)], ids=["ours", "mutant"]
)
def test_two_hot_learns_the_expectation_of_a_random_target(
    encode: Callable[[TwoHot, Tensor], Tensor], unbiased: bool
) -> None:
    """The minimiser of the cross entropy is the mean code; what it says must be E[target], also between bins."""
    dist = TwoHot()
    target = torch.tensor([0.0, 300.0, 1000.0, -20.0])
    probs = encode(dist, target).mean(0)
    said = dist.mean(torch.log(probs + 1e-30))
    assert math.isclose(float(said), float(target.mean()), rel_tol=1e-4) == unbiased


def test_two_hot_mean_is_the_expectation() -> None:
    dist = TwoHot()
    logits = torch.randn(7, 3, dist.bins, generator=generator())
    want = (Categorical(logits=logits.double()).probs * dist.values.double()).sum(-1)
    torch.testing.assert_close(dist.mean(logits).double(), want, rtol=1e-4, atol=1e-2)


def test_two_hot_with_symmetric_probabilities_says_exactly_zero() -> None:
    dist = TwoHot()
    half = torch.randn(5, 20, generator=generator())
    logits = torch.cat([half, torch.zeros(5, 1), half.flip(-1)], -1)
    assert torch.equal(dist.mean(logits), torch.zeros(5))
    assert torch.equal(mlp(8, 8, 1, dist.bins, zero=True)(half[:4, :8]), torch.zeros(4, dist.bins))


def test_two_hot_loss_is_the_cross_entropy_and_is_smallest_at_the_target() -> None:
    dist = TwoHot()
    logits = torch.randn(4, dist.bins, generator=generator(), requires_grad=True)
    target = torch.tensor([-5.0, 0.2, 3.0, 900.0], requires_grad=True)
    loss = dist.loss(logits, target)
    want = -(dist.encode(target) * torch.log_softmax(logits, -1)).sum(-1)
    torch.testing.assert_close(loss, want)
    code = dist.encode(target.detach())
    at_target = dist.loss(torch.log(code + 1e-30), target)
    torch.testing.assert_close(at_target, Categorical(probs=code).entropy(), rtol=1e-4, atol=1e-5)
    loss.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.softmax(logits, -1).detach() - code, rtol=1e-4, atol=1e-6)
    assert target.grad is None, "a target must not be trained towards the prediction"


def test_two_hot_loss_rejects_shapes_that_would_broadcast() -> None:
    dist = TwoHot()
    with pytest.raises(AssertionError):
        dist.loss(torch.zeros(4, 1, dist.bins), torch.zeros(4))


# --- categorical latents ----------------------------------------------------------------------------------------------


def test_kl_is_that_of_torch_distributions() -> None:
    p, q = torch.randn(2, 3, 5, 4, 6, generator=generator(), dtype=torch.float64)
    log_p, log_q = torch.log_softmax(p, -1), torch.log_softmax(q, -1)
    want = kl_divergence(
        Independent(OneHotCategorical(logits=log_p), 1), Independent(OneHotCategorical(logits=log_q), 1)
    )
    torch.testing.assert_close(categorical_kl(log_p, log_q), want)
    # Its arguments are not exchangeable, so a swap would be seen.
    assert (categorical_kl(log_p, log_q) - categorical_kl(log_q, log_p)).abs().min() > 1e-3
    torch.testing.assert_close(categorical_kl(log_p, log_p), torch.zeros(3, 5, dtype=torch.float64))


def test_unimix_mixes_in_the_uniform() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    want = 0.9 * torch.softmax(logits, -1) + 0.1 / 4
    got = unimix_log_probs(logits, 0.1).exp()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got.sum(-1), torch.ones(2))
    # No probability falls below the floor, so the KL and its gradient stay finite however sure the network is.
    assert got.min() >= 0.1 / 4 * 0.999


def test_gumbel_argmax_samples_the_distribution() -> None:
    probs = torch.tensor([0.05, 0.15, 0.3, 0.5])
    n = 20_000
    sample = one_hot_straight_through(probs.log().expand(n, 4), gumbel(torch.rand(n, 4, generator=generator())))
    error = (sample.mean(0) - probs) / (probs * (1 - probs) / n).sqrt()
    assert error.abs().max() < 4, error


def test_gumbel_is_finite_and_comes_from_its_generator_alone() -> None:
    before = torch.get_rng_state()
    a, b = gumbel(torch.rand(1000, 100, generator=generator(3))), gumbel(torch.rand(1000, 100, generator=generator(3)))
    assert torch.isfinite(a).all()
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)
    assert abs(float(a.mean()) - 0.5772) < 0.01  # Euler's constant
    assert abs(float(a.std()) - math.pi / 6**0.5) < 0.01


def test_straight_through_is_one_hot_forwards_and_the_probabilities_backwards() -> None:
    logits = torch.randn(6, 5, generator=generator(), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, generator=generator(1), dtype=torch.float64)
    log_probs = torch.log_softmax(logits, -1)
    sample = one_hot_straight_through(log_probs, gumbel(torch.rand(6, 5, generator=generator(2))).double())
    (got,) = torch.autograd.grad((sample * weight).sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad((torch.softmax(logits, -1) * weight).sum(), logits)
    torch.testing.assert_close(got, want)
    assert got.abs().sum() > 0


def test_straight_through_sample_is_exactly_one_hot() -> None:
    """Exactly: the replay stores only the class, so a rounding error here would make two different states of one."""
    log_probs = torch.log_softmax(torch.randn(1000, 5, generator=generator()), -1).requires_grad_()
    sample = one_hot_straight_through(log_probs, gumbel(torch.rand(1000, 5, generator=generator(2)))).detach()
    assert torch.equal(sample.sort(-1).values, torch.eye(5)[-1].expand(1000, 5))


def test_without_noise_the_sample_is_the_mode() -> None:
    log_probs = torch.log_softmax(torch.randn(50, 7, generator=generator()), -1)
    assert torch.equal(one_hot_straight_through(log_probs, None).argmax(-1), log_probs.argmax(-1))


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_masked_mean_counts_only_what_the_mask_lets_through() -> None:
    x = torch.tensor([[1.0, 1e9], [3.0, -1e9]])
    mask = torch.tensor([[True, False], [True, False]])
    assert float(masked_mean(x, mask)) == 2.0
    assert float(masked_mean(x, torch.zeros_like(mask))) == 0.0
    with pytest.raises(AssertionError):
        masked_mean(x, mask[0])


def dense(layer: BlockLinear) -> Tensor:
    """(I, O) matrix of the layer."""
    return torch.block_diag(*layer.weight.detach())


def test_block_linear_is_a_block_diagonal_matrix() -> None:
    torch.manual_seed(0)
    layer = BlockLinear(12, 18, 3)
    assert sum(p.numel() for p in layer.parameters()) == 12 * 18 // 3
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(layer(x), x @ dense(layer))
    one = BlockLinear(4, 6, 1)
    torch.testing.assert_close(one(x[..., :4]), x[..., :4] @ one.weight[0])


def test_block_linear_starts_at_the_scale_of_its_blocks() -> None:
    """Its outputs begin as large as a dense layer's of the same fan-in, not smaller because the blocks are narrow."""
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    assert abs(float(BlockLinear(64, 192, 8)(x).detach().std()) - 3**-0.5) < 0.05


@pytest.mark.parametrize(("inputs", "outputs"), [(10, 9), (9, 10)])
def test_block_linear_refuses_sizes_that_do_not_divide(inputs: int, outputs: int) -> None:
    with pytest.raises(ValueError, match="do not divide into 3 blocks"):
        BlockLinear(inputs, outputs, 3)


@pytest.mark.parametrize(
    ("rate", "ages"), [(1.0, (0, 1, 0, 1)), (0.5, (0, 1, 2, 0, 1, 2)), (0.3, (0, 1, 2, 3, 0)), (0.0, (0, 1, 2))]
)
def test_what_is_kept_is_the_network_of_age_updates_ago(rate: float, ages: tuple[int, ...]) -> None:
    """Parameters and buffers; never older than 1 / rate, and out of reach of gradients."""
    network = nn.BatchNorm1d(2)
    network.weight.data.fill_(0)
    kept = Kept(network, rate)
    for update, age in enumerate(ages):
        network.weight.data.fill_(update)
        assert network.running_mean is not None
        network.running_mean.fill_(-update)
        kept.follow(network)
        state = kept.network.state_dict()
        assert state["weight"].tolist() == [update - age] * 2
        assert state["running_mean"].tolist() == [age - update] * 2
        assert float(kept.lag) == pytest.approx(age * rate)
    assert not any(p.requires_grad for p in kept.parameters())

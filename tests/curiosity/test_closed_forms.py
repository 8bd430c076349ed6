"""Gate, queue, errors and scale against values known beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dreamer_lpm.curiosity import (
    LPM,
    Dims,
    ErrorPredictor,
    FitGate,
    IntrinsicReward,
    Losses,
    LPMDual,
    LPMGuide,
    LPMPaired,
    Normalized,
    Transition,
    log_mse,
    mse,
)
from dreamer_lpm.types import UserError
from tests.curiosity.checks import learn

DIMS = Dims(feat=1, action=1)


def serial(first: int, shape: tuple[int, int], valid: bool = True) -> Transition:
    """Steps numbered on from ``first``: number n has feature n, action -n and root mean squared error 2^-(n mod 7)."""
    n = torch.arange(first, first + shape[0] * shape[1], dtype=torch.float32).reshape(shape)
    target = torch.full((*shape, 4, 4, 3), 0.5)
    return Transition(
        feat=n[..., None], action=-n[..., None], next_feat=n[..., None] + 1, mask=torch.full(shape, valid),
        target=target, predicted=target + rmse(n)[..., None, None, None],
    )  # fmt: skip


def rmse(n: Tensor) -> Tensor:
    return 0.5 ** (n % 7)


def log_error(n: Tensor) -> Tensor:
    """The closed form of the log error of step number n."""
    return torch.log(rmse(n) ** 2 + 1e-8)


class Says(nn.Module):
    """An error predictor that always expects ``value``, and remembers what it was asked."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def forward(self, feat: Tensor, action: Tensor) -> Tensor:
        self.asked.append((feat.squeeze(-1), action.squeeze(-1)))
        return self.value.expand(feat.shape[:-1])


# Errors


def test_errors_are_means_over_pixels_and_channels_in_nats() -> None:
    t = serial(0, (2, 7))
    n = t.feat.squeeze(-1)
    torch.testing.assert_close(mse(t), rmse(n) ** 2)
    torch.testing.assert_close(log_mse(t), log_error(n))


def test_a_perfect_prediction_has_a_finite_log_error() -> None:
    t = serial(0, (1, 1))
    perfect = Transition(t.feat, t.action, t.next_feat, t.mask, t.target, t.target)
    assert float(log_mse(perfect)) == pytest.approx(math.log(1e-8))
    assert float(log_mse(perfect)) < math.log(1 / 255**2)  # below one grey level


def test_error_predictor_is_the_guides() -> None:
    """Linear, ELU, three times, and Linear to a scalar; state beside action goes in."""
    layers = [type(m).__name__ for m in ErrorPredictor(5, 2, 8).net]
    assert layers == ["Linear", "ELU"] * 3 + ["Linear"]
    predictor = ErrorPredictor(5, 2, 8)
    assert [m.weight.shape for m in predictor.net if isinstance(m, nn.Linear)] == [(8, 7), (8, 8), (8, 8), (1, 8)]
    feat, action = torch.randn(3, 4, 5), torch.randn(3, 4, 2)
    assert predictor(feat, action).shape == (3, 4)
    torch.testing.assert_close(predictor(feat, action), predictor.net(torch.cat([feat, action], -1))[..., 0])


# The gate


def feed(gate: FitGate, losses: Iterable[float], ready: bool = True) -> list[bool]:
    """Open or not, after each of the losses."""
    out = []
    for loss in losses:
        gate.update(torch.tensor(loss), torch.tensor(float(ready)))
        out.append(bool(gate.opened))
    return out


@pytest.mark.parametrize("factor", [0.9, 0.98, 0.99])
def test_gate_stays_shut_while_the_loss_falls_and_opens_on_the_plateau(factor: float) -> None:
    gate = FitGate(patience=50)
    falling = [5 * factor**i for i in range(round(math.log(0.02, factor)))]  # from 5 to 0.1
    assert not any(feed(gate, falling))
    assert feed(gate, [0.1] * 400)[-1]


def test_gate_opens_where_the_loss_no_longer_falls_fast_enough() -> None:
    """The moving averages of a loss a^n settle to the ratio 5 (a - 0.98) / (a - 0.9), 0.9 at a = 4.09 / 4.1."""
    a = 4.09 / 4.1
    for factor, opens in ((a - 2e-3, False), (a + 2e-3, True)):
        gate = FitGate(patience=50, ratio=0.9)
        gate.count.fill_(1000)  # settled, for both averages have their limits:
        gate.fast.fill_(0.1 * factor / (factor - 0.9))
        gate.slow.fill_(0.02 * factor / (factor - 0.98))
        assert any(feed(gate, [factor**i for i in range(1, 200)])) == opens


def test_gate_takes_its_time_even_for_a_flat_loss() -> None:
    gate = FitGate(patience=50)
    assert feed(gate, [1.0] * 100) == [False] * 99 + [True]


def test_gate_hears_nothing_before_it_is_ready() -> None:
    gate = FitGate(patience=50)
    assert not any(feed(gate, [1e6, 0.0, 1.0] * 200, ready=False))
    assert feed(gate, [1.0] * 100) == [False] * 99 + [True]


def test_gate_stays_open() -> None:
    gate = FitGate(patience=50)
    feed(gate, [1.0] * 100)
    assert all(feed(gate, [0.5**i for i in range(100)]))
    assert all(feed(gate, [1e3] * 100))
    assert all(feed(gate, [0.0] * 10, ready=False))


# The queue


def check_lag_is_one_queue(bonus: IntrinsicReward, predictor: Says, queue: int) -> None:
    """What it learns from at any time are the errors of exactly ``queue`` transitions ago, each with its own input."""
    shape = (2, 3)  # 6 a time: no divisor of the queue
    for k in range(40):
        loss = learn(bonus, serial(6 * k, shape), rate=0.0)["error_predictor"]
        n = torch.arange(6 * k - queue, 6 * k - queue + 6)
        n = n[n >= 0].float()
        feat, action = predictor.asked[-1]
        if len(n) == 6:
            assert torch.equal(feat.flatten(), n), (feat, n)
            assert torch.equal(action.flatten(), -n)
        expected = log_error(n).square().mean() if len(n) else torch.zeros(())
        torch.testing.assert_close(loss.detach(), expected)


def lpm(queue: int, says: float = 0.0) -> tuple[LPM, Says]:
    """An LPM whose error predictor always expects ``says``."""
    bonus, predictor = LPM(DIMS, 4, queue), Says(says)
    bonus.predictor = predictor  # type: ignore[assignment]
    return bonus, predictor


def test_lpm_learns_from_errors_one_queue_old() -> None:
    check_lag_is_one_queue(*lpm(queue=32), queue=32)


def test_no_lag_is_caught() -> None:
    """The error model fitted to the current error on the same batch is the guide's mistake, and its checks find it."""
    guide, predictor = LPMGuide(DIMS, 4), Says()
    guide.predictor = predictor  # type: ignore[assignment]
    with pytest.raises(AssertionError):
        check_lag_is_one_queue(guide, predictor, queue=32)


def test_lpm_pays_expected_minus_actual_log_error_once_open() -> None:
    bonus, _ = lpm(queue=32, says=-1.5)
    t = serial(0, (2, 3))
    assert torch.equal(bonus.reward(t), torch.zeros(2, 3))
    bonus.gate.opened.fill_(1)
    torch.testing.assert_close(bonus.reward(t), -1.5 - log_error(t.feat.squeeze(-1)))


def test_lpm_pays_nothing_until_full_and_fitted() -> None:
    """The queue of 32 holds six a time: full after 6 updates; then the gate wants 100 flat losses."""
    bonus, _ = lpm(queue=32, says=-1.5)
    flat = serial(0, (2, 3))
    paid = []
    for _ in range(120):
        learn(bonus, flat, rate=0.0)
        paid.append(bool(bonus.reward(flat).any()))
    assert paid == [False] * 105 + [True] * 15


def test_borders_wait_in_the_queue_but_are_not_learned() -> None:
    bonus, _ = lpm(queue=12)
    for k, valid in enumerate((True, False, True, True)):
        loss = learn(bonus, serial(6 * k, (2, 3), valid), rate=0.0)["error_predictor"]
        if k == 2:
            torch.testing.assert_close(loss.detach(), log_error(torch.arange(6.0)).square().mean())
        if k == 3:
            assert float(loss.detach()) == 0.0


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"queue 5 .* 6 transitions of one batch; raise it"):
        LPM(DIMS, 4, queue=5).loss(serial(0, (2, 3)))
    LPM(DIMS, 4, queue=6).loss(serial(0, (2, 3)))


# The delayed copy


def test_lpm_dual_pays_what_its_earlier_self_expected_beyond_the_present() -> None:
    """r = before - now; shut, the two are one; open, before covers ``rate`` of the way at each update."""
    dual = LPMDual(DIMS, 4, rate=0.25)
    dual.now, dual.before = Says(-1.0), Says(0.0).requires_grad_(False)  # type: ignore[assignment]
    t = serial(0, (2, 3))
    learn(dual, t, rate=0.0)
    assert torch.equal(dual.reward(t), torch.zeros(2, 3))
    dual.now.value.data.fill_(-3.0)  # type: ignore[union-attr, operator]
    dual.gate.opened.fill_(1)
    for k in range(4):
        torch.testing.assert_close(dual.reward(t), torch.full((2, 3), 2 * 0.75**k))
        learn(dual, t, rate=0.0)


# The kept model


def test_lpm_paired_pays_what_the_newest_model_does_better_in_the_time_between_two_copies() -> None:
    """r = (log e_before - log e) / lag, from whatever lag; the newer the copy, the less it counts."""
    bonus = LPMPaired(DIMS, 8)
    rng = torch.Generator().manual_seed(0)
    t = serial(0, (64, 3))
    t = replace(t, feat=torch.zeros_like(t.feat), action=torch.zeros_like(t.action))
    for _ in range(400):
        lag = torch.rand(64, 3, generator=rng)
        now = 0.1 + torch.rand(64, 3, generator=rng)  # whatever the error is, as long as it fell
        t = replace(t, target=now.sqrt()[..., None, None, None].expand(64, 3, 2, 2, 3),
                    predicted=torch.zeros(64, 3, 2, 2, 3), error_before=now * (0.7 * lag).exp(), lag=lag)  # fmt: skip
        learn(bonus, t, rate=0.05)
    torch.testing.assert_close(bonus.reward(t), torch.full((64, 3), 0.7), atol=0.05, rtol=0)
    fresh = replace(t, error_before=100 * mse(t), lag=torch.zeros(64, 3))  # no time has passed: it is no progress
    before = [p.clone() for p in bonus.parameters()]
    learn(bonus, fresh)
    assert all(torch.equal(p, q) for p, q in zip(before, bonus.parameters(), strict=True))


# The scale


class PaysFeature(IntrinsicReward):
    """r = first feature."""

    def reward(self, t: Transition) -> Tensor:
        return t.feat[..., 0]

    def loss(self, t: Transition) -> Losses:
        return {}


class ScaledOverSequences(Normalized):
    """The planted mistake: one scale for each time step, taken over the sequences."""

    def loss(self, t: Transition) -> Losses:
        bonus = self.inner.reward(t)
        self.mean, self.moment = bonus.mean(0), bonus.square().mean(0)
        return {}


def check_one_scale(bonus: IntrinsicReward) -> None:
    """Every step is divided by one standard deviation, that of all replayed steps; borders aside."""
    rng = torch.Generator().manual_seed(0)
    across_batch = torch.tensor([[0.0], [10.0], [30.0]])
    across_time = torch.tensor([[0.0, 1.0, 3.0, 7.0, 50.0]])
    value = across_batch + across_time + torch.rand(3, 5, generator=rng)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3] = mask[2, 0] = False
    value[1, 3] = 1e4
    t = Transition(value[..., None], torch.zeros(3, 5, 1), value[..., None], mask)
    for _ in range(3):
        bonus.loss(t)
    std = value[mask].std(correction=0)
    torch.testing.assert_close(bonus.reward(t)[mask], value[mask] / std, rtol=1e-3, atol=0)
    other = Transition(torch.full((4, 7, 1), 5.0), torch.zeros(4, 7, 1), torch.zeros(4, 7, 1), torch.ones(4, 7).bool())
    torch.testing.assert_close(bonus.reward(other), torch.full((4, 7), 5.0) / std, rtol=1e-3, atol=0)


def test_normalized_divides_by_one_scale() -> None:
    check_one_scale(Normalized(PaysFeature()))


def test_a_scale_over_the_wrong_axis_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_one_scale(ScaledOverSequences(PaysFeature()))


def test_normalized_keeps_the_mean() -> None:
    """Divided, not centred: what pays nothing goes on paying nothing."""
    bonus = Normalized(PaysFeature())
    feat = torch.tensor([[[0.0], [3.0]]])
    t = Transition(feat, feat, feat, torch.ones(1, 2, dtype=torch.bool))
    bonus.loss(t)
    torch.testing.assert_close(bonus.reward(t), torch.tensor([[0.0, 2.0]]))


def test_what_hardly_differs_is_not_blown_up() -> None:
    """The scale is at least 1e-4."""
    bonus = Normalized(PaysFeature())
    feat = torch.tensor([[[0.0], [2e-5]]])
    t = Transition(feat, feat, feat, torch.ones(1, 2, dtype=torch.bool))
    bonus.loss(t)
    torch.testing.assert_close(bonus.reward(t), torch.tensor([[0.0, 0.2]]))


class PaysAfterItsStart(PaysFeature):
    """r = 1000 times the feature before its first loss, which says what it is to be measured by; then the feature."""

    started = False

    def reward(self, t: Transition) -> Tensor:
        return super().reward(t) * (1 if self.started else 1000)

    def loss(self, t: Transition) -> Losses:
        self.started = True
        return {}


def test_what_is_paid_before_the_first_loss_is_no_part_of_the_scale() -> None:
    check_one_scale(Normalized(PaysAfterItsStart()))


def test_a_batch_without_a_transition_moves_no_scale() -> None:
    bonus = Normalized(PaysFeature())
    feat = torch.tensor([[[0.0], [3.0]]])
    some = Transition(feat, feat, feat, torch.ones(1, 2, dtype=torch.bool))
    none = replace(some, mask=torch.zeros(1, 2, dtype=torch.bool))
    for t in (none, some, none, none):
        bonus.loss(t)
    torch.testing.assert_close(bonus.reward(some), torch.tensor([[0.0, 2.0]]))

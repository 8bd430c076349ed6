"""What each bonus promises before a TV, and which known mistakes break it: judged on a stream with known answers.

Every verdict is on what dreams are paid, after learning at the agent's own rate. Mistakes are planted as bonuses of
their own, and must fail the same verdicts that the real one passes. Bonuses that measure the world model's error are
shown the scripted stream; those with models of their own a place that is discovered.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.curiosity import (
    LPM,
    Disagreement,
    Distilled,
    ErrorPredictor,
    GammaProgress,
    IntrinsicReward,
    Losses,
    LPMOptimistic,
    Normalized,
    Transition,
    build_curiosity,
    log_mse,
    mse,
)
from tests.curiosity.stream import (
    CONFIG,
    CONVERGED,
    DIMS,
    END,
    LEARNABLE,
    MASTERED,
    NOISE,
    START,
    history,
    interval,
)

LATE = slice(800, CONVERGED)
"""Where a discovery lies behind."""
PLACES = {"noise": NOISE, "mastered": MASTERED, "learned": LEARNABLE}


class _Formula(LPM):
    """LPM with another last line."""

    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        """g: expected log error, eps: log error, raw: mean squared error."""
        raise NotImplementedError

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return self.gate.opened * self.formula(self.predictor(t.feat, t.action), log_mse(t), mse(t))


class _LogMinusRaw(_Formula):
    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        return g - raw


class _ExpMinusRaw(_Formula):
    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        return g.exp() - raw


class _EtaOnExpectedOnly(_Formula):
    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        return 0.4 * g - eps


class _Flipped(_Formula):
    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        return eps - g


class _ClippedAtZero(_Formula):
    def formula(self, g: Tensor, eps: Tensor, raw: Tensor) -> Tensor:
        return (g - eps).clamp(min=0)


class _OpensWhenFull(LPM):
    """The paper's gate alone: pays as soon as the queue is full, fitted or not."""

    def loss(self, t: Transition) -> Losses:
        losses = super().loss(t)
        self.gate.opened.copy_(self.pushed >= self.queue)
        return losses


MISTAKES: dict[str, type[LPM]] = {
    "log_minus_raw": _LogMinusRaw,
    "exp_minus_raw": _ExpMinusRaw,
    "eta_on_expected_only": _EtaOnExpectedOnly,
    "flipped": _Flipped,
    "clipped_at_zero": _ClippedAtZero,
    "opens_when_full": _OpensWhenFull,
}


class _HardnessForDoubt(LPMOptimistic):
    """Optimistic about how hard a place is, instead of about what is not yet known of it."""

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        x = torch.cat([t.feat, t.action], -1)
        before, now = self.before(x).squeeze(-1), self.now(x).squeeze(-1)
        return self.gate.opened * ((before - now).mean(0) + now.mean(0).exp().sqrt())


class _BackToBack(GammaProgress):
    """Old and new the wrong way round."""

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return -super().reward(t)


class _Surprise(Disagreement):
    """Takes the members' distance from what came for their distance from each other."""

    needs_target = True

    @torch.no_grad()
    def reward(self, t: Transition) -> Tensor:
        return (self._expected(t) - t.next_feat @ self.project).square().mean((0, -1))


def build(name: str) -> IntrinsicReward:
    """A registered bonus, or one with that mistake."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "hardness_for_doubt":
            return _HardnessForDoubt(DIMS, CONFIG.member_hidden, CONFIG.rate)
        if name == "back_to_back":
            inner = _BackToBack(DIMS, CONFIG.hidden, CONFIG.rate)
            return Distilled(Normalized(inner, rate=1e-4), DIMS, CONFIG.hidden)
        if name == "surprise_for_disagreement":
            surprise = Normalized(_Surprise(DIMS, CONFIG.member_hidden), rate=1e-4)
            return Distilled(surprise, DIMS, CONFIG.hidden)
        if name in MISTAKES:
            return Distilled(MISTAKES[name](DIMS, CONFIG.hidden, CONFIG.queue), DIMS, CONFIG.hidden)
        return build_curiosity(name, CONFIG, DIMS)


@cache
def paid(name: str, *, discovered: bool = False) -> Tensor:
    """Its payments over the stream, (steps, 3)."""
    return history(build(name), discovered=discovered)


def begins_silent(r: Tensor) -> bool:
    """Exactly nothing while no error predictor can be fitted yet, and little before anything was there to learn."""
    return not r[:100].any() and float(r[:START].abs().max()) < 0.25


def pays_for_progress(r: Tensor) -> bool:
    """While errors fall, far more than before, than after, and than the noise beside."""
    falling = slice(START + 50, END)
    elsewhere = (r[START - 100 : START, LEARNABLE], r[CONVERGED:, LEARNABLE], r[falling, NOISE])
    return float(r[falling, LEARNABLE].mean()) > 5 * max(abs(float(x.mean())) for x in elsewhere)


def pays_nothing_for(place: str, r: Tensor) -> bool:
    """When all is learned: zero in a 99 % confidence interval.

    The interval must be narrow to mean something, and systematic errors below notice are let pass: 5 % and 2 % of the
    most that progress was paid.
    """
    most = float(r[START:CONVERGED, LEARNABLE].abs().max())
    found = interval(r[CONVERGED:, PLACES[place]])
    return found.half <= 0.05 * most and abs(found.mean) <= found.half + 0.02 * most


def verdict(name: str) -> set[str]:
    """The promises it keeps."""
    r = paid(name)
    kept = {f"nothing for {place}" for place in PLACES if pays_nothing_for(place, r)}
    return kept | {f.__name__ for f in (begins_silent, pays_for_progress) if f(r)}


NOTHING = {"nothing for noise", "nothing for mastered", "nothing for learned"}
ALL = NOTHING | {"begins_silent", "pays_for_progress"}


@pytest.mark.parametrize("name", ["lpm", "lpm_dual", "lpm_paired"])
def test_noise_robust_curiosity_pays_for_progress_and_for_nothing_else(name: str) -> None:
    assert verdict(name) == ALL


def test_no_bonus_pays_nothing() -> None:
    assert verdict("none") == NOTHING | {"begins_silent"}


def test_prediction_error_pays_for_noise_for_ever_and_not_for_progress() -> None:
    assert "nothing for noise" not in verdict("prediction_error")
    assert "pays_for_progress" not in verdict("prediction_error")
    late = paid("prediction_error")[CONVERGED:].mean(0)
    assert late[NOISE] > 1  # standard deviations of the bonus
    assert late[NOISE] > 5 * late[MASTERED].abs()
    assert late[NOISE] > 5 * late[LEARNABLE].abs()


def test_the_guides_formula_has_neither_gate_nor_progress() -> None:
    """Without lag it pays for its own misfit: early, for noise; and once fitted it does not see errors fall."""
    assert verdict("lpm_guide") == NOTHING
    early = slice(0, 60)
    assert float(paid("lpm_guide")[early, NOISE].mean()) > 0.2
    assert not paid("lpm")[early].any()


@pytest.mark.parametrize(
    ("mistake", "broken"),
    [
        ("log_minus_raw", "nothing for noise"),  # a constant offset on every step
        ("exp_minus_raw", "nothing for noise"),  # geometric minus arithmetic mean
        ("eta_on_expected_only", "nothing for noise"),
        ("flipped", "pays_for_progress"),
        ("clipped_at_zero", "nothing for noise"),
        ("opens_when_full", "begins_silent"),
    ],
)
def test_a_mistake_breaks_a_promise(mistake: str, broken: str) -> None:
    assert broken not in verdict(mistake)


def test_mistakes_err_in_the_known_direction() -> None:
    """Or they might be caught for another reason than theirs."""
    late = {name: float(paid(name)[CONVERGED:, NOISE].mean()) for name in MISTAKES}
    assert late["log_minus_raw"] < -4  # the noise's mean log error is -4.8
    assert late["exp_minus_raw"] < 0
    assert late["eta_on_expected_only"] == pytest.approx(-0.6 * -4.8, abs=0.2)
    assert late["clipped_at_zero"] > 0.3
    assert "pays_for_progress" not in verdict("clipped_at_zero")
    assert float(paid("flipped")[START:END, LEARNABLE].mean()) < -0.5


def test_ama_ignores_noise_but_not_for_knowing_progress() -> None:
    """Its variance takes any error for noise. So it is silent once that is fitted, and while errors fall it owes."""
    r = paid("ama")
    assert float(r[CONVERGED:].mean(0).abs().max()) < 0.05  # standard deviations of the bonus
    assert float(r[START + 20 : END, LEARNABLE].mean()) < -0.05


def test_lbs_pays_for_noise_that_the_latent_encodes_for_ever() -> None:
    late = paid("lbs")[CONVERGED:].mean(0)
    assert late[NOISE] > 1
    assert late[NOISE] > 5 * late[MASTERED].abs()
    assert "pays_for_progress" not in verdict("lbs")


def rests(name: str) -> Tensor:
    """What is left when all is learned, as a share of what the discovered place was paid, (3,)."""
    r = paid(name, discovered=True)
    return r[LATE].mean(0) / r[START : START + 100, LEARNABLE].max()


def is_paid_for_discovery(name: str) -> bool:
    """In the fifty updates after it was first seen, the new place pays most, and more than it ever will again."""
    r = paid(name, discovered=True)
    new = r[START : START + 50].mean(0)
    return bool(new[LEARNABLE] > 2 * new[[NOISE, MASTERED]].max() and new[LEARNABLE] > 2 * r[LATE, LEARNABLE].max())


def test_gamma_progress_pays_for_discovery_and_then_for_nothing() -> None:
    assert is_paid_for_discovery("gamma_progress")
    assert float(rests("gamma_progress").abs().max()) < 0.02
    assert float(rests("gamma_progress")[NOISE]) < 0, "the average of models is the better one on noise"


def test_disagreement_pays_for_discovery_and_keeps_a_rest_for_noise() -> None:
    """It falls on noise as elsewhere, to a few hundredths; a learning rate that never falls keeps it there."""
    assert is_paid_for_discovery("disagreement")
    rest = rests("disagreement")
    assert float(rest[MASTERED]) < 0.03
    assert 0.02 < float(rest[NOISE]) < 0.10


def test_lpm_optimistic_keeps_lpms_promises_but_for_a_floor() -> None:
    """A standard deviation is never zero: a few hundredths remain, for noise hardly more than for the mastered."""
    r = paid("lpm_optimistic")
    progress = r[START + 50 : END, LEARNABLE].mean()
    floor = r[CONVERGED:].mean(0) / progress
    assert begins_silent(r)
    assert float(progress) > 3 * float(r[START + 50 : END, NOISE].mean())
    assert float(floor.min()) > 0
    assert float(floor.max()) < 0.10
    assert float(floor[NOISE] - floor[MASTERED]) < 0.03


def test_lpm_optimistic_looks_forward_to_what_nobody_has_seen_and_lpm_does_not() -> None:
    """Just opened, and before anything was learned of the place that nobody visited."""
    hopes = {name: paid(name, discovered=True)[:START] for name in ("lpm_optimistic", "lpm_dual")}
    opened = paid("lpm_optimistic", discovered=True)
    first = int(opened.any(1).nonzero()[0])
    assert first < START + 50
    assert float(opened[first, LEARNABLE]) > 5 * float(opened[first, [NOISE, MASTERED]].abs().max())
    assert float(hopes["lpm_dual"].abs().max()) < 0.25


@pytest.mark.parametrize("name", ["icm", "rnd"])
def test_novelty_and_feature_error_pay_for_ever_new_pictures(name: str) -> None:
    """They do grow tired of the place that was learned: what captures them is that the noise never repeats."""
    rest = paid(name, discovered=True)[LATE].mean(0)
    assert rest[NOISE] > 0.25  # standard deviations of the bonus
    assert rest[NOISE] > 10 * rest[[LEARNABLE, MASTERED]].max()


def test_mistakes_of_the_other_robust_kinds_are_caught() -> None:
    late = paid("hardness_for_doubt")[CONVERGED:].mean(0)
    assert late[NOISE] > 3 * late[MASTERED].abs(), "hard places are not unknown places"
    assert not is_paid_for_discovery("back_to_back")
    assert float(rests("surprise_for_disagreement")[NOISE]) > 0.3


class _Clamped(ErrorPredictor):
    """An error predictor whose answer is cut to +-12 nats, as some do."""

    def forward(self, feat: Tensor, action: Tensor) -> Tensor:
        return super().forward(feat, action).clamp(-12, 12)


def largest_misfit(kind: type[ErrorPredictor], learning_rate: float) -> float:
    """Largest error in nats over three states after fitting their log errors, with networks of the size in use."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor: nn.Module = kind(512, 2, 256)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=learning_rate, eps=1e-5)
    states = (torch.rand(3, 512, generator=rng) > 0.5).float()
    errors, spread = torch.tensor([-4.8, -1.4, -7.8]), torch.tensor([1.3, 0.1, 0.1])
    for _ in range(300):
        place = torch.randint(3, (48,), generator=rng)
        action = torch.rand(48, 2, generator=rng) * 2 - 1
        target = errors[place] + spread[place] * torch.randn(48, generator=rng)
        optimizer.zero_grad()
        (predictor(states[place], action) - target).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return float((predictor(states, torch.zeros(3, 2)) - errors).abs().max())


def test_the_error_predictor_fits_at_the_agents_learning_rate() -> None:
    """1e-2 throws it beyond a clamp, from where no gradient leads back: the bonus stays at minus several nats."""
    assert largest_misfit(ErrorPredictor, AgentConfig().curiosity_lr) < 0.5
    assert largest_misfit(_Clamped, AgentConfig().curiosity_lr) < 0.5
    assert largest_misfit(_Clamped, 1e-2) > 4

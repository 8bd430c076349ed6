"""Each bonus of the bank against values known beforehand; sums, error spaces and masks likewise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer_lpm.curiosity import (
    AMA,
    ICM,
    LBS,
    LPM,
    RND,
    CuriosityConfig,
    Dims,
    Disagreement,
    Distilled,
    GammaProgress,
    IntrinsicReward,
    Losses,
    LPMDual,
    LPMOptimistic,
    NoBonus,
    Sum,
    Transition,
    build_curiosity,
    log_mse,
    mse,
)
from dreamer_lpm.curiosity.ensemble import Ensemble
from dreamer_lpm.curiosity.error_space import ErrorSpaceName, error_space
from dreamer_lpm.curiosity.lpm_optimistic import bootstrap
from dreamer_lpm.curiosity.pictures import shrink
from dreamer_lpm.types import UserError
from tests.curiosity.checks import CONFIG, CONTINUOUS, FEAT, build, dream, everywhere, learn, transition

DIMS = Dims(FEAT, CONTINUOUS.size)


class Says(nn.Module):
    """A model that answers the same to everything: ``values`` with the given shape in front of or behind the steps'."""

    def __init__(self, values: Tensor, *, members: bool = False):
        super().__init__()
        self.values, self.members = nn.Parameter(values), members

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:-1]
        if self.members:
            return self.values.reshape(-1, *[1] * len(lead), 1).expand(-1, *lead, 1)
        return self.values.expand(*lead, *self.values.shape)


# What each pays


def test_disagreement_is_the_unbiased_variance_among_the_members() -> None:
    bonus = Disagreement(DIMS, hidden=8, members=3)
    bonus.models = Says(torch.tensor([1.0, 2.0, 6.0]), members=True)  # type: ignore[assignment]
    torch.testing.assert_close(bonus.reward(dream(0)), torch.full((4, 7), 7.0))


def test_members_that_disagree_learn_of_the_state_led_to() -> None:
    bonus, t = Disagreement(DIMS, hidden=8, members=3), transition(0)
    bonus.project.fill_(1.0)
    bonus.models = Says(torch.tensor([1.0, 2.0, 6.0]), members=True)  # type: ignore[assignment]
    wrong = (t.next_feat.sum(-1).unsqueeze(-1) - torch.tensor([1.0, 2.0, 6.0])).square().mean(-1)
    torch.testing.assert_close(bonus.loss(t)["disagreement"], 64 * wrong[t.mask].mean())


def test_members_of_an_ensemble_answer_each_for_itself() -> None:
    """One member's answer is that of an ordinary network with its weights."""
    torch.manual_seed(0)
    ensemble, x = Ensemble(3, 5, 4, 2, 2), torch.randn(6, 7, 5)
    answers = ensemble(x)
    assert answers.shape == (3, 6, 7, 2)
    for k in range(3):
        h = F.linear(x, *(p.chunk(3)[k] for p in (ensemble.first.weight, ensemble.first.bias)))
        for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
            h = F.elu(h) @ weight[k] + bias[k]
        torch.testing.assert_close(answers[k], h)


def test_lbs_is_the_kl() -> None:
    t = transition(0)
    assert t.kl is not None
    assert torch.equal(LBS().reward(t), t.kl)


def test_gamma_progress_is_old_loss_minus_new_loss_and_the_old_model_follows() -> None:
    bonus, t = GammaProgress(DIMS, hidden=8, rate=0.25), transition(0)
    bonus.old, bonus.new = Says(torch.full((64,), 3.0)), Says(torch.full((64,), 1.0))  # type: ignore[assignment]
    phi = bonus.features(t.small_target)
    torch.testing.assert_close(bonus.reward(t), ((3 - phi).square() - (1 - phi).square()).mean(-1))
    learn(bonus, t, rate=0.0)
    torch.testing.assert_close(bonus.old.values.data, torch.full((64,), 2.5))  # type: ignore[union-attr, arg-type]


def test_ama_fits_its_variance_to_the_expected_error_and_then_pays_nothing() -> None:
    """The likelihood of a normal is greatest where its variance is the mean squared error."""
    bonus, t = AMA(DIMS, hidden=8), transition(0)
    t = replace(t, mask=torch.ones_like(t.mask))
    bonus.log_variance = Says(torch.tensor([2.0]))  # type: ignore[assignment]
    for _ in range(300):
        learn(bonus, t, rate=0.1)
    torch.testing.assert_close(bonus.reward(t), mse(t) - mse(t).mean(), rtol=1e-3, atol=1e-4)


def test_ama_begins_at_the_mean_error() -> None:
    bonus, t = AMA(DIMS, hidden=8), transition(0)
    bonus.loss(t)
    torch.testing.assert_close(bonus.reward(t), mse(t) - mse(t)[t.mask].mean())


def test_icm_pays_half_the_squared_error_in_features() -> None:
    bonus, t = ICM(DIMS, hidden=8), transition(0)
    bonus.forward_model = Says(torch.full((64,), 0.5))  # type: ignore[assignment]
    after = bonus.encoder(t.small_target - 0.5)
    torch.testing.assert_close(bonus.reward(t), 0.5 * (after - 0.5).square().mean(-1).detach())
    assert not torch.equal(bonus.reward(t), bonus.reward(replace(t, target=1 - t.target)))  # type: ignore[operator]


def test_icm_learns_its_features_from_the_action() -> None:
    """The inverse loss reaches the encoder through both frames."""
    bonus, t = ICM(DIMS, hidden=8), transition(0)
    bonus.loss(t)["icm_inverse"].backward()
    first = next(bonus.encoder.parameters())
    assert first.grad is not None
    assert first.grad.any()


def test_rnd_pays_nothing_once_it_imitates() -> None:
    bonus, t = RND(hidden=8), transition(0)
    learn(bonus, t)
    assert (bonus.reward(t) > 0).all()
    bonus.predictor = bonus.target  # type: ignore[assignment]
    assert not bonus.reward(t).any()


def test_rnd_normalises_each_pixel_over_all_steps_ever_replayed() -> None:
    """Batch, time and updates alike, borders aside; never over the steps of one batch."""
    bonus, frames = RND(hidden=8), []
    for seed in range(4):
        t = transition(seed)
        bonus.loss(t)
        frames.append(t.small_target[t.mask])
    every = torch.cat(frames)
    torch.testing.assert_close(bonus.mean, every.mean(0))
    torch.testing.assert_close((bonus.square - bonus.mean.square()).sqrt(), every.std(0, correction=0))


def test_rnd_learns_from_frames_that_are_normalised_with_themselves() -> None:
    """Else the first batch would be learned in another scale than it is paid in."""
    bonus, t = RND(hidden=8), transition(0)
    loss = bonus.loss(t)["rnd"]
    torch.testing.assert_close(loss, bonus.reward(t)[t.mask].mean())


def test_lpm_optimistic_pays_progress_and_uncertainty_about_the_expected_error() -> None:
    for optimism in (0.0, 1.0, 2.5):
        bonus = LPMOptimistic(DIMS, hidden=8, members=2, optimism=optimism)
        bonus.now = Says(torch.tensor([-4.0, -2.0]), members=True)  # type: ignore[assignment]
        bonus.before = Says(torch.tensor([0.0, -4.0]), members=True)  # type: ignore[assignment]
        assert not bonus.reward(dream(0)).any(), "shut"
        bonus.gate.opened.fill_(1)
        torch.testing.assert_close(bonus.reward(dream(0)), torch.full((4, 7), 1.0 + optimism * 1.0))


def test_members_learn_from_their_own_half_alone() -> None:
    """A transition that is not a member's leaves it as it was."""
    bonus, t = LPMOptimistic(DIMS, hidden=8, members=4), transition(0, shape=(1, 1))
    t = replace(t, mask=torch.ones_like(t.mask))
    x = torch.cat([t.feat, t.action], -1)
    earlier = bonus.now(x).flatten()
    learn(bonus, t, rate=0.1)
    mine = bootstrap(t, 4).flatten()
    assert 0 < int(mine.sum()) < 4
    assert torch.equal(bonus.now(x).flatten() != earlier, mine)


# Masks


def test_masks_are_fair_coins_that_fall_alike_for_the_same_transition() -> None:
    t = transition(0, shape=(20, 20))
    t = replace(t, target=t.target[..., :8, :8, :])  # type: ignore[index]
    masks = bootstrap(t, 5)
    assert masks.shape == (5, 20, 20)
    mean, together = masks.flatten(1).float().mean(1), torch.corrcoef(masks.flatten(1).float())
    assert ((mean - 0.5).abs() < 3.5 * 0.5 / 20).all(), mean
    assert (together - torch.eye(5)).abs().max() < 3.5 / 20
    assert torch.equal(bootstrap(everywhere(t, lambda x: x.flip(0, 1)), 5), masks.flip(1, 2))
    assert torch.equal(bootstrap(t, 3), masks[:3])


@pytest.mark.parametrize("name", ["target", "action"])
def test_other_pictures_and_other_actions_have_masks_of_their_own(name: str) -> None:
    t = transition(0, shape=(20, 20))
    x = getattr(t, name).clone()
    x[..., 0] += 2 / 255
    changed = (bootstrap(replace(t, **{name: x}), 5) != bootstrap(t, 5)).float().mean()
    assert 0.45 < float(changed) < 0.55


# Small pictures


@pytest.mark.parametrize("size", [4, 16, 48, 64])
def test_small_pictures_are_block_means(size: int) -> None:
    frames = torch.rand(2, 3, size, size, 3)
    want = F.adaptive_avg_pool2d(frames.flatten(0, 1).movedim(-1, 1), 16).unflatten(0, (2, 3))
    torch.testing.assert_close(shrink(frames), want)


# Error spaces


def test_error_spaces_in_closed_form() -> None:
    t = transition(0)
    assert t.kl is not None
    assert t.target_embed is not None
    assert t.predicted_embed is not None
    assert torch.equal(error_space("frame").error(t), mse(t))
    assert torch.equal(error_space("frame").log_error(t), log_mse(t))
    assert torch.equal(error_space("embedding").error(t), (t.target_embed - t.predicted_embed).square().mean(-1))
    assert torch.equal(error_space("kl").error(t), t.kl)
    below = error_space("kl").log_error(replace(t, kl=torch.full_like(t.kl, -1e-6)))  # as rounding leaves it
    torch.testing.assert_close(below, torch.full_like(below, math.log(0.01)))
    random = error_space("random")
    assert (random.error(t) > 0).all()
    assert not random.error(replace(t, predicted=t.target)).any()


@pytest.mark.parametrize("space", ["random", "embedding", "kl"])
@pytest.mark.parametrize("name", ["prediction_error", "lpm", "lpm_guide", "lpm_dual", "lpm_optimistic", "lpm+rnd"])
def test_the_error_space_is_honoured(name: str, space: ErrorSpaceName) -> None:
    """Another error in that space is another lesson; pixels no longer matter."""
    cfg, t = replace(CONFIG, error_space=space), transition(0)
    for other, field in (("kl", "kl"), ("embedding", "predicted_embed"), ("random", "predicted")):
        one, two = (build(name, cfg=cfg) for _ in range(2))
        moved = replace(t, **{field: getattr(t, field).square()})
        for _ in range(5):  # lpm's queue turns over
            learn(one, t)
            learn(two, moved)
        differs = any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert differs == (other == space), (field, space)


@pytest.mark.parametrize("name", ["icm", "rnd", "disagreement", "lbs", "gamma_progress", "icm+rnd"])
def test_an_error_space_that_a_bonus_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"error_space random means nothing to '.*'; leave it at frame\."):
        build(name, cfg=replace(CONFIG, error_space="random"))


def test_ama_refuses_a_kl_and_the_baseline_refuses_nothing() -> None:
    with pytest.raises(UserError, match="'ama' needs an error with a variance"):
        build("ama", cfg=replace(CONFIG, error_space="kl"))
    assert isinstance(build("none", cfg=replace(CONFIG, error_space="kl")), NoBonus)


# Sums


def test_a_sum_weighs_what_its_parts_pay_and_names_their_losses() -> None:
    torch.manual_seed(0)
    parts: dict[str, tuple[float, IntrinsicReward]] = {
        "a": (1.0, LPMDual(DIMS, hidden=8)), "b": (0.5, Disagreement(DIMS, hidden=8)),
    }  # fmt: skip
    for _, bonus in parts.values():
        if isinstance(bonus, LPMDual):
            bonus.gate.opened.fill_(1)
            learn(bonus, transition(0))
    both = Sum(parts)
    a, b = (bonus.reward(dream(0)) for _, bonus in parts.values())
    assert a.any()
    torch.testing.assert_close(both.reward(dream(0)), a + 0.5 * b)
    assert both.loss(transition(0)).keys() == {"a/error_predictor", "b/disagreement"}
    assert not both.needs_target
    assert Sum({"icm": (1.0, ICM(DIMS, 8))}).needs_target


def test_a_sum_is_written_as_one_says_it() -> None:
    bonus = build(" lpm_dual + 0.5*disagreement+2 * lpm")
    assert isinstance(bonus, Sum)
    assert bonus.weights == {"lpm_dual": 1.0, "disagreement": 0.5, "lpm": 2.0}
    assert isinstance(bonus.parts["lpm"], Distilled), "each part comes ready for dreams"
    assert isinstance(build("1*lpm_dual"), Sum)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("", "Unknown curiosity ''; choose one of: none"),
        ("lpm+", "Unknown curiosity ''; choose one of: none"),
        ("lpm-rnd", "Unknown curiosity 'lpm-rnd'; choose one of"),
        ("lpm_dual+0.5*rdn", "Unknown curiosity 'rdn'; choose one of"),
        ("lpm+0.5*lpm", "names 'lpm' twice; add up its weights"),
        ("much*lpm", r"'much' is no weight .*; write a sum as lpm_dual\+0.5\*disagreement"),
        ("-1*lpm", "'-1' is no weight"),
        ("nan*lpm", "'nan' is no weight"),
        ("1e999*lpm", "'1e999' is no weight"),
        ("1e10*lpm", "'1e10' is no weight"),
        ("*lpm", "'' is no weight"),
        ("2*3*lpm", r"'2\*3' is no weight"),
    ],
)
def test_a_sum_that_cannot_be_read_is_answered_in_one_sentence(text: str, fix: str) -> None:
    with pytest.raises(UserError, match=fix) as caught:
        build_curiosity(text, CuriosityConfig(), DIMS)
    assert "\n" not in str(caught.value)


def test_one_member_alone_cannot_disagree() -> None:
    alone = CuriosityConfig(hidden=16, members=1)
    for text in ("disagreement", "lpm+0.3*disagreement"):
        with pytest.raises(UserError, match=r"disagreement needs bonus\.members of 2 or more, not 1"):
            build_curiosity(text, alone, DIMS)
    assert build_curiosity("lpm_optimistic", alone, DIMS).reward(transition(0)).isfinite().all()


@pytest.mark.parametrize("kind", [LPMDual, LPMOptimistic])
def test_a_hundredth_of_a_nat_of_progress_is_seen_in_bfloat16(kind: type[LPMDual | LPMOptimistic]) -> None:
    """Of numbers near -8.5 it knows each 1/32 alone, which would make such progress nothing, or three times as much."""
    torch.manual_seed(0)
    bonus, t = kind(DIMS, hidden=32), dream(0)
    for network, level in ((bonus.now, -8.5), (bonus.before, -8.49)):
        list(network.parameters())[-1].data.fill_(level)
    bonus.gate.opened.fill_(1)
    exact = bonus.reward(t)
    with torch.autocast("cpu", torch.bfloat16):
        paid = bonus.reward(t)
    assert paid.dtype == torch.float32
    torch.testing.assert_close(paid, exact, rtol=0, atol=0.003)


class _PaysByItsWeight(NoBonus):
    """An answer that its author left with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def reward(self, t: Transition) -> Tensor:
        return self.weight * t.feat.sum(-1)


def test_a_bonus_does_not_learn_to_please_the_head_that_carries_it() -> None:
    bonus = Distilled(_PaysByItsWeight(), DIMS, 8)
    bonus.loss(transition(0))["distilled"].backward()
    assert bonus.inner.weight.grad is None
    assert all(p.grad is not None for p in bonus.head.parameters())


class _PaysOnceItHasLearned(NoBonus):
    paid = 0.0

    def reward(self, t: Transition) -> Tensor:
        return torch.full_like(t.feat[..., 0], self.paid)

    def loss(self, t: Transition) -> Losses:
        self.paid = 3.0
        return {}


def test_the_head_learns_of_what_is_paid_after_this_batch() -> None:
    """Before its first one a bonus that is scaled knows no scale."""
    bonus = Distilled(_PaysOnceItHasLearned(), DIMS, 8)
    assert bonus.loss(transition(0))["distilled"].item() == 9.0, "the head says 0"


@pytest.mark.parametrize("kind", [LPM, LPMDual, LPMOptimistic])
def test_a_batch_without_a_transition_says_nothing_of_the_fit(kind: type[LPM | LPMDual | LPMOptimistic]) -> None:
    t = transition(0)
    bonus = kind(DIMS, hidden=8, **({"queue": t.mask.numel()} if kind is LPM else {}))
    none = replace(t, mask=torch.zeros_like(t.mask))
    for _ in range(3):
        learn(bonus, none)
    assert bonus.gate.count == 0
    for _ in range(3):
        learn(bonus, t)
    assert bonus.gate.count == (2 if kind is LPM else 3)  # one of LPM's is still of the queue that held none


def test_rnd_asks_with_inputs_of_five_deviations_at_most_and_of_a_hundredth_at_least() -> None:
    bonus, t = RND(hidden=8), transition(0)
    learn(bonus, t)
    asked: list[Tensor] = []
    bonus.target.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    bonus.mean.fill_(0.5)
    bonus.square.fill_(0.25)  # nothing ever moved: the deviation is at its floor of 0.01
    bonus.reward(t)
    assert asked[-1].abs().max() == 5
    bonus.mean.copy_(t.small_target[0, 0] - 0.03)
    bonus.square.copy_(bonus.mean.square())
    bonus.reward(t)
    torch.testing.assert_close(asked[-1].flatten(0, -4)[0], torch.full((3, 16, 16), 3.0), rtol=1e-2, atol=1e-2)


def test_amas_variance_departs_from_the_first_batch_alone() -> None:
    bonus, t = AMA(DIMS, hidden=8), transition(0)
    bonus.loss(t)
    before = bonus.reward(t)
    bonus.loss(replace(t, error=100 * mse(t)))
    assert torch.equal(bonus.reward(t), before)


def test_the_registry_hands_on_every_size() -> None:
    cfg = CuriosityConfig(hidden=32, queue=99, rate=0.25, members=3, optimism=0.5)

    def built(name: str) -> Any:
        return build_curiosity(name, cfg, DIMS)

    optimistic = built("lpm_optimistic")
    assert (optimistic.optimism, optimistic.rate, optimistic.now.members) == (0.5, 0.25, 3)
    assert built("disagreement").inner.models.members == 3
    assert built("lpm_dual").rate == 0.25
    assert built("lpm").inner.queue == 99
    assert built("gamma_progress").inner.inner.rate == 0.25

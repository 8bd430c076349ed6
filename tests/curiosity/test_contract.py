"""What every registered bonus must keep. A new line in ``REGISTRY`` joins these tests by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dreamer_lpm.curiosity import (
    REGISTRY,
    Dims,
    Distilled,
    IntrinsicReward,
    Losses,
    LPMGuide,
    NoBonus,
    Transition,
)
from dreamer_lpm.types import ActionSpec, UserError
from tests.curiosity import checks
from tests.curiosity.checks import (
    CONFIG,
    CONTINUOUS,
    DISCRETE,
    DREAMED,
    FEAT,
    build,
    dream,
    learn,
    learned,
    transition,
)

SUM = "lpm_dual+0.5*prediction_error"
SPACES = ("random", "embedding", "kl")
BUILDS = {
    **{name: (name, CONFIG) for name in (*REGISTRY, SUM)},
    **{f"{name}-{space}": (name, replace(CONFIG, error_space=space))
       for name in ("prediction_error", "lpm", "lpm_guide", "lpm_dual", "lpm_optimistic", "ama")
       for space in SPACES if (name, space) != ("ama", "kl")},
}  # fmt: skip


class Case(NamedTuple):
    """A bonus that has learned a little, for actions of that kind."""

    build: str
    spec: ActionSpec
    bonus: IntrinsicReward

    def fresh(self) -> IntrinsicReward:
        """Another of its kind, with other initial weights."""
        name, cfg = BUILDS[self.build]
        return build(name, self.spec, seed=1, cfg=cfg)


@cache
def _learned(key: str, spec: ActionSpec) -> IntrinsicReward:
    name, cfg = BUILDS[key]
    return learned(build(name, spec, cfg=cfg), spec)


def _cases() -> Iterator[tuple[str, ActionSpec]]:
    """Every registered bonus for both kinds of action; other error spaces for one."""
    for key, (_, cfg) in BUILDS.items():
        yield key, CONTINUOUS
        if cfg is CONFIG:
            yield key, DISCRETE


@pytest.fixture(params=_cases(), ids=lambda p: f"{p[0]}-{p[1].kind}")
def case(request: pytest.FixtureRequest) -> Case:
    key, spec = request.param
    return Case(key, spec, copy.deepcopy(_learned(key, spec)))


def test_the_tests_see_a_bonus_that_pays(case: Case) -> None:
    """Or the others would hold for zeros. What has nothing to learn may pay nothing."""
    paid = case.bonus.reward(dream(0, case.spec))
    assert (paid != 0).any() or not list(case.bonus.parameters())


def test_asking_changes_nothing(case: Case) -> None:
    checks.check_asking_changes_nothing(case.bonus, case.spec)


def test_steps_stand_alone_in_replay_and_in_dreams(case: Case) -> None:
    checks.check_steps_stand_alone(case.bonus, case.spec)


def test_borders_teach_nothing(case: Case) -> None:
    checks.check_borders_teach_nothing(case.bonus, case.spec)


def test_saved_and_loaded_it_goes_on_with_the_same_bits(case: Case) -> None:
    checks.check_state_is_all(case.fresh, case.bonus, case.spec)


def test_losses_are_finite_scalars(case: Case) -> None:
    checks.check_losses(case.bonus, case.spec)


def test_a_loss_reaches_every_parameter_that_the_optimizer_holds(case: Case) -> None:
    losses = case.bonus.loss(transition(0, case.spec))
    moved = {name: p for name, p in case.bonus.named_parameters() if p.requires_grad}
    if moved:
        torch.stack(list(losses.values())).sum().backward()
    assert [name for name, p in moved.items() if p.grad is None] == []


def test_no_decision_hangs_on_a_value(case: Case) -> None:
    """Tensors without values suffice, so an update can be captured as one graph."""
    ghost = case.bonus.to("meta")
    replayed, dreamed = (
        checks.everywhere(t, lambda x: x.to("meta")) for t in (transition(0, case.spec), dream(0, case.spec))
    )
    assert all(loss.shape == () for loss in ghost.loss(replayed).values())
    assert ghost.reward(dreamed).shape == DREAMED


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_learns_and_pays_on_a_gpu_as_on_the_cpu(case: Case) -> None:
    """As far as the two round alike; nothing is left behind on another device."""
    there = copy.deepcopy(case.bonus).to("cuda")
    for seed in range(3):
        here = learn(case.bonus, transition(seed, case.spec))
        losses = learn(there, checks.everywhere(transition(seed, case.spec), lambda x: x.to("cuda")))
        for name, loss in losses.items():
            torch.testing.assert_close(loss.cpu(), here[name], rtol=1e-2, atol=1e-3)
    paid = there.reward(checks.everywhere(dream(0, case.spec), lambda x: x.to("cuda")))
    torch.testing.assert_close(paid.cpu(), case.bonus.reward(dream(0, case.spec)), rtol=1e-2, atol=1e-2)


def test_half_precision_networks_pay_in_full_precision(case: Case) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = case.bonus.loss(transition(0, case.spec))
        paid = case.bonus.reward(dream(0, case.spec))
    assert paid.dtype == torch.float32
    assert paid.isfinite().all()
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'lmp'.*lpm_dual"):
        build("lmp")


class _AskedCount(NoBonus):
    """Changes while asked, and in what no file keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def reward(self, t: Transition) -> Tensor:
        self.asked += 1
        return t.feat[..., 0] * self.asked


class _OverSequences(NoBonus):
    """A step's pay depends on what happens in the other sequences at that time."""

    def reward(self, t: Transition) -> Tensor:
        return t.feat[..., 0] / (t.feat[..., 0].std(0, keepdim=True, correction=0) + 1)


class _LearnsFromBorders(LPMGuide):
    """Takes the step from an episode's end to the next one's start for a prediction that failed."""

    def loss(self, t: Transition) -> Losses:
        return {"error_predictor": (self.predictor(t.feat, t.action) - t.feat[..., 0]).square().mean()}


def test_the_checks_catch_what_they_are_for() -> None:
    dims = Dims(FEAT, CONTINUOUS.size)
    with pytest.raises(AssertionError, match="two answers"):
        checks.check_asking_changes_nothing(_AskedCount())
    counted = _AskedCount()
    counted.reward(dream(0))
    with pytest.raises(AssertionError, match="pays otherwise"):
        checks.check_state_is_all(_AskedCount, counted)
    with pytest.raises(AssertionError, match="not close"):
        checks.check_steps_stand_alone(_OverSequences())
    with pytest.raises(AssertionError, match="error_predictor"):
        checks.check_borders_teach_nothing(Distilled(_LearnsFromBorders(dims, 8), dims, 8))
    with pytest.raises(AssertionError, match="wrap it in Distilled"):
        checks.check_asking_changes_nothing(LPMGuide(dims, 8))

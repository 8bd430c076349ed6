"""What every registered bonus must keep. A new line in ``REGISTRY`` joins these tests by itself."""

from __future__ import annotations

import copy
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
from tests.curiosity.checks import CONTINUOUS, DISCRETE, DREAMED, FEAT, build, dream, learned, transition


class Case(NamedTuple):
    """A registered bonus that has learned a little, for actions of that kind."""

    name: str
    spec: ActionSpec
    bonus: IntrinsicReward


@cache
def _learned(name: str, spec: ActionSpec) -> IntrinsicReward:
    return learned(build(name, spec), spec)


@pytest.fixture(
    params=[(name, spec) for name in REGISTRY for spec in (CONTINUOUS, DISCRETE)], ids=lambda p: f"{p[0]}-{p[1].kind}"
)
def case(request: pytest.FixtureRequest) -> Case:
    name, spec = request.param
    return Case(name, spec, copy.deepcopy(_learned(name, spec)))


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
    checks.check_state_is_all(lambda: build(case.name, case.spec, seed=1), case.bonus, case.spec)


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
    t = transition(0, case.spec)
    assert t.target is not None
    assert t.predicted is not None
    seen = Transition(*(x.to("meta") for x in (t.feat, t.action, t.next_feat, t.mask, t.target, t.predicted)))
    assert all(loss.shape == () for loss in ghost.loss(seen).values())
    d = dream(0, case.spec)
    assert ghost.reward(Transition(*(x.to("meta") for x in (d.feat, d.action, d.next_feat, d.mask)))).shape == DREAMED


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

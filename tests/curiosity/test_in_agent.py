"""Curiosity inside the agent: what it is shown, what dreams are paid, and that the world model never learns from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamer_lpm.agent import Agent, AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.curiosity import REGISTRY, CuriosityConfig, IntrinsicReward, Losses, Transition
from dreamer_lpm.types import Batch
from dreamer_lpm.world import Lesson, WorldModel
from tests.world.tiny import SPEC, WORLD_CONFIG, random_batch

BEHAVIOR = BehaviorConfig(hidden=8, layers=1, horizon=3, starts=8)


def agent(curiosity: str = "none", eta: float = 1.0) -> Agent:
    """A tiny one; its world model is the same whatever its curiosity."""
    bonus = CuriosityConfig(hidden=8, queue=32)
    cfg = AgentConfig(world=WORLD_CONFIG, behavior=BEHAVIOR, bonus=bonus, curiosity=curiosity, lpm_eta=eta)
    return Agent(cfg, SPEC)


class Watcher(IntrinsicReward):
    """Pays expected minus actual error, both known: 2.0 - 0.5. Remembers what it was shown."""

    def __init__(self, formula: Callable[[float, float], float] = lambda g, e: g - e):
        super().__init__()
        self.pay = formula(2.0, 0.5)
        self.learned: list[Transition] = []
        self.asked: list[Transition] = []

    def reward(self, t: Transition) -> Tensor:
        self.asked.append(t)
        return torch.full(t.mask.shape, self.pay)

    def loss(self, t: Transition) -> Losses:
        self.learned.append(t)
        return {}


def correct(subject: Agent) -> None:
    """The agent as it is. Its sisters below plant a mistake in it."""


def unsure(subject: Agent) -> None:
    """Undo what :func:`watched` does to the posterior."""
    subject.world.rssm.post_out.weight.data.div_(100)


def watched(batch: Batch, plant: Callable[[Agent], None] = correct) -> Watcher:
    """What curiosity is shown in a first update. The posterior is sure of itself, so that frames matter."""
    subject = agent()
    subject.world.rssm.post_out.weight.data.mul_(100)
    plant(subject)
    watcher = Watcher()
    subject.curiosity = watcher
    subject.update(batch)
    return watcher


# The world model learns from the extrinsic reward and the pictures alone


def world_after(subject: Agent, updates: int = 3) -> dict[str, Tensor]:
    for seed in range(updates):
        subject.update(random_batch(seed=seed))
    return subject.world.state_dict()


def check_world_is_untouched(subject: Agent) -> None:
    """Bit for bit the world model of an agent that has no curiosity at all."""
    alone, curious = world_after(agent("none")), world_after(subject)
    changed = [name for name in alone if not torch.equal(alone[name], curious[name])]
    assert not changed, changed


@pytest.mark.parametrize("name", REGISTRY)
def test_no_curiosity_reaches_the_world_model(name: str) -> None:
    check_world_is_untouched(agent(name, eta=10.0))


def store_the_bonus(subject: Agent) -> None:
    """The bonus is added to the reward that the reward model learns."""
    update = subject.update
    subject.update = lambda batch: update(batch._replace(reward=batch.reward + 1.5))  # type: ignore[method-assign]


def attach(subject: Agent) -> None:
    """Curiosity is shown features with a way back into the world model."""
    watch, bonus_loss = subject.world.watch, subject.curiosity.loss
    lessons: list[Lesson] = []

    def spy(batch: Batch, noise: Tensor, lanes: int = 1) -> Lesson:
        lessons.append(watch(batch, noise, lanes))
        return lessons[-1]

    subject.world.watch = spy  # type: ignore[method-assign]
    subject.curiosity.loss = (
        lambda t: bonus_loss(  # type: ignore[method-assign]
            replace(t, feat=lessons[-1].latents.feat[:, :-1])
        )
    )


@pytest.mark.parametrize(
    ("plant", "caught"), [(store_the_bonus, AssertionError), (attach, RuntimeError)], ids=["store the bonus", "attach"]
)
def test_curiosity_that_reaches_the_world_model_is_caught(
    plant: Callable[[Agent], None], caught: type[Exception]
) -> None:
    """The one by its bits; the other because the world's own backward pass is over when curiosity's begins."""
    subject = agent("lpm_guide")
    plant(subject)
    with pytest.raises(caught):
        check_world_is_untouched(subject)


# What curiosity is shown


def check_predicted_before_seen(plant: Callable[[Agent], None]) -> None:
    """Another last frame leaves all that had been expected as it was, while what was seen is another."""
    batch = random_batch()
    black, white = batch.obs.clone(), batch.obs.clone()
    black[:, -1], white[:, -1] = 0, 255
    (one,), (other,) = (watched(batch._replace(obs=obs), plant).learned for obs in (black, white))
    assert one.predicted is not None
    assert other.predicted is not None
    assert one.target is not None
    assert other.target is not None
    assert not torch.equal(one.target[:, -1], other.target[:, -1])
    assert torch.equal(one.predicted, other.predicted), "it had seen the frame"


def test_the_error_is_of_a_prediction() -> None:
    check_predicted_before_seen(correct)


def reconstruct(subject: Agent) -> None:
    """The posterior, which has seen the frame, says what was expected."""
    world = subject.world
    world.predict = lambda latents: world.decoder(latents.feat).detach()  # type: ignore[method-assign]


def test_a_reconstruction_error_is_caught() -> None:
    with pytest.raises(AssertionError, match="it had seen the frame"):
        check_predicted_before_seen(reconstruct)


def test_replayed_steps_go_from_state_by_action_to_next_state_and_know_the_borders() -> None:
    batch = random_batch()
    (t,) = watched(batch).learned
    assert t.target is not None
    assert t.predicted is not None
    torch.testing.assert_close(t.target, batch.obs[:, 1:] / 255)
    assert torch.equal(t.action, batch.action[:, 1:])  # action[:, k] led to obs[:, k]
    assert torch.equal(t.mask, ~batch.is_first[:, 1:])
    assert not t.mask.all()
    assert torch.equal(t.feat[:, 1:], t.next_feat[:, :-1])
    assert t.predicted.shape == t.target.shape
    assert t.frame is not None
    torch.testing.assert_close(t.frame, batch.obs[:, :-1] / 255)
    assert t.error is not None
    torch.testing.assert_close(t.error, (t.predicted - t.target).square().mean((-3, -2, -1)))
    assert not any(x.requires_grad for x in vars(t).values() if x is not None)


def test_curiosity_is_shown_the_kl_that_the_world_model_learns_from() -> None:
    batch, learned = random_batch(), list[Losses]()

    def spy(subject: Agent) -> None:
        losses = subject.world.losses

        def world_losses(batch: Batch, lesson: Lesson) -> Losses:
            learned.append(losses(batch, lesson))
            return learned[-1]

        subject.world.losses = world_losses  # type: ignore[method-assign]

    (t,) = watched(batch, spy).learned
    assert t.kl is not None
    cfg = WORLD_CONFIG
    torch.testing.assert_close(cfg.dyn_scale * t.kl.clamp(min=cfg.free_nats), learned[0]["dyn"].detach()[:, 1:])


def test_embeddings_of_what_came_and_of_what_was_expected_are_computed_only_where_they_are_read() -> None:
    (t,) = watched(random_batch()).learned
    assert t.target_embed is None
    assert t.predicted_embed is None
    bonus = CuriosityConfig(hidden=8, queue=32, error_space="embedding")
    subject = Agent(AgentConfig(world=WORLD_CONFIG, behavior=BEHAVIOR, bonus=bonus, curiosity="lpm_dual"), SPEC)
    shown: list[Transition] = []
    loss = subject.curiosity.loss
    subject.curiosity.loss = lambda t: shown.append(t) or loss(t)  # type: ignore[method-assign, func-returns-value]
    encoder = copy.deepcopy(subject.world.encoder)
    subject.update(random_batch())
    (t,) = shown
    assert t.target_embed is not None
    assert t.predicted_embed is not None
    assert t.predicted is None, "embeddings are enough for it"
    (pictures,) = watched(random_batch(), unsure).learned
    assert pictures.predicted is not None
    with torch.no_grad():
        torch.testing.assert_close(t.target_embed, encoder(random_batch().obs[:, 1:]))
        torch.testing.assert_close(t.predicted_embed, encoder(pictures.predicted * 255))
    assert not t.target_embed.requires_grad
    assert not t.predicted_embed.requires_grad


def test_dreams_show_no_frame_and_have_no_border() -> None:
    shown = watched(random_batch()).asked
    dreams = [t for t in shown if t.mask.shape == (BEHAVIOR.horizon, BEHAVIOR.starts)]
    assert len(dreams) == 1
    (t,) = dreams
    assert {name for name, x in vars(t).items() if x is not None} == {"feat", "action", "next_feat", "mask"}
    assert t.mask.all()
    assert torch.equal(t.feat[1:], t.next_feat[:-1])
    assert t.action.shape == (*t.mask.shape, SPEC.size)


# What dreams are paid


def dream_reward(subject: Agent, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The reward (H, B) that the behavior is given in the first update."""
    given: list[Tensor] = []
    loss = subject.behavior.loss

    def spy(feat: Tensor, sampled: Tensor, reward: Tensor, *others: Tensor, **more: Any) -> dict[str, Tensor]:
        given.append(reward)
        return loss(feat, sampled, reward, *others, **more)

    monkeypatch.setattr(subject.behavior, "loss", spy)
    subject.update(random_batch())
    return given[0]


def check_eta_scales_the_whole_bonus(watcher: Watcher, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """reward = extrinsic + eta * (expected - actual)."""
    subject = agent(eta=eta)
    subject.curiosity = watcher
    extrinsic = dream_reward(agent("none"), monkeypatch)
    torch.testing.assert_close(dream_reward(subject, monkeypatch), extrinsic + eta * (2.0 - 0.5))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0, 3.0])
def test_eta_scales_the_whole_bonus(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    check_eta_scales_the_whole_bonus(Watcher(), eta, monkeypatch)


@pytest.mark.parametrize("eta", [0.4, 3.0])
def test_eta_on_the_expected_error_only_is_caught(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """eta * g - e is what the agent pays for a bonus of g - e / eta."""
    with pytest.raises(AssertionError):
        check_eta_scales_the_whole_bonus(Watcher(lambda g, e: g - e / eta), eta, monkeypatch)


@pytest.mark.parametrize("name", REGISTRY)
def test_losses_have_names_of_their_own(name: str) -> None:
    """A name that another part uses too would silently replace that part's loss."""
    batch = random_batch()
    alone, curious = agent("none").update(batch), agent(name)
    steps = watched(batch).learned[0]
    assert steps.error is not None
    own = len(curious.curiosity.loss(replace(steps, error_before=steps.error, lag=torch.ones_like(steps.error))))
    total = [key for key in agent(name).update(batch) if key.startswith("loss/")]
    assert len(total) == len([key for key in alone if key.startswith("loss/")]) + own


# The model as it was


def test_an_earlier_model_is_asked_of_the_same_frames_with_the_same_chance() -> None:
    """Every update's ``error_before`` is that of the world model at the last copy, which is taken every 1 / rate."""
    bonus = CuriosityConfig(hidden=8, rate=0.25)
    subject = Agent(AgentConfig(world=WORLD_CONFIG, behavior=BEHAVIOR, bonus=bonus, curiosity="lpm_paired"), SPEC)
    shown: list[Transition] = []
    drawn: list[Tensor] = []
    loss, watch = subject.curiosity.loss, subject.world.watch

    def spy(batch: Batch, noise: Tensor, lanes: int = 1) -> Lesson:
        drawn.append(noise)
        return watch(batch, noise, lanes)

    subject.curiosity.loss = lambda t: shown.append(t) or loss(t)  # type: ignore[method-assign, func-returns-value]
    subject.world.watch = spy  # type: ignore[method-assign]
    models, ages = [], (0, 1, 2, 3, 4, 0, 1)
    for update, age in enumerate(ages):
        model = WorldModel(WORLD_CONFIG, SPEC)
        model.load_state_dict(subject.world.state_dict())
        models.append(model)
        batch = random_batch(seed=update)
        subject.update(batch)
        before = models[update - age].foresee(batch, models[update - age].watch(batch, drawn[-1]))[0][:, 1:]
        t = shown[-1]
        assert t.error_before is not None
        torch.testing.assert_close(t.error_before, before)
        assert t.lag is not None
        assert t.lag.shape == t.mask.shape
        assert t.lag.unique().tolist() == [age / 4]
    assert t.error is not None
    assert not torch.equal(t.error, t.error_before), "nothing was learned, so nothing was tried"


def test_a_copy_is_kept_for_those_alone_who_ask_for_it() -> None:
    assert {name for name in REGISTRY if agent(name).earlier is not None} == {"lpm_paired"}
    assert agent("none+0.5*lpm_paired").earlier is not None

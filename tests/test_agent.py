"""The agent joins its parts and keeps them apart: what trains what, what reads what, and where chance comes from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamer_lpm import agent as agent_module
from dreamer_lpm.agent import Agent, AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.curiosity import REGISTRY, CuriosityConfig, FitGate, Transition
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world import Latent, Lesson, WorldModel
from tests.world.tiny import SPEC, WORLD_CONFIG, random_batch

DISCRETE = ActionSpec("discrete", 3)
CONFIG = AgentConfig(
    world=WORLD_CONFIG,
    behavior=BehaviorConfig(hidden=16, layers=1, horizon=3, starts=8),
    bonus=CuriosityConfig(hidden=16, queue=20),
    world_lr=1e-3,
    actor_lr=1e-3,
    critic_lr=1e-3,
)
CURIOUS = [name for name in REGISTRY if name != "none"]


def make_agent(curiosity: str = "lpm", lpm_eta: float = 1.0, spec: ActionSpec = SPEC, seed: int = 0) -> Agent:
    """A tiny agent whose bonus pays from the start, fitted or not: the tests ask what it reaches."""
    agent = Agent(replace(CONFIG, curiosity=curiosity, lpm_eta=lpm_eta), spec, seed=seed)
    for module in agent.modules():
        if isinstance(module, FitGate):
            module.opened.fill_(1.0)
    return agent


def taught(agent: Agent, batches: Iterable[Batch]) -> Agent:
    for batch in batches:
        agent.update(batch)
    return agent


def some_batches(count: int = 3, spec: ActionSpec = SPEC) -> list[Batch]:
    return [random_batch(spec, seed=seed) for seed in range(count)]


def equal(a: Any, b: Any) -> bool:
    """Bit for bit, through mappings and sequences."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def everything(agent: Agent) -> dict[str, Any]:
    """All that learning may have changed."""
    return {
        "weights": copy.deepcopy(agent.state_dict()),
        "optimizer": copy.deepcopy(agent.optimizer.state_dict()),
        "generator": agent.generator.get_state(),
    }


# --- chance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, DISCRETE])
@pytest.mark.parametrize("curiosity", REGISTRY)
def test_learning_depends_on_the_seed_and_on_nothing_else(curiosity: str, spec: ActionSpec) -> None:
    batches = some_batches(2, spec)
    before = torch.get_rng_state()
    one = everything(taught(make_agent(curiosity, spec=spec), batches))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        again = everything(taught(make_agent(curiosity, spec=spec), batches))
    other = everything(taught(make_agent(curiosity, spec=spec, seed=1), batches))
    assert equal(one, again)
    assert not equal(one["weights"], other["weights"])


def test_an_agent_is_made_without_seeding_any_devices_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` seeds those of all devices, whose owners may be drawing from them."""

    def seeded(seed: int) -> None:
        raise AssertionError("a device's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded)
    make_agent("lpm")


def test_learning_goes_on_from_what_was_saved() -> None:
    first, later = some_batches(3), some_batches(5)[3:]
    agent = taught(make_agent("lpm"), first)
    saved = everything(agent)
    want = everything(taught(agent, later))
    resumed = Agent(agent.cfg, SPEC, seed=99)
    resumed.load_state_dict(saved["weights"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.generator.set_state(saved["generator"])
    assert equal(everything(taught(resumed, later)), want)


# --- acting -----------------------------------------------------------------------------------------------------------


def seen(is_first: bool = False, num_envs: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "obs": rng.integers(0, 256, (num_envs, 64, 64, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (num_envs, 2)).astype(np.float32),
        "is_first": np.full(num_envs, is_first),
    }


def test_the_mode_is_deterministic_and_draws_nothing() -> None:
    agent = make_agent()
    state = agent.generator.get_state()
    a, b = (agent.act(agent.begin(4), seen(), "mode") for _ in range(2))
    assert equal(a, b)
    assert torch.equal(agent.generator.get_state(), state)
    assert torch.equal(a.action, agent.behavior.actor.mode(a.latent.feat))


def test_samples_differ_and_come_from_the_agents_generator() -> None:
    agent = make_agent()
    state, before = agent.generator.get_state(), torch.get_rng_state()
    a, b = (agent.act(agent.begin(4), seen(), "sample") for _ in range(2))
    assert not torch.equal(a.action, b.action)
    agent.generator.set_state(state)
    assert equal(agent.act(agent.begin(4), seen(), "sample"), a)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_actions_are_uniform_over_all_that_the_env_allows() -> None:
    agent, discrete = make_agent(), make_agent(spec=DISCRETE)
    n = 2000
    uniform = agent._choose(torch.zeros(n, 1), "random", agent.uniform(n * agent.spec.size).reshape(n, -1))
    assert uniform.shape == (n, 2)
    assert -1 <= uniform.min() < -0.99
    assert 0.99 < uniform.max() <= 1
    assert abs(float(uniform.std()) - 3**-0.5) < 0.02
    choices = discrete._choose(torch.zeros(n, 1), "random", discrete.uniform(n * discrete.spec.size).reshape(n, -1))
    assert torch.equal(choices.sum(-1), torch.ones(n))
    assert (choices.mean(0) - 1 / 3).abs().max() < 0.05


def test_acting_filters_as_the_world_model_does_and_trains_nothing() -> None:
    agent = make_agent()
    carry = agent.act(agent.begin(4), seen(), "sample")
    row = seen()
    now = agent.act(carry, row, "mode")
    obs, action, first = (torch.from_numpy(row[k]) for k in ("obs", "action", "is_first"))
    want = agent.world.rssm.observe_step(carry.latent, action, agent.world.encoder(obs), first, None)
    torch.testing.assert_close(now.latent.feat, want.feat)
    assert not now.action.requires_grad
    assert not now.latent.deter.requires_grad


def test_a_new_episode_begins_without_memory() -> None:
    agent = make_agent()
    carry = agent.act(agent.begin(4), seen(), "sample")
    assert equal(agent.act(carry, seen(True), "mode"), agent.act(agent.begin(4), seen(True), "mode"))
    assert not equal(agent.act(carry, seen(), "mode"), agent.act(agent.begin(4), seen(), "mode"))


# --- what is never read -----------------------------------------------------------------------------------------------


def ignores_the_tv(curiosity: str) -> bool:
    """Whether the truth about the TV leaves every weight as it would have been."""
    batches = some_batches()
    lied_to = [batch._replace(tv_on=~batch.tv_on) for batch in batches]
    one, other = make_agent(curiosity), make_agent(curiosity)
    metrics = [taught(one, batches[:-1]).update(batches[-1]), taught(other, lied_to[:-1]).update(lied_to[-1])]
    assert not torch.equal(metrics[0]["loss/recon_tv_share"], metrics[1]["loss/recon_tv_share"]), "metrics do read it"
    return equal(everything(one), everything(other))


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_training_never_reads_whether_the_tv_is_on(curiosity: str) -> None:
    assert ignores_the_tv(curiosity)


def test_training_that_read_it_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = WorldModel.losses

    def peeking(self: WorldModel, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
        losses = honest(self, batch, lesson)
        return {**losses, "recon": losses["recon"] * (1 + batch.tv_on.float())}

    monkeypatch.setattr(WorldModel, "losses", peeking)
    assert not ignores_the_tv("none")


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_the_batch_stays_as_it_was(curiosity: str) -> None:
    """No bonus is ever written into the extrinsic reward, nor anything else into the memory."""
    batch = random_batch()
    kept = Batch(*(x.clone() for x in batch))
    taught(make_agent(curiosity, lpm_eta=10.0), [batch] * 3)
    assert equal(list(batch), list(kept))


@pytest.mark.parametrize("at_a_time", [3, 1_000])
@pytest.mark.parametrize("bf16", [False, True])
def test_two_threads_learn_the_same_bits_as_one(bf16: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_DREAMS", at_a_time)
    ends = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            agent = Agent(CONFIG, SPEC, bf16=bf16)
            ends.append(everything(taught(agent, some_batches(5))))
            assert torch.get_num_threads() == threads, "whoever set it finds it as it was"
    finally:
        torch.set_num_threads(before)
    assert equal(*ends)


def test_dreams_in_parts_are_those_dreamed_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start keeps its own chances, and its place."""
    said = []
    for at_a_time in (3, 1_000):
        monkeypatch.setattr(agent_module, "_DREAMS", at_a_time)
        agent = Agent(CONFIG, SPEC)
        said.append((agent.update(random_batch()), agent.felt.dreamed))
    torch.testing.assert_close(*said, equal_nan=True)


# --- who trains whom --------------------------------------------------------------------------------------------------


def leaves_the_world_alone(curiosity: str, lpm_eta: float = 10.0) -> bool:
    """Whether the world model, its reward head included, learns exactly what it would without curiosity."""
    batches = some_batches()
    without = taught(make_agent("none"), batches)
    curious = taught(make_agent(curiosity, lpm_eta), batches)
    return equal(without.world.state_dict(), curious.world.state_dict())


@pytest.mark.parametrize("curiosity", CURIOUS)
def test_curiosity_never_trains_the_world_model(curiosity: str) -> None:
    assert leaves_the_world_alone(curiosity)


def test_curiosity_that_trained_the_world_model_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: latents reach the error predictor with their gradient. The world's own backward pass is over then."""
    monkeypatch.setattr(Latent, "detach", lambda self: self)
    with pytest.raises(RuntimeError, match="second time"):
        leaves_the_world_alone("lpm_guide")


@pytest.mark.parametrize("curiosity", CURIOUS)
def test_without_eta_curiosity_changes_no_behavior_and_with_it_it_does(curiosity: str) -> None:
    batches = some_batches(4)
    without = taught(make_agent("none"), batches).behavior.state_dict()
    assert equal(taught(make_agent(curiosity, 0.0), batches).behavior.state_dict(), without)
    assert not equal(taught(make_agent(curiosity, 10.0), batches).behavior.state_dict(), without)


def test_dreams_do_not_train_the_world_model() -> None:
    """Behavior may learn from the world, not bend it: other rewards for the actor, the same world."""
    batches = some_batches()
    one = taught(make_agent("none"), batches)
    agent = make_agent("none")
    agent.behavior.cfg = replace(agent.behavior.cfg, entropy=1.0, gamma=0.5)
    other = taught(agent, batches)
    assert not equal(one.behavior.state_dict(), other.behavior.state_dict())
    assert equal(one.world.state_dict(), other.world.state_dict())


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_the_optimizer_holds_every_trained_weight_once(curiosity: str) -> None:
    agent = make_agent(curiosity)
    held = [id(p) for group in agent.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in agent.parameters() if p.requires_grad)


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_every_trained_weight_is_trained(curiosity: str) -> None:
    """After a few updates no weight is where it began; a part that was forgotten in the loss would be."""
    agent = make_agent(curiosity)
    before = {name: p.clone() for name, p in agent.named_parameters() if p.requires_grad}
    taught(agent, some_batches(5))
    still = [name for name, p in agent.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    assert not still


# --- the reward of dreams ---------------------------------------------------------------------------------------------


class Spied:
    """One update of an agent whose bonus is a known function, with what reached the behavior and the curiosity."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        lpm_eta: float,
        starts: int = 8,
        extrinsic: float = 1.0,
        prepare: Callable[[Agent], object] = lambda agent: None,
    ) -> None:
        self.batch = random_batch()
        self.agent = make_agent("lpm_guide", lpm_eta)
        self.agent.starts = starts
        prepare(self.agent)
        self.agent.extrinsic.fill_(extrinsic)
        for head in (self.agent.world.reward, self.agent.world.cont):
            last: nn.Linear = head.net[-1]  # type: ignore[assignment]
            nn.init.normal_(last.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        self.asked: list[Transition] = []
        self.taught: list[Transition] = []
        behavior, curiosity = self.agent.behavior, self.agent.curiosity
        behave, learn = behavior.loss, curiosity.loss

        def behavior_loss(*args: Tensor, **more: Any) -> dict[str, Tensor]:
            self.feat, self.sampled, self.reward, self.cont, self.alive = args
            with torch.no_grad():
                self.extrinsic = self.agent.world.reward(self.feat[1:])
                self.goes_on = self.agent.world.cont(self.feat[1:])
            self.bonus = paid_for(self.feat[:-1], self.sampled.clamp(-1, 1), self.feat[1:])
            return behave(*args, **more)

        def paid_for(before: Tensor, action: Tensor, after: Tensor) -> Tensor:
            return before.sum(-1) + 10 * action.sum(-1) + 100 * after.sum(-1)

        def bonus(t: Transition) -> Tensor:
            assert self.taught, "a dream is paid by what has learned of this batch"
            self.asked.append(t)
            return paid_for(t.feat, t.action, t.next_feat)

        def curiosity_loss(t: Transition) -> dict[str, Tensor]:
            self.taught.append(t)
            return learn(t)

        monkeypatch.setattr(behavior, "loss", behavior_loss)
        monkeypatch.setattr(curiosity, "reward", bonus)
        monkeypatch.setattr(curiosity, "loss", curiosity_loss)
        self.metrics = self.agent.update(self.batch)


@pytest.mark.parametrize(("lpm_eta", "extrinsic"), [(1.0, 1.0), (0.3, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.5)])
def test_a_dream_pays_the_extrinsic_reward_and_eta_times_the_bonus(
    monkeypatch: pytest.MonkeyPatch, lpm_eta: float, extrinsic: float
) -> None:
    """Bonus of a step: for the state it is taken in, the action as executed, the state it leads to; with its sign."""
    x = Spied(monkeypatch, lpm_eta, extrinsic=extrinsic)
    assert x.extrinsic.abs().min() > 0
    torch.testing.assert_close(x.reward, extrinsic * x.extrinsic + lpm_eta * x.bonus)
    torch.testing.assert_close(x.metrics["dream/bonus"], x.bonus.mean())
    dream = x.asked[0]
    assert dream.target is None and dream.predicted is None, "in a dream nothing is seen"  # noqa: PT018
    assert dream.mask.all()
    built = Agent(replace(CONFIG, extrinsic=extrinsic, lpm_eta=lpm_eta), x.agent.spec)
    assert torch.equal(torch.stack([built.extrinsic, built.eta]), torch.tensor([extrinsic, lpm_eta]))


def test_a_dream_goes_on_as_is_expected_of_the_state_led_to(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Spied(monkeypatch, 0.0)
    assert x.goes_on.std() > 0
    torch.testing.assert_close(x.cont, x.goes_on)


@pytest.mark.parametrize("extrinsic", [1.0, 2.5, 0.0])
def test_a_dream_pays_for_going_blind(monkeypatch: pytest.MonkeyPatch, extrinsic: float) -> None:
    def close_at_times(agent: Agent) -> None:
        gate = agent.world.rssm.gate
        assert gate is not None
        monkeypatch.setattr(gate, "look", lambda deter, _: (deter[..., 0] > 0).float())
        agent.behavior.range.high.fill_(30.0)
        agent.behavior.range.low.fill_(-10.0)

    x = Spied(monkeypatch, 0.0, extrinsic=extrinsic, prepare=close_at_times)
    blind = (x.feat[1:, :, 0] <= 0).float()
    assert 0 < blind.mean() < 1
    price = x.agent.cfg.sight * 40.0 / len(x.reward)
    assert x.agent.cfg.sight > 0
    torch.testing.assert_close(x.reward, extrinsic * x.extrinsic - price * blind * (extrinsic > 0))
    torch.testing.assert_close(x.metrics["dream/blind"], blind.mean())


@pytest.mark.parametrize("lpm_eta", [0.0, 0.3])
def test_the_price_of_going_blind_does_not_feed_on_itself(monkeypatch: pytest.MonkeyPatch, lpm_eta: float) -> None:
    """The returns contain it: it is measured by no more than the dream's own rewards and bonuses could add up to."""

    def blown_up(agent: Agent) -> None:
        gate = agent.world.rssm.gate
        assert gate is not None
        monkeypatch.setattr(gate, "look", lambda deter, _: torch.zeros_like(deter[..., 0]))
        agent.behavior.range.high.fill_(1e9)

    x = Spied(monkeypatch, lpm_eta, prepare=blown_up)
    reward = x.extrinsic + lpm_eta * x.bonus
    most = reward.abs().max() / (1 - x.agent.cfg.behavior.gamma)
    torch.testing.assert_close(x.reward, reward - x.agent.cfg.sight * most / len(x.reward))


def test_where_nothing_is_declined_sight_has_no_price(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Spied(monkeypatch, 0.0)
    assert torch.equal(x.reward, x.extrinsic)


def test_dreams_start_from_replayed_states_that_an_end_has_not_already_met(monkeypatch: pytest.MonkeyPatch) -> None:
    x = Spied(monkeypatch, 1.0, starts=1000)
    assert x.reward.shape == (3, 12), "never more dreams than replayed states"
    assert int((~x.alive).sum()) == int(x.batch.is_terminal.sum()) == 1
    states = torch.cat([x.taught[0].feat.flatten(0, 1), x.taught[0].next_feat.flatten(0, 1)])
    places = (x.feat[0].unsqueeze(1) == states.unsqueeze(0)).all(-1)
    assert places.any(1).all(), "every dream starts in a replayed state"
    ended = x.taught[0].next_feat[-1, -1]
    assert torch.equal((x.feat[0] == ended).all(-1), ~x.alive), "and the one that ended is the one marked"


def test_curiosity_sees_each_replayed_step_once_and_knows_where_an_episode_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = Spied(monkeypatch, 1.0)
    (t,) = x.taught
    assert torch.equal(t.mask, ~x.batch.is_first[:, 1:])
    assert not t.mask.all()
    assert torch.equal(t.action, x.batch.action[:, 1:]), "the action that led from each state to the next"
    assert torch.equal(t.feat[:, 1:], t.next_feat[:, :-1])
    assert t.error is not None
    assert t.error.shape == t.mask.shape
    assert t.target is None, "lpm does without pictures"
    assert not any(y.requires_grad for y in (t.feat, t.action, t.next_feat, t.error))


def test_bonus_metrics_leave_borders_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A border is no transition: its false error enters no figure."""
    agent, batch = make_agent("lpm_guide"), random_batch()
    huge = torch.where(batch.is_first[:, 1:], 1e6, 2.0)
    monkeypatch.setattr(agent.curiosity, "reward", lambda t: huge if t.feat.shape[:-1] == huge.shape else huge[:1, :1])
    metrics = agent.update(batch)
    for name in ("bonus/mean", "bonus/tv_on", "bonus/tv_off"):
        assert float(metrics[name]) == 2.0


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [SPEC, DISCRETE])
def test_bf16_keeps_weights_in_fp32_and_agrees_with_it(spec: ActionSpec) -> None:
    batch = random_batch(spec)
    full, half = (Agent(CONFIG, spec, bf16=bf16) for bf16 in (False, True))
    a, b = full.update(batch), half.update(batch)
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in half.parameters())
    assert float(b["loss/recon"]) != float(a["loss/recon"])
    for name in ("loss/recon", "loss/dyn", "loss/reward", "loss/cont", "loss/critic"):
        assert abs(float(b[name]) / float(a[name]) - 1) < 0.05, name


# --- what goes where --------------------------------------------------------------------------------------------------


def told_to_behavior(agent: Agent, batch: Batch | None = None) -> dict[str, Any]:
    """What an update hands to the loss of actor and critic, and its metrics."""
    said: dict[str, Any] = {}
    loss = agent.behavior.loss

    def spy(feat: Tensor, sampled: Tensor, reward: Tensor, *rest: Any, steady: Tensor, **more: Any) -> Any:
        said.update(feat=feat, sampled=sampled, reward=reward, steady=steady)
        return loss(feat, sampled, reward, *rest, steady=steady, **more)

    agent.behavior.loss = spy  # type: ignore[method-assign]
    return said | {"metrics": agent.update(batch or random_batch())}


def test_the_slow_critic_is_asked_of_the_states_acted_in() -> None:
    agent = make_agent()
    nn.init.normal_(agent.behavior.critic.slow[-1].weight)
    agent.behavior.critic.follow = lambda: None  # type: ignore[method-assign]
    said = told_to_behavior(agent)
    torch.testing.assert_close(said["steady"], agent.behavior.critic.steady(said["feat"][:-1]))


def test_the_slow_critic_follows_what_was_learned_of_this_batch() -> None:
    agent = make_agent()
    agent.behavior.critic.rate = 1.0
    agent.update(random_batch())
    assert equal(agent.behavior.critic.slow.state_dict(), agent.behavior.critic.net.state_dict())


def test_the_actor_learns_from_what_it_drew_and_not_from_what_was_clipped() -> None:
    agent = make_agent()
    agent.behavior.actor.net[-1].bias.data.fill_(3.0)
    assert (told_to_behavior(agent)["sampled"].abs() > 1).any()


def test_each_part_learns_with_its_own_settings() -> None:
    cfg = replace(CONFIG, world_lr=0.1, actor_lr=0.2, critic_lr=0.3, curiosity_lr=0.4)
    agent = Agent(cfg, SPEC)
    groups = dict(zip(agent.learned, agent.optimizer.param_groups, strict=True))
    assert {name: group["lr"] for name, group in groups.items()} == {
        "world": 0.1, "actor": 0.2, "critic": 0.3, "curiosity": 0.4
    }  # fmt: skip
    assert [group["betas"] for group in groups.values()] == [(0.9, 0.95)] + [(0.9, 0.999)] * 3
    assert {group["eps"] for group in groups.values()} == {1e-5}
    parts = {"world": agent.world, "actor": agent.behavior.actor, "critic": agent.behavior.critic.net}
    for name, part in parts.items():
        own = {id(p) for p in part.parameters()}
        assert all(id(p) in own for p in groups[name]["params"])


def test_the_bonus_before_the_tv_is_that_of_the_frame_led_to() -> None:
    agent, batch = make_agent("lpm_guide"), random_batch()
    paid = torch.arange(batch.reward[:, 1:].numel(), dtype=torch.float32).reshape(batch.reward[:, 1:].shape)

    def reward(t: Transition) -> Tensor:
        return paid if t.feat.shape[:-1] == paid.shape else paid[:1, :1]

    agent.curiosity.reward = reward  # type: ignore[method-assign]
    metrics = agent.update(batch)
    mask, on = ~batch.is_first[:, 1:], batch.tv_on[:, 1:]
    torch.testing.assert_close(metrics["bonus/tv_on"], paid[mask & on].mean())
    torch.testing.assert_close(metrics["bonus/tv_off"], paid[mask & ~on].mean())


def test_how_much_is_looked_at_is_told_for_tv_and_rest_apart() -> None:
    agent, batch = make_agent(), random_batch()
    gate = agent.world.rssm.gate
    gate.active.fill_(1.0)
    gate.threshold.fill_(-1e9)  # shut, but for frames that open an episode
    opens = torch.zeros_like(batch.is_first)
    opens[:, ::2] = True
    metrics = agent.update(batch._replace(is_first=opens, tv_on=opens))
    assert float(metrics["look/tv_on"]) == 1.0
    assert float(metrics["look/tv_off"]) < 1e-3


def test_the_reward_of_dreams_that_is_told_is_the_tasks_alone() -> None:
    agent = make_agent("lpm_guide", lpm_eta=10.0)
    nn.init.normal_(agent.world.reward.net[-1].weight, std=0.1)
    told: list[Tensor] = []
    agent.world.reward.register_forward_hook(lambda _, __, answer: told.append(answer))
    metrics = agent.update(random_batch())
    torch.testing.assert_close(metrics["dream/reward"], told[-1].mean().detach())


def test_dreams_start_anywhere_and_nowhere_twice() -> None:
    agent = make_agent()
    agent.starts = 4
    drawn = [agent._noise(agent.uniform(agent.update_chances(2, 6)), 2, 6).starts for _ in range(40)]
    assert all(len(set(starts.tolist())) == 4 for starts in drawn)
    assert set(torch.cat(drawn).tolist()) == set(range(12))


def test_latents_are_dead_that_are_of_one_class_in_every_frame() -> None:
    agent, lead = taught(make_agent(), some_batches(1)), (4, 6)
    rssm = agent.cfg.world.rssm
    agent.world.rssm.post_out.bias.data.view(rssm.stoch, rssm.classes)[: rssm.stoch // 2, 0] = 1e4
    lesson = agent.world.watch(random_batch(lead=lead), torch.zeros(*lead, rssm.stoch, rssm.classes))
    classes = lesson.latents.stoch.reshape(-1, rssm.stoch, rssm.classes).argmax(-1)
    dead = [len(set(column.tolist())) == 1 for column in classes.T]
    assert 0 < sum(dead) < len(dead)
    assert float(agent._health(lesson)["health/dead_latents"]) == pytest.approx(sum(dead) / len(dead))


def test_the_kl_that_is_told_is_not_that_above_the_free_nats() -> None:
    agent, batch = taught(make_agent(), some_batches(1)), random_batch()
    lesson = agent.world.watch(batch, torch.zeros(agent._noise_shapes(*batch.reward.shape).world))
    low = lesson._replace(kl=torch.linspace(0.0, 0.5, lesson.kl.numel()).reshape(lesson.kl.shape))
    assert float(agent._health(low)["health/kl"]) == pytest.approx(0.25)


def test_where_all_frames_show_the_tv_all_of_the_reconstruction_is_spent_on_it() -> None:
    batch = random_batch()
    metrics = make_agent().update(batch._replace(tv_on=torch.ones_like(batch.tv_on)))
    assert float(metrics["loss/recon_tv_share"]) == 1.0

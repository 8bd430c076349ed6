"""The agent: world model, curiosity and behavior in one. ``act`` chooses, ``update`` learns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dreamer_lpm.behavior import Behavior, BehaviorConfig
from dreamer_lpm.capture import Captured
from dreamer_lpm.curiosity import (
    CuriosityConfig,
    Dims,
    IntrinsicReward,
    Transition,
    build_curiosity,
    needs_earlier,
    reads_embeddings,
    reads_pictures,
)
from dreamer_lpm.machine import all_at_once, at_once, lanes
from dreamer_lpm.nets import Kept, gumbel, masked_mean, one_hot
from dreamer_lpm.types import ActionSpec, Batch
from dreamer_lpm.world import Latent, Lesson, Losses, WorldConfig, WorldModel

_DREAMS = 256  # at a time on a CPU: parts that two lanes can share, and large enough for its products
Policy = Literal["sample", "mode", "random"]


@dataclass(frozen=True)
class AgentConfig:
    """Everything that shapes the agent and how it learns."""

    world: WorldConfig = field(default_factory=WorldConfig)
    behavior: BehaviorConfig = field(default_factory=BehaviorConfig)
    bonus: CuriosityConfig = field(default_factory=CuriosityConfig)
    curiosity: str = "lpm"
    """Which bonus, or a weighted sum such as lpm_dual+0.5*disagreement.
    There are none, prediction_error, icm, rnd, disagreement, ama, lbs, gamma_progress,
    lpm, lpm_guide, lpm_dual, lpm_paired and lpm_optimistic."""
    lpm_eta: float = 1.0
    """Strength of curiosity: reward += lpm_eta * bonus. Larger is more curious, smaller more task-driven, 0 is off."""
    extrinsic: float = 1.0
    """Weight of the task's reward in dreams; 0 leaves curiosity alone (reward-free)."""
    sight: float = 0.5
    """Price of going blind, where there is a task: of states whose frame the world model would decline to look at.
    Where nothing is declined it changes nothing.
    A dream that is blind from end to end pays this share of the returns' range, and blindness that goes on pays on."""
    world_lr: float = 3e-4
    """Learning rate of the world model."""
    actor_lr: float = 1e-4
    """Learning rate of the actor."""
    critic_lr: float = 1e-4
    """Learning rate of the critic."""
    curiosity_lr: float = 1e-3
    """Learning rate of the bonus's own networks."""
    clip: float = 100.0
    """Largest gradient norm of the world model, and of actor, critic and curiosity each."""


class Carry(NamedTuple):
    """What the agent remembers between steps: its latent (N, ...) and the action (N, A) that it chose."""

    latent: Latent
    action: Tensor


class Felt(NamedTuple):
    """What the world model felt in the last update, detached: for whoever measures, never for what learns."""

    replayed: Tensor  # (B, T, F) of the replayed frames
    dreamed: Tensor  # (H, B', F) of the states that B' dreams of H steps went through, their start left out


class Noise(NamedTuple):
    """What chance decides in one update."""

    world: Tensor  # (B, T, S, C) Gumbel, for the posterior's samples
    starts: Tensor  # (B',) which of the B*T replayed states dreams start from, each once
    dream: Tensor  # (H, B', S, C) Gumbel, for the prior's samples
    policy: Tensor  # (H, B', A) for the policy's


class Thought(NamedTuple):
    """What an agent makes of a batch, before it learns from it."""

    losses: dict[str, Tensor]  # each (), with its gradient
    metrics: dict[str, Tensor]  # each ()
    felt: Felt
    held: tuple[Tensor, ...] = ()  # what two streams read: to be kept until the gradients are taken


class Scored(NamedTuple):
    """Dreams, and what they are worth: B of them, H steps each."""

    feat: Tensor  # (H+1, B, F)
    sampled: Tensor  # (H, B, A) the actions as the policy drew them
    bonus: Tensor  # (H, B) on entering states 1..H, as all that follows
    extrinsic: Tensor  # (H, B) the task's reward
    blind: Tensor  # (H, B) in [0, 1]
    cont: Tensor  # (H, B) in [0, 1], whether the episode goes on
    steady: Tensor  # (H, B) what the slow critic expects of the states acted in


class Parts(NamedTuple):
    """What an agent is made of."""

    world: WorldModel
    behavior: Behavior
    curiosity: IntrinsicReward
    earlier: Kept | None  # the world model some updates ago, for a bonus that needs it


def build_parts(cfg: AgentConfig, spec: ActionSpec, size: int = 64) -> Parts:
    """The networks with their initial weights, drawn from torch's global generator."""
    world = WorldModel(cfg.world, spec, size)
    feat_size = world.rssm.feat_size
    behavior = Behavior(cfg.behavior, feat_size, spec)
    curiosity = build_curiosity(cfg.curiosity, cfg.bonus, Dims(feat_size, spec.size))
    earlier = Kept(world, cfg.bonus.rate) if needs_earlier(curiosity) else None
    return Parts(world, behavior, curiosity, earlier)


def shapes(cfg: AgentConfig, spec: ActionSpec) -> dict[str, torch.Size]:
    """Name and shape of everything in an agent's ``state_dict``, found without taking any memory for it."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        parts = build_parts(cfg, spec)._asdict()
    there = {name: part.state_dict() for name, part in parts.items() if part is not None}
    return {f"{name}.{key}": x.shape for name, tensors in there.items() for key, x in tensors.items()}


class Agent(nn.Module):
    """Joins the parts.

    All randomness comes from ``generator``, which is part of the state that survives a restart. ``felt`` holds the
    features of the last update, and is no part of that state.
    """

    felt: Felt
    extrinsic: Tensor
    eta: Tensor

    def __init__(
        self,
        cfg: AgentConfig,
        spec: ActionSpec,
        *,
        seed: int = 0,
        size: int = 64,
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ):
        super().__init__()
        self.cfg, self.spec = cfg, spec
        self.device = torch.device(device)
        self.bf16 = bf16
        self.starts = cfg.behavior.starts  # of dreams, in an update
        self.fused = False  # whether parts of an update are compiled (fusing.py)
        with torch.random.fork_rng(devices=[]):  # the layers' initial weights, without touching the global generators
            torch.default_generator.manual_seed(seed)  # the CPU's; torch.manual_seed seeds those of all devices
            self.world, self.behavior, self.curiosity, self.earlier = build_parts(cfg, spec, size)
        # Tensors, so that agents who weigh the two otherwise can still learn as one (flock.py).
        self.register_buffer("extrinsic", torch.tensor(float(cfg.extrinsic)), persistent=False)
        self.register_buffer("eta", torch.tensor(float(cfg.lpm_eta)), persistent=False)
        self.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        parts: list[tuple[str, nn.Module, float]] = [
            ("world", self.world, cfg.world_lr),
            ("actor", self.behavior.actor, cfg.actor_lr),
            ("critic", self.behavior.critic.net, cfg.critic_lr),
            ("curiosity", self.curiosity, cfg.curiosity_lr),
        ]
        # Only parts with something to learn: the bonus "none" has no parameters.
        groups = [(name, p, lr) for name, part, lr in parts if (p := [x for x in part.parameters() if x.requires_grad])]
        self.learned = {name: p for name, p, _ in groups}
        # The first frames' huge errors must not set the step size for the next thousand updates, as Adam's usual 0.999
        # lets them: with it the encoder took off after more than 500 updates, with 0.95 after 250.
        betas = {"world": (0.9, 0.95)}
        self.optimizer = torch.optim.Adam(
            [{"params": p, "lr": lr, "betas": betas.get(name, (0.9, 0.999))} for name, p, lr in groups],
            eps=1e-5,
            fused=True,
            capturable=self.device.type == "cuda",  # may be part of a CUDA graph
        )

    def begin(self, num_envs: int) -> Carry:
        """The carry before anything was seen."""
        latent = self.world.rssm.initial((num_envs,), self.device)
        return Carry(latent, torch.zeros(num_envs, self.spec.size, device=self.device))

    @torch.no_grad()
    def act(
        self,
        carry: Carry,
        row: Mapping[str, np.ndarray],
        policy: Policy = "sample",
        recorded: Captured[Carry] | None = None,
    ) -> Carry:
        """See one row (obs (N, 64, 64, 3), action (N, A) that led to it, is_first (N,)) and choose the next action.

        ``recorded``: what :meth:`acting` made for this policy, to be used again at each step of as many envs.
        """
        obs, action, first = (torch.as_tensor(row[k], device=self.device) for k in ("obs", "action", "is_first"))
        count = self.chances(len(obs))
        uniform = torch.zeros(count, device=self.device) if policy == "mode" else self.uniform(count)
        if recorded is None:
            return self.react(carry.latent, obs, action, first, policy, uniform)
        return recorded(**carry.latent._asdict(), obs=obs, action=action, is_first=first, uniform=uniform)

    def acting(self, policy: Policy) -> Captured[Carry]:
        """``react`` with this policy, to be recorded on CUDA."""

        def see(*, deter: Tensor, stoch: Tensor, **seen: Tensor) -> Carry:
            return self.react(Latent(deter, stoch), policy=policy, **seen)

        return Captured(see, self.device)

    def chances(self, num_envs: int) -> int:
        """How many random numbers an act takes."""
        rssm = self.cfg.world.rssm
        return num_envs * (rssm.stoch * rssm.classes + self.spec.size)

    def uniform(self, count: int) -> Tensor:
        """The next ``count`` random numbers of this agent, in [0, 1). All chance is a function of them."""
        return torch.rand(count, generator=self.generator, device=self.device)

    @torch.no_grad()
    def react(
        self, latent: Latent, obs: Tensor, action: Tensor, is_first: Tensor, policy: Policy, uniform: Tensor
    ) -> Carry:
        """``act`` as a function of tensors on the device. ``uniform``: as many random numbers as ``chances`` says."""
        n, rssm = len(obs), self.cfg.world.rssm
        for_latent, for_policy = torch.split(uniform, [n * rssm.stoch * rssm.classes, n * self.spec.size])
        noise = None if policy == "mode" else gumbel(for_latent.reshape(n, rssm.stoch, rssm.classes))
        with self.autocast():
            seen = self.world.rssm.observe_step(latent, action, self.world.encoder(obs), is_first, noise)
            latent = Latent(seen.deter.float(), seen.stoch.float())
            return Carry(latent, self._choose(latent.feat, policy, for_policy.reshape(n, self.spec.size)))

    def _choose(self, feat: Tensor, policy: Policy, uniform: Tensor) -> Tensor:
        actor = self.behavior.actor
        if policy == "mode":
            return actor.mode(feat)
        if policy == "sample":
            return actor.sample(feat, actor.noise(uniform))[0]
        if policy != "random":
            raise ValueError(f"policy must be mode, sample or random, not {policy!r}")
        return one_hot(uniform.argmax(-1), self.spec.size) if self.spec.is_discrete else uniform * 2 - 1

    def autocast(self) -> torch.autocast:
        """bf16 where asked for."""
        # On a CPU without its cache of cast weights: two threads would share it, and empty it for each other, so that
        # gradients were summed before or after their cast as it came.
        cache = self.device.type != "cpu"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=cache)

    def update_chances(self, batch: int, length: int) -> int:
        """How many random numbers an update from ``batch`` sequences of ``length`` steps takes."""
        return sum(math.prod(shape) for shape in self._noise_shapes(batch, length))

    def _noise_shapes(self, batch: int, length: int) -> Noise:
        rssm, cfg = self.cfg.world.rssm, self.cfg.behavior
        code, dreams = (rssm.stoch, rssm.classes), (cfg.horizon, min(self.starts, batch * length))
        shapes = ((batch, length, *code), (batch * length,), (*dreams, *code), (*dreams, self.spec.size))
        return Noise(*(torch.Size(shape) for shape in shapes))  # type: ignore[arg-type]

    def _noise(self, uniform: Tensor, batch: int, length: int) -> Noise:
        shapes = self._noise_shapes(batch, length)
        pieces = torch.split(uniform, [math.prod(shape) for shape in shapes])
        world, order, dream, policy = (x.reshape(tuple(shape)) for x, shape in zip(pieces, shapes, strict=True))
        starts = order.argsort()[: self.starts]
        return Noise(gumbel(world), starts, gumbel(dream), self.behavior.actor.noise(policy))

    def update(
        self, batch: Batch, uniform: Tensor | None = None, forward: Callable[[Batch, Tensor], Thought] | None = None
    ) -> dict[str, Tensor]:
        """One step of learning everything from one batch. Returns metrics as tensors () that stay on the device.

        It is a function of ``batch`` and ``uniform``, as many random numbers as ``update_chances`` says (drawn here if
        they are not given), with static shapes and without a look at any value: it can be recorded once and replayed.
        ``forward``: in place of this agent's own, one whose gradients are those of several processes (team.py).
        """
        uniform = self.uniform(self.update_chances(*batch.reward.shape)) if uniform is None else uniform
        self.optimizer.zero_grad(set_to_none=True)
        with lanes(self.device) as count:
            thought = self._learn(batch, uniform, count) if forward is None else _taught(forward(batch, uniform))
            norms = {
                f"grad/{name}": nn.utils.clip_grad_norm_(params, self.cfg.clip) for name, params in self.learned.items()
            }
            self.optimizer.step()
            self.behavior.critic.follow()
        self.felt = thought.felt
        return {**{f"loss/{k}": v for k, v in thought.losses.items()}, **norms, **thought.metrics}

    def _learn(self, batch: Batch, uniform: Tensor, lanes: int) -> Thought:
        """``forward`` and its gradients, side by side where there are two lanes."""
        noise = self._noise(uniform, *batch.reward.shape)
        lesson = self._watch(batch, noise, lanes)

        def teach_the_world() -> tuple[Losses, dict[str, Tensor]]:
            losses = self._world_losses(batch, lesson)
            return losses, _backward(_means(losses))

        # No weight moves before both are done, and neither's gradients are the other's.
        (losses, world), thought = at_once(
            teach_the_world, lambda: _taught(self._think(batch, lesson, noise, lanes), lanes), lanes, self.device
        )
        metrics = {**thought.metrics, **_recon_share(batch, losses)}
        return thought._replace(losses={**world, **thought.losses}, metrics=metrics)

    def forward(self, batch: Batch, uniform: Tensor, fork: bool = False) -> Thought:
        """Everything of an update before its gradients. Buffers move (running means, queues), weights do not.

        ``fork``: on CUDA its two halves, and later their gradients, go side by side. Not for gradients that are taken
        up as they come (DistributedDataParallel), which wait for one stream.
        """
        noise = self._noise(uniform, *batch.reward.shape)
        lesson = self._watch(batch, noise)
        losses, thought = at_once(
            lambda: self._world_losses(batch, lesson),
            lambda: self._think(batch, lesson, noise),
            1,
            self.device if fork else None,
        )
        metrics = {**thought.metrics, **_recon_share(batch, losses)}
        held = tuple(x.detach() for x in (*lesson.latents, *lesson[1:])) if fork else ()
        return Thought({**_means(losses), **thought.losses}, metrics, thought.felt, held)

    def _watch(self, batch: Batch, noise: Noise, lanes: int = 1) -> Lesson:
        with self.autocast():
            return self.world.watch(batch, noise.world, lanes)

    def _world_losses(self, batch: Batch, lesson: Lesson) -> Losses:
        with self.autocast():
            return self.world.losses(batch, lesson)

    def _think(self, batch: Batch, lesson: Lesson, noise: Noise, lanes: int = 1) -> Thought:
        """Of all that learns from the world model without teaching it."""
        with self.autocast():
            error, gate = self.world.foresee(batch, lesson)
            seen = self._transitions(batch, lesson, error)
            if self.earlier is not None:
                seen = self._compare(seen, batch, noise.world)
            curiosity = self.curiosity.loss(seen)
            behavior, dream_metrics, dreamed = self._dream(batch, lesson.latents.detach(), noise, lanes)
        with torch.no_grad():
            bonus = self.curiosity.reward(seen.unseen())
        metrics = {**dream_metrics, **_tv_metrics(batch, lesson, bonus, seen.mask), **self._health(lesson)}
        felt = Felt(lesson.latents.feat.detach().float(), dreamed.detach().float())
        return Thought({**_means(gate), **curiosity, **behavior}, metrics, felt)

    @torch.no_grad()
    def _health(self, lesson: Lesson) -> dict[str, Tensor]:
        """Signs of life: KL in nats; shares in [0, 1] of latents of one class in the whole batch, and of the policy's
        randomness.
        """
        rssm = self.cfg.world.rssm
        classes = lesson.latents.stoch.reshape(-1, rssm.stoch, rssm.classes).argmax(-1)
        return {
            "health/kl": lesson.kl.mean(),
            "health/dead_latents": (classes == classes[0]).all(0).float().mean(),
            "health/entropy": self.behavior.randomness,
        }

    def _transitions(self, batch: Batch, lesson: Lesson, error: Tensor) -> Transition:
        """The replayed steps as curiosity sees them: state t, the action that led to t+1, state t+1. (B, T-1).

        error (B, T) of the frames that had been expected.
        """
        latents = lesson.latents.detach()
        feat = latents.feat.float()
        steps = Transition(
            feat=feat[:, :-1], action=batch.action[:, 1:], next_feat=feat[:, 1:], mask=~batch.is_first[:, 1:],
            kl=lesson.kl[:, 1:], error=error[:, 1:],
        )  # fmt: skip
        pictures, embeds = reads_pictures(self.curiosity), reads_embeddings(self.curiosity)
        if not (pictures or embeds):
            return steps
        expected = self.world.predict(latents)[:, 1:]
        if pictures:
            seen = batch.obs.float() / 255
            steps = replace(steps, target=seen[:, 1:], predicted=expected, frame=seen[:, :-1])
        if embeds:
            with torch.no_grad():
                embed = self.world.encoder(expected * 255)
            steps = replace(steps, target_embed=lesson.embeds[:, 1:], predicted_embed=embed)
        return steps

    @torch.no_grad()
    def _compare(self, steps: Transition, batch: Batch, noise: Tensor) -> Transition:
        """The steps with the errors of the world model some updates ago: of the same frames, with the same chance."""
        assert self.earlier is not None
        self.earlier.follow(self.world)
        world = self.earlier.network
        assert isinstance(world, WorldModel)
        before = world.error(world.watch(batch, noise))[:, 1:]
        return replace(steps, error_before=before, lag=self.earlier.lag.expand(before.shape))

    def _dream(
        self, batch: Batch, latents: Latent, noise: Noise, lanes: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Imagine from some of the replayed states and score the dream.

        reward = cfg.extrinsic * task's reward - price of going blind + cfg.lpm_eta * bonus

        The price comes from the returns' range, in which ``extrinsic`` is already; without a task (0) there is none.

        A dream knows no difference between seeing and being blind: it sees no frame either way. So nothing in it would
        keep the policy from an action that blinds, and by chance it learns to take it for good.
        """
        pick = noise.starts
        # In as many parts, whether side by side or not, so that the bits are the same.
        parts = math.ceil(len(pick) / _DREAMS) if self.device.type == "cpu" else 1
        chances = zip(pick.chunk(parts), noise.dream.chunk(parts, 1), noise.policy.chunk(parts, 1), strict=True)
        dreams = all_at_once([partial(self._dream_of, latents, *chance) for chance in chances], lanes)
        dream = Scored(*(torch.cat(x, 1) for x in zip(*dreams, strict=True))) if parts > 1 else dreams[0]
        price = self._price(self.extrinsic * dream.extrinsic + self.eta * dream.bonus)
        priced = self.extrinsic * dream.extrinsic - price * dream.blind * (self.extrinsic > 0)
        reward = priced + self.eta * dream.bonus
        alive = ~batch.is_terminal.flatten()[pick]
        losses = self.behavior.loss(
            dream.feat, dream.sampled, reward, dream.cont, alive, steady=dream.steady, lanes=lanes
        )
        metrics = {
            "dream/reward": dream.extrinsic.mean(),
            "dream/bonus": dream.bonus.mean(),
            "dream/blind": dream.blind.mean(),
            "dream/return_range": self.behavior.range.scale,
        }
        return {k: v.mean() for k, v in losses.items()}, metrics, dream.feat[1:]

    def _price(self, reward: Tensor) -> Tensor:
        """Of a blind step: cfg.sight times the range of the returns, spread over the dream.

        reward (H, B) is the dream's without it. The range counts for at most what such rewards could ever add up to: it
        contains the price, and where blindness outlasts the dream the two would feed on each other without end.
        """
        most = reward.abs().amax() / max(1 - self.cfg.behavior.gamma, 1e-6)
        return self.cfg.sight * torch.minimum(self.behavior.range.scale, most.clamp(min=1)) / len(reward)

    @torch.no_grad()
    def _dream_of(self, latents: Latent, pick: Tensor, code: Tensor, policy: Tensor) -> Scored:
        """The dreams from those of the replayed states: pick (B,), noise of the codes and of the policy (H, B, ...)."""
        start = Latent(latents.deter.flatten(0, 1)[pick], latents.stoch.flatten(0, 1)[pick])
        world = self.world
        dream = world.rssm.imagine(start, self.behavior.actor.sample, code, policy)
        mask = torch.ones(dream.action.shape[:-1], dtype=torch.bool, device=self.device)
        before, after = dream.feat[:-1], dream.feat[1:]
        bonus = self.curiosity.reward(Transition(before, dream.action, after, mask))
        return Scored(
            dream.feat, dream.sampled, bonus, world.reward(after), 1 - world.look(after), world.cont(after),
            self.behavior.critic.steady(before),
        )  # fmt: skip


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Their sum, (), in fp32."""
    return torch.stack([x.float() for x in losses.values()]).sum()


def _means(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.mean() for k, v in losses.items()}


def _backward(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the gradients of their sum; the losses () themselves, detached."""
    if losses:
        torch.autograd.backward(total(losses))
    return {k: v.detach() for k, v in losses.items()}


def _taught(thought: Thought, lanes: int = 1) -> Thought:
    """With the gradients of its losses taken."""
    if lanes < 2:
        return thought._replace(losses=_backward(thought.losses))
    # The actor's gradients are nobody else's, and about half of the work.
    actor = {k: v for k, v in thought.losses.items() if k == "actor"}
    rest = {k: v for k, v in thought.losses.items() if k != "actor"}
    at_once(lambda: _backward(rest), lambda: _backward(actor), lanes)
    return thought._replace(losses={k: v.detach() for k, v in thought.losses.items()})


@torch.no_grad()
def _tv_metrics(batch: Batch, lesson: Lesson, bonus: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """How the agent fares on TV frames and off them. Nothing but this and the next reads ``tv_on``."""
    tv_on = batch.tv_on
    return {
        "bonus/mean": masked_mean(bonus, mask),
        "bonus/tv_on": _mean_or_nan(bonus, mask & tv_on[:, 1:]),
        "bonus/tv_off": _mean_or_nan(bonus, mask & ~tv_on[:, 1:]),
        "look/tv_on": _mean_or_nan(lesson.look, tv_on),
        "look/tv_off": _mean_or_nan(lesson.look, ~tv_on),
    }


@torch.no_grad()
def _recon_share(batch: Batch, losses: Losses) -> dict[str, Tensor]:
    """The share that TV frames have in the reconstruction loss, in [0, 1]."""
    recon = losses["recon"]
    return {"loss/recon_tv_share": (recon * batch.tv_on).sum() / recon.sum()}


def _mean_or_nan(x: Tensor, mask: Tensor) -> Tensor:
    """A batch without such frames says nothing of them: NaN, which the logger leaves out of its averages."""
    return torch.where(mask.any(), masked_mean(x, mask), torch.nan)

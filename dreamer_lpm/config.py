"""Everything that defines a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.curiosity import MOST_WEIGHT, terms
from dreamer_lpm.envs import EnvConfig
from dreamer_lpm.fusing import cannot_fuse
from dreamer_lpm.machine import Precision, pick_device, pick_precision, pick_threads
from dreamer_lpm.noisy_tv import TVSpec
from dreamer_lpm.settings import from_plain, to_plain
from dreamer_lpm.types import UserError
from dreamer_lpm.world import RSSMConfig

MOST_CLASSES = 256  # the replay keeps the class of a latent in a byte
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run. On the command line each field is a flag; in a config file each is a key."""

    steps: int = 200_000
    """Env steps to train for (with action repeat, an agent step is several)."""
    env_name: str = "Pendulum-v1"
    """Any Gymnasium id whose env can draw itself."""
    noisy_tv: bool = False
    """Put the Noisy TV in front of the env."""
    tv_images: str = "auto"
    """What the TV shows: cifar10, photos, static, digits, folder:PATH or auto.
    auto: CIFAR-10 if it is on disk or its server answers within 5 seconds, else photos."""
    tv: TVSpec = field(default_factory=TVSpec)
    """When, where and how the TV shows it."""
    data_dir: Path | None = None
    """Where downloaded pictures are kept; None: in the user's cache folder."""
    seed: int = 0
    """Seed of everything: env, TV, replay, networks."""
    batch_size: int = 16
    """B, sequences per update."""
    seq_length: int = 16
    """T, agent steps per sequence."""
    update_every: float = 2.5
    """Env steps between two updates."""
    prefill: int = 1_000
    """Env steps of random actions before the first update."""
    replay_capacity: int = 200_000
    """Agent steps that the replay holds, at most (13.3 kB each with the preset tiny)."""
    num_envs: int = 1
    """N, envs stepped side by side."""
    env_workers: int = 0
    """Processes that step the envs, and may die or hang without harm to the run; 0 steps them in the run's own."""
    action_repeat: int | None = None
    """Env steps per agent step; None: 2 for Pendulum, else 1."""
    time_limit: int | None = None
    """Env steps after which an episode is cut; None: the env's own limit, or 10,000 where it has none."""
    fast_render: bool = False
    """Take the pictures from a table, much faster and almost equal to the env's own (Pendulum and the MountainCars)."""
    agent: Annotated[AgentConfig, tyro.conf.arg(name="")] = field(default_factory=AgentConfig)
    device: Device = "auto"
    """Where to learn: auto takes CUDA, then MPS, then CPU."""
    precision: Precision | Literal["auto"] = "auto"
    """Arithmetic of the networks: auto takes bf16 where it is faster (a CPU is timed), else fp32; tf32 is for CUDA."""
    compile: bool = False
    """Make few large kernels of many small ones (CUDA, with Triton): half a minute at the start, for long runs."""
    threads: int = 0
    """CPU threads of torch; 0 leaves it to the program (2 at most: small networks gain nothing from more)."""
    eval_every: int = 5_000
    """Env steps between evaluations; 0 evaluates only at the end."""
    eval_episodes: int = 5
    """Episodes of each evaluation; the last one plays twice as many."""
    pictures: bool = True
    """Leave pictures too: a film of an episode at each evaluation, and the curves."""
    log_every: int = 200
    """Env steps between two lines of training metrics."""
    checkpoint_every: int = 5_000
    """Env steps between checkpoints; 0: only where the run is stopped."""
    keep_checkpoints: int = 2
    """Checkpoints kept; one that is found damaged is passed over for the one before."""
    rollbacks: int = 3
    """How often a run that met a NaN or an infinity may go back to its last checkpoint, before it gives up."""
    rollback_lr: float = 0.5
    """Factor on all learning rates each time it does."""
    wandb: bool = False
    """Also log to Weights & Biases (pip install wandb)."""
    wandb_project: str = "dreamer-lpm"
    """Project there."""
    wandb_entity: str | None = None
    """Team or user there; None: the account's own choice."""
    wandb_run_name: str | None = None
    """Name of the run there; None: the run's own name."""

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_size",
            "seq_length",
            "update_every",
            "replay_capacity",
            "num_envs",
            "eval_episodes",
            "log_every",
            "keep_checkpoints",
            "rollback_lr",
        )
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("seed", "prefill", "eval_every", "checkpoint_every", "threads", "rollbacks"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}.")
        if self.tv_images != "auto" and self.tv.source not in ("auto", self.tv_images):
            raise UserError(
                f"tv_images ({self.tv_images}) and tv.source ({self.tv.source}) say two things; leave one of them out."
            )
        for name, most in (("eval_episodes", MOST_EPISODES), ("threads", MOST_THREADS)):
            if getattr(self, name) > most:
                raise UserError(f"{name} must be {most:,} or less, not {getattr(self, name)}.")
        _check_numbers(self.agent)
        _check_rssm(self.agent.world.rssm)
        _check_stages(self.agent.world.stages)
        _check_behavior(self.agent.behavior)
        if self.agent.bonus.rate > 1:
            raise UserError(f"bonus.rate must be 1 or less, not {self.agent.bonus.rate}.")
        _check_memory(self)

    def env(self, *, tv_on: bool = True) -> EnvConfig:
        """The env of this run; ``tv_on=False`` is the same with a TV that shows nothing ("sham", if it is a real one).

        Never "off" instead, which takes the button of the trigger "remote" away: the agent has an action for it.
        """
        spec = None
        if self.noisy_tv:
            images = self.tv_images if self.tv_images != "auto" else self.tv.source
            control = self.tv.control if tv_on else self.tv.control or "sham"
            spec = dataclasses.replace(self.tv, source=images, control=control)
        return EnvConfig(
            self.env_name,
            action_repeat=self.action_repeat,
            time_limit=self.time_limit,
            tv=spec,
            fast_render=self.fast_render,
        )


MOST_EPISODES, MOST_THREADS, MOST_UNITS = 10_000, 1_024, 1_000_000
"""More of them side by side, or of anything that an agent is built of, is a slip of the finger."""
ELSEWHERE = ("data_dir", "wandb", "wandb_project", "wandb_entity", "wandb_run_name")
"""Where things are kept or logged, which is no part of what a run is."""
# What may differ between a run and its continuation; anything else would make it another run.
_CHANGEABLE = {
    "steps",
    "threads",  # one or two compute the same bits
    "env_workers",  # the same rows
    "pictures",
    "eval_episodes",
    *ELSEWHERE,
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "rollbacks",
}
_LEFT: dict[str, Any] = {"device": "auto", "precision": "auto", "threads": 0, "tv_images": "auto"}
"""What may be left to the machine, and by which value."""
_NEVER_ZERO = ("world.rssm.unimix", "world.recon_knee", "behavior.unimix", "behavior.return_rate", "bonus.rate", "clip")
"""What is divided by, keeps a logarithm finite, or must move."""


def _numbers(cfg: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """The names and values of all sizes, rates and weights of a config."""
    for name, value in ((where + f.name, getattr(cfg, f.name)) for f in dataclasses.fields(cfg)):
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _check_numbers(cfg: AgentConfig) -> None:
    """Raises UserError at a size, rate or weight that no agent can have."""
    for name, value in _numbers(cfg):
        least = 1 if isinstance(value, int) else 0
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}.")
        most = MOST_UNITS if isinstance(value, int) else MOST_WEIGHT
        if value > most:
            raise UserError(f"{name} must be {most:,} or less, not {value}.")
        if value == 0 and name in _NEVER_ZERO:
            raise UserError(f"{name} must be above 0.")


def _check_memory(cfg: RunConfig) -> None:
    """Raises UserError where replay or queue cannot hold what is learned from."""
    if cfg.seq_length < 2:  # curiosity learns from what lies between two steps
        raise UserError(f"seq_length must be 2 or more, not {cfg.seq_length}.")
    held = cfg.replay_capacity // cfg.num_envs
    if held <= cfg.seq_length:
        raise UserError(
            f"A replay_capacity of {cfg.replay_capacity} holds {held} steps of each env, and a sequence needs "
            f"{cfg.seq_length + 1}: raise it to {cfg.num_envs * (cfg.seq_length + 1)}, or lower seq_length."
        )
    transitions, queue = cfg.batch_size * (cfg.seq_length - 1), cfg.agent.bonus.queue
    if queue < transitions and "lpm" in dict(terms(cfg.agent.curiosity)):
        raise UserError(f"A bonus.queue of {queue} cannot hold the {transitions} transitions of a batch; raise it.")


def _check_rssm(cfg: RSSMConfig) -> None:
    """Raises UserError at sizes and shares that make no recurrent model."""
    if cfg.deter % cfg.blocks:
        raise UserError(f"world.rssm.deter {cfg.deter} must divide into {cfg.blocks} blocks; change either.")
    if cfg.classes > MOST_CLASSES:
        raise UserError(f"world.rssm.classes must be {MOST_CLASSES} or less, not {cfg.classes}.")
    if cfg.unimix >= 1:
        raise UserError(f"world.rssm.unimix must be below 1, not {cfg.unimix}.")


def _check_stages(stages: tuple[tuple[int, int, int], ...]) -> None:
    """Raises UserError at a stage that does not shrink its picture by its stride to the pixel."""
    if not stages:
        raise UserError("world.stages must name one stage or more, each as kernel, stride and channels.")
    side = EnvConfig.size
    for number, (kernel, stride, channels) in enumerate(stages, start=1):
        stage = f"stage {number} of world.stages ({kernel} {stride} {channels})"
        if min(kernel, stride, channels) < 1:
            raise UserError(f"The kernel, stride and channels of {stage} must be 1 or more.")
        if kernel < stride or (kernel - stride) % 2:
            raise UserError(f"The kernel of {stage} must be its stride or larger by an even number.")
        if side % stride:
            raise UserError(f"The stride of {stage} must divide the {side} pixels a side that reach it.")
        side //= stride


def _check_behavior(cfg: BehaviorConfig) -> None:
    """Raises UserError at numbers that make no policy."""
    if not 0 < cfg.min_std <= cfg.max_std:
        raise UserError(
            f"behavior.min_std must be above 0 and at most behavior.max_std, {cfg.max_std}, not {cfg.min_std}."
        )
    if cfg.unimix >= 1:
        raise UserError(f"behavior.unimix must be below 1, not {cfg.unimix}.")
    for name in ("gamma", "lam", "slow_rate", "return_rate"):
        if getattr(cfg, name) > 1:
            raise UserError(f"behavior.{name} must be 1 or less, not {getattr(cfg, name)}.")


def from_flags(args: Sequence[str], base: RunConfig, program: str) -> RunConfig:
    """``base`` with what a command line says; flags are as strict as files: no NaN.

    Raises UserError; of a flag that is none, and for --help, tyro leaves by SystemExit.
    """
    cfg = tyro.cli(
        RunConfig, args=args, default=base, prog=program, description="", config=(tyro.conf.HelptextFromCommentsOff,)
    )
    return from_plain(RunConfig, to_plain(cfg))


def resumed(cfg: RunConfig, before: RunConfig) -> RunConfig:
    """The config with what it leaves to the machine as it was ``before``, when the run began.

    Raises UserError for a setting that a resumed run keeps, and that differs.
    """
    decided = {name: getattr(before, name) for name, value in _LEFT.items() if getattr(cfg, name) == value}
    cfg = dataclasses.replace(cfg, **decided)
    check_resumed(before, cfg)
    return cfg


def check_resumed(before: RunConfig, now: RunConfig) -> None:
    """Raises UserError for a setting that a resumed run keeps, and that differs from what it was ``before``."""
    for name in (f.name for f in dataclasses.fields(RunConfig)):
        kept, asked = getattr(before, name), getattr(now, name)
        if name not in _CHANGEABLE and kept != asked:
            raise UserError(
                f"A resumed run keeps its settings, and '{_differing(name, kept, asked)}' differs; leave that "
                "option out, or start a new run."
            )


def _differing(name: str, a: Any, b: Any) -> str:
    """The first setting in which they differ."""
    if not dataclasses.is_dataclass(a):
        return name
    inner = next(f.name for f in dataclasses.fields(a) if getattr(a, f.name) != getattr(b, f.name))
    return _differing(f"{name}.{inner}", getattr(a, inner), getattr(b, inner))


def settled(cfg: RunConfig) -> RunConfig:
    """The config with what was left to the machine decided, so that a resumed run computes the same bits."""
    device = pick_device(cfg.device)
    if cfg.compile and (missing := cannot_fuse(device)):
        raise UserError(f"--compile {missing}; leave it out.")
    return dataclasses.replace(
        cfg,
        device=cast(Device, device.type),
        precision=pick_precision(cfg.precision, device),
        threads=pick_threads(cfg.threads),
    )

"""A training run: its settings, everything of it that survives a restart, and the loop.

from dreamer_lpm.train import RunConfig, train
train(RunConfig(steps=10_000, noisy_tv=True), Path("runs/mine"))
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import resource
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch
import tyro
from rich.console import Console
from torch import Tensor

from dreamer_lpm import checkpoint
from dreamer_lpm.agent import Agent, AgentConfig, Carry, Felt, Policy
from dreamer_lpm.capture import Captured, Download, new_stream, upload
from dreamer_lpm.envs import EnvConfig, Envs, make_env, tv_chance
from dreamer_lpm.evaluate import Scores, evaluate, record, save_agent
from dreamer_lpm.forecast import Forecast
from dreamer_lpm.guard import FIRST_ALARM, Guard, alarms, check_finite, save_batch
from dreamer_lpm.lock import RunLock
from dreamer_lpm.machine import Precision, keep_freed_memory, pick_device, pick_precision, pick_threads, set_tf32
from dreamer_lpm.noisy_tv import ImageSource, TVImages, TVSpec, load_images
from dreamer_lpm.probe import PER_BATCH, TVProbe
from dreamer_lpm.replay import Replay
from dreamer_lpm.report.measures import BIN, escape_step, late_mean, late_tv_share
from dreamer_lpm.report.metrics import METRICS_FILE, MetricsLog, Sink, TensorBoardSink, WandbSink, read_metrics
from dreamer_lpm.report.plots import plot_run
from dreamer_lpm.report.progress import Progress
from dreamer_lpm.report.strict_json import dumps, is_sealed, sealed, write_atomically
from dreamer_lpm.report.summary import git_revision, versions, write_summary
from dreamer_lpm.report.video import episode_video
from dreamer_lpm.settings import from_plain, to_plain
from dreamer_lpm.team import Team
from dreamer_lpm.types import Batch, NotFinite, UserError
from dreamer_lpm.untrusted import check_like
from dreamer_lpm.world import Latent

Device = Literal["auto", "cpu", "cuda", "mps"]
CONFIG_FILE = "config.json"
LOG_FILE = "log.txt"  # of a run among several: what a run alone says on the screen
POLICIES: tuple[Policy, ...] = ("random", "sample")  # of training
BEST_AGENT = "agent_best.pth"
EVAL_SEED = 1_000_003  # evaluation episodes are none of the training's
# What torch, numpy and the parts of a run raise at a state that is not theirs.
_UNFIT = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError, AssertionError, AttributeError)


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
    """What the TV shows: auto (CIFAR-10 if it can be had within seconds, else photos), cifar10, photos, static, digits
    or folder:PATH."""
    tv: TVSpec = field(default_factory=TVSpec)
    """When, where and how the TV shows it."""
    data_dir: Path | None = None
    """Where downloaded pictures are kept (default: the user's cache folder)."""
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
    """Agent steps that the replay holds, at most (12.4 kB each)."""
    num_envs: int = 1
    """N, envs stepped side by side."""
    env_workers: int = 0
    """Processes that step the envs, and may die or hang without harm to the run; 0 steps them in the run's own."""
    action_repeat: int | None = None
    """Env steps per agent step (default: 2 for Pendulum, else 1)."""
    time_limit: int | None = None
    """Env steps after which an episode is cut (default: the env's own)."""
    fast_render: bool = False
    """Take the pictures from a table, much faster and almost equal to the env's own (Pendulum and the MountainCars)."""
    agent: Annotated[AgentConfig, tyro.conf.arg(name="")] = field(default_factory=AgentConfig)
    device: Device = "auto"
    """Where to learn: auto takes CUDA, then MPS, then CPU."""
    precision: Precision | Literal["auto"] = "auto"
    """Arithmetic of the networks: auto takes bf16 where the device has it in hardware; tf32 is for CUDA."""
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
    """Also log to Weights & Biases (needs the extra: pip install "dreamer-lpm[wandb]")."""
    wandb_project: str = "dreamer-lpm"
    wandb_entity: str | None = None
    wandb_run_name: str | None = None

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
        for name, value in _numbers(self.agent):
            least = 1 if isinstance(value, int) else 0
            if value < least:
                raise UserError(f"{name} must be {least} or more, not {value}.")
        rssm = self.agent.world.rssm
        if rssm.deter % rssm.blocks:
            raise UserError(f"world.rssm.deter {rssm.deter} must divide into {rssm.blocks} blocks; change either.")
        held = self.replay_capacity // self.num_envs
        if held <= self.seq_length:
            raise UserError(
                f"A replay_capacity of {self.replay_capacity} holds {held} steps of each env, and a sequence needs "
                f"{self.seq_length + 1}: raise it to {self.num_envs * (self.seq_length + 1)}, or lower seq_length."
            )

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


def _numbers(cfg: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """The names and values of all sizes, rates and weights of a config."""
    for name, value in ((where + f.name, getattr(cfg, f.name)) for f in dataclasses.fields(cfg)):
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


class Stopped(Exception):  # noqa: N818  no error: the run is saved, and can go on
    """The run was asked to stop, and is saved. ``signum`` is the signal that asked."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


@dataclass
class Tally:
    """Running counts of the training so far; plain numbers, saved as JSON."""

    updates: int = 0
    returns: list[float] = field(default_factory=lambda: [0.0])  # of each env's episode under way
    lengths: list[int] = field(default_factory=lambda: [0])
    watched: list[int] = field(default_factory=lambda: [0])  # TV steps of the episode under way
    rows: int = 0  # agent steps of all envs
    tv_rows: int = 0  # those with the TV on
    tv_bins: list[list[int]] | None = None  # [tv_rows, rows] of each 100 env steps; None: not counted from the start
    visited: list[int] | None = None  # cells of the env's grid, in order of the first visit; None: as above
    logged: int = 0  # env steps at the last line of training metrics
    evaluated: int = 0
    saved: int = 0
    best: list[float] | None = None  # env step and mean return of the best evaluation on the way
    rollbacks: int = 0
    seconds: float = 0.0  # of wall time, over all sessions
    saving_seconds: float = 0.0  # of these, to write checkpoints


class Sums:
    """Sum and count of each training metric, over the updates that gave a number for it; on the device until asked."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._pairs: Tensor | None = None  # (2, M)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take in the metrics () of one update, the same ones each time."""
        values = torch.stack([x.float() for x in metrics.values()])
        pairs = torch.stack([values.nan_to_num(), (~values.isnan()).float()])
        if self._pairs is None:
            self._names, self._pairs = list(metrics), torch.zeros_like(pairs)
        self._pairs += pairs

    def tensors(self) -> dict[str, Tensor]:
        """What is summed, where it lies."""
        return {} if self._pairs is None else {"pairs": self._pairs}

    def hold(self, tensors: dict[str, Tensor]) -> None:
        """Sum in these places from now on."""
        self._pairs = tensors.get("pairs")

    def means(self) -> dict[str, float]:
        """The mean of each, NaN where no update gave a number; then begins anew."""
        if self._pairs is None:
            return {}
        pairs = self._pairs.T.tolist()
        self._pairs.zero_()
        return {k: total / n if n else math.nan for k, (total, n) in zip(self._names, pairs, strict=True)}

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> (2,)."""
        return {} if self._pairs is None else {k: self._pairs[:, i].clone() for i, k in enumerate(self._names)}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Become what was saved."""
        self._names = list(state)
        self._pairs = torch.stack(list(state.values()), 1).to(device) if state else None


class State:
    """Everything that survives a restart, generators included."""

    def __init__(self, cfg: RunConfig, images: ImageSource | None, team: Team | None = None):
        self.cfg, self.team = cfg, team
        seeds = np.random.SeedSequence(cfg.seed).spawn(3)  # one tree: envs (and their TVs), replay, networks
        env_seed, agent_seed = (int(s.generate_state(1)[0]) for s in (seeds[0], seeds[2]))
        make = partial(make_env, cfg.env(), images=images)
        self.envs = Envs(make, cfg.num_envs, env_seed, workers=cfg.env_workers)
        self.device = pick_device(cfg.device)
        self.agent = Agent(
            cfg.agent, self.envs.action_spec, seed=agent_seed, device=self.device, bf16=cfg.precision == "bf16"
        )
        self.rng = np.random.default_rng(seeds[1])
        self.fields = self._fields()
        self.forecast = self._forecast()
        self.forecast.check_memory(self.device)
        try:
            # No more than the run can fill: a step has at most one reset beside it. A device would commit all of it.
            held = min(cfg.replay_capacity // cfg.num_envs, 2 * cfg.steps // cfg.num_envs + 2)
            self.replay = Replay(held, self.fields, cfg.num_envs, self.device)
        except RuntimeError as error:  # torch's word for memory that cannot be had
            raise UserError(
                f"A replay of {cfg.replay_capacity:,} steps does not fit into memory; lower replay_capacity."
            ) from error
        self.carry = self.agent.begin(cfg.num_envs)
        self.row: dict[str, np.ndarray] = {}
        n = cfg.num_envs
        self.tally = Tally(returns=[0.0] * n, lengths=[0] * n, watched=[0] * n, tv_bins=[], visited=[])
        feat_size = self.agent.world.rssm.feat_size
        # Of a sham too, which it can say nothing of, so that both can learn as one.
        self.probe = TVProbe(feat_size, self.device) if cfg.noisy_tv and cfg.tv.control != "off" else None
        self.sums = Sums()
        self.summed = 0
        self.guard = Guard(self.device)
        self._download = Download(self.device)
        self._chosen: Callable[[], np.ndarray] = self._download.numpy
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Whatever was recorded is recorded anew, for tensors have moved."""
        self._observe = {policy: Captured(partial(self._see, policy), self.device) for policy in POLICIES}
        self._update = Captured(self._learn, self.device)
        self._update.records &= self.team is None
        self.saved_rows = 0
        self.pieces: dict[Path, str] = {}  # of the replay on disk, with their SHA-256
        self.wandb_id: str | None = None  # of the W&B run, if there is one

    def observe(self, policy: Policy) -> None:
        """See the row, choose what to do (``action`` tells), and remember both, with the latent that came of it."""
        inputs = {
            "slot": self.replay.slot(),
            **{name: torch.from_numpy(value) for name, value in self.row.items()},
        }
        inputs = {name: upload(value, self.device) for name, value in inputs.items()}
        inputs |= {"deter": self.carry.latent.deter, "stoch": self.carry.latent.stoch}
        inputs["uniform"] = self.agent.uniform(self.agent.chances(self.cfg.num_envs))
        carry = self._observe[policy](**inputs)
        self._download.start(carry.action)
        self.observed(carry, self._download.numpy)

    def observed(self, carry: Carry, chosen: Callable[[], np.ndarray]) -> None:
        """The row was seen and is in the replay; ``chosen`` waits for the action, (N, A)."""
        self.carry, self._chosen = carry, chosen
        self.replay.added += 1

    @property
    def updates_here(self) -> int:
        """Updates since tensors last moved."""
        return self._update.calls

    def action(self) -> np.ndarray:
        """What was chosen, (N, A)."""
        return self._chosen()

    def _see(
        self,
        policy: Policy,
        *,
        slot: Tensor,
        deter: Tensor,
        stoch: Tensor,
        uniform: Tensor,
        **row: Tensor,
    ) -> Carry:
        """``observe`` as a function of tensors on the device."""
        before = Latent(deter, stoch)
        carry = self.agent.react(before, row["obs"], row["action"], row["is_first"], policy, uniform)
        rssm = self.cfg.agent.world.rssm
        classes = carry.latent.stoch.reshape(-1, rssm.stoch, rssm.classes).argmax(-1)
        self.replay.put(slot, {**row, "deter": carry.latent.deter, "stoch": classes.to(torch.uint8)})
        return carry

    def learn(self) -> None:
        """One update from one sampled batch."""
        b, t = self.cfg.batch_size, self.cfg.seq_length
        places = upload(self.replay.draw(self.rng, b, t), self.device)
        update = upload(torch.tensor(self.tally.updates), self.device)
        chances = self.team.chances(self.agent, b, t) if self.team else self.agent.update_chances(b, t)
        self._update(places=places, update=update, uniform=self.agent.uniform(chances))
        self.learned()

    def learned(self) -> None:
        """An update was made."""
        self.summed += 1
        self.tally.updates += 1

    def _learn(self, *, places: Tensor, update: Tensor, uniform: Tensor) -> None:
        """``learn`` as a function of tensors on the device; all that it changes stays where it is."""
        batch = self.replay.gather(places, self.cfg.seq_length)
        if self.team:
            metrics, batch = self.team.update(self.agent, batch, uniform)
        else:
            metrics = self.agent.update(batch, uniform)
        self.note(update, metrics, batch, self.agent.felt)

    def note(self, update: Tensor, metrics: Mapping[str, Tensor], batch: Batch, felt: Felt) -> None:
        """What is kept of an update beside what was learned."""
        self.guard.look(update, metrics, batch)
        if self.probe:
            self.probe.take(felt.replayed, batch.tv_on, felt.dreamed)
        self.sums.add(metrics)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that an update or an observation changes in place, beside the agent's."""
        probe = {"probe": self.probe.state_dict()} if self.probe else {}
        return {"replay": self.replay.data, "guard": self.guard.tensors(), "sums": self.sums.tensors(), **probe}

    def hold(self, part: str, tensors: dict[str, Tensor]) -> None:
        """Use these tensors in the places of a part's own."""
        if part == "replay":
            self.replay.data = tensors
        elif part == "probe" and self.probe:
            self.probe.hold(tensors)
        else:
            (self.guard if part == "guard" else self.sums).hold(tensors)

    def _fields(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        rssm = self.cfg.agent.world.rssm
        return {
            "obs": ((64, 64, 3), torch.uint8),
            "action": ((self.envs.action_spec.size,), torch.float32),
            "reward": ((), torch.float32),
            **dict.fromkeys(("is_first", "is_last", "is_terminal", "tv_on"), ((), torch.bool)),
            "deter": ((rssm.deter,), torch.float32),
            "stoch": ((rssm.stoch,), torch.uint8),
        }

    def _forecast(self) -> Forecast:
        row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.fields.values())
        weights = sum(x.numel() * x.element_size() for x in self.agent.state_dict().values())
        return Forecast(min(self.cfg.replay_capacity, self.cfg.steps), row, weights)

    @property
    def step(self) -> int:
        """Env steps taken."""
        return self.envs.env_steps

    def save(self, run_dir: Path, run: str, metrics_at: int) -> None:
        """Write a checkpoint. ``run``: the run's id. Raises NotFinite before anything bad is written."""
        self.guard.ask()
        if self.replay.added > self.saved_rows:
            first = max(self.saved_rows, self.replay.added - len(self.replay))  # older ones are overwritten
            rows = self.replay.rows(first)
            check_finite(rows, "replay.")
            piece = checkpoint.save_rows(run_dir, first, rows)
            self.pieces[piece] = checkpoint.sha256(piece)
            self.saved_rows = self.replay.added
        oldest = self.replay.added - len(self.replay)
        self.pieces = {p: digest for p, digest in self.pieces.items() if checkpoint.span(p)[1] > oldest}
        tensors = {
            "agent": self.agent.state_dict(),
            "optimizer": self.agent.optimizer.state_dict(),
            "generator": self.agent.generator.get_state(),
            "carry": [self.carry.latent.deter, self.carry.latent.stoch, self.carry.action],
            "sums": self.sums.state_dict(),
            "probe": self.probe.state_dict() if self.probe else {},
        }
        check_finite({key: tensors[key] for key in ("agent", "optimizer", "carry")})
        self.tally.saved = self.step
        plain = {
            "envs": self.envs.state_dict(),
            "rng": self.rng.bit_generator.state,
            "tally": dataclasses.asdict(self.tally),
            "summed": self.summed,
            "wandb_id": self.wandb_id,
        }
        saved = checkpoint.Saved(self.step, tensors, plain, self.pieces, run, metrics_at)
        checkpoint.save(run_dir, saved, keep=self.cfg.keep_checkpoints)

    def restore(self, saved: checkpoint.Saved) -> None:
        """Become what was saved. Raises UserError where that is another run's state."""
        try:
            self._restore(saved)
        except UserError:
            raise
        except _UNFIT as error:
            raise UserError(
                f"The checkpoint of step {saved.step:,} does not fit this run ({type(error).__name__}); resume with "
                "the same settings, or start a new run."
            ) from error

    def _check(self, saved: checkpoint.Saved) -> None:
        """Raises where a part is not built as this run's is; what torch and numpy check themselves is left to them."""
        params = [p for group in self.agent.optimizer.param_groups for p in group["params"]]
        moments = saved.tensors["optimizer"]["state"]
        now = {"step": torch.zeros(())}
        model: dict[str, Any] = {
            "optimizer": {
                "state": {i: {**now, "exp_avg": params[i], "exp_avg_sq": params[i]} for i in moments},
                "param_groups": self.agent.optimizer.state_dict()["param_groups"],
            },
            "carry": [self.carry.latent.deter, self.carry.latent.stoch, self.carry.action],
            "sums": dict.fromkeys(saved.tensors["sums"], torch.zeros(2)),
        }
        if self.probe and (held := saved.tensors.get("probe")):
            own = self.probe.state_dict()
            per_batch = {key: own[key].new_zeros(len(held[key]), *own[key].shape[1:]) for key in PER_BATCH}
            model["probe"] = {**own, **per_batch}
        for part, like in model.items():
            check_like(saved.tensors[part], like, part)
        n = self.cfg.num_envs
        tally = from_plain(Tally, saved.plain["tally"])
        if [len(counts) for counts in (tally.returns, tally.lengths, tally.watched)] != [n, n, n]:
            raise ValueError("the tally is of another number of envs")
        check_like([saved.plain["summed"], saved.plain["envs"]["env_steps"]], [0, 0], "state.json")

    def _restore(self, saved: checkpoint.Saved) -> None:
        self._check(saved)
        self.agent.load_state_dict(saved.tensors["agent"])
        self.agent.optimizer.load_state_dict(saved.tensors["optimizer"])
        self.agent.generator.set_state(saved.tensors["generator"])
        deter, stoch, action = (x.to(self.device) for x in saved.tensors["carry"])
        self.carry = Carry(Latent(deter, stoch), action)
        self.sums.load_state_dict(saved.tensors["sums"], self.device)
        self.summed = saved.plain["summed"]
        self.row = self.envs.load_state_dict(saved.plain["envs"])
        self.rng.bit_generator.state = saved.plain["rng"]
        # A checkpoint from before coverage and windows were counted has none of them, and its run never will.
        self.tally = from_plain(Tally, saved.plain["tally"])
        if self.probe and saved.tensors.get("probe"):
            self.probe.load_state_dict(saved.tensors["probe"])
        fields = {k: ((self.cfg.num_envs, *shape), str(d).split(".")[1]) for k, (shape, d) in self.fields.items()}
        for path in saved.replay:
            self.replay.restore(checkpoint.span(path)[0], checkpoint.load_rows(path, fields))
        self.pieces, self.saved_rows = dict(saved.replay), self.replay.added
        self.wandb_id = saved.plain.get("wandb_id")

    def slow_down(self, rollbacks: int) -> None:
        """Learn with the rates of a run that has gone back that many times."""
        for group in self.agent.optimizer.param_groups:
            group["lr"] *= self.cfg.rollback_lr ** (rollbacks - self.tally.rollbacks)
        self.tally.rollbacks = rollbacks


@dataclass(frozen=True)
class Job:
    """A run to start in ``run_dir``, or to go on with."""

    cfg: RunConfig
    run_dir: Path
    resume: bool = False
    team: Team | None = None  # who learns it with this process


def train(cfg: RunConfig, run_dir: Path, *, resume: bool = False, team: Team | None = None) -> Report:
    """Start a run in ``run_dir``, or go on with the one there. Returns what it left behind.

    ``team``: the processes that learn it together, of which this is the first. Raises UserError before any work is
    lost, and Stopped, once all is saved, on SIGINT and SIGTERM.
    """
    with Signals() as signals, torch.cuda.stream(new_stream(pick_device(cfg.device))):
        work = session(Job(cfg, run_dir, resume, team), signals)
        while True:
            try:
                next(work).serve()
            except StopIteration as end:
                report: Report = end.value
                return report


@dataclass
class Wants:
    """What a run wants done before it goes on: that its state observes, by this policy, or learns."""

    state: State
    policy: Policy | None  # None: learns
    failed: UserError | None = None

    def serve(self) -> None:
        """Do it. What goes wrong is the run's to hear of, when it goes on."""
        try:
            if self.policy is None:
                self.state.learn()
            else:
                self.state.observe(self.policy)
        except UserError as error:
            self.failed = error


def session(job: Job, signals: Signals, *, in_file: bool = False) -> Generator[Wants, None, Report]:
    """The whole of a run, in steps: gives what it wants done, and goes on when that is under way.

    ``in_file``: it says what it has to say in its folder, in log.txt, instead of on the screen. Raises as ``train``.
    """
    cfg, run_dir, resume = job.cfg, job.run_dir, job.resume
    with RunLock(run_dir) as lock:
        before = read_config(run_dir) if resume else {}
        log_file = run_dir / METRICS_FILE
        if not resume and (checkpoint.checkpoints(run_dir) or (log_file.is_file() and log_file.stat().st_size)):
            raise UserError(f"{run_dir} already holds a run: go on with --resume, or choose another --run-name.")
        cfg = settled(cfg)
        if job.team:
            job.team.check(cfg.batch_size)
        torch.set_num_threads(cfg.threads)
        if cfg.device == "cuda":
            set_tf32(cfg.precision != "fp32")
        keep_freed_memory()
        spec = cfg.env().tv
        images, shown = load_images(spec.source, cfg.data_dir) if spec else (None, None)
        if shown:
            # Whatever "auto" finds tomorrow, this run goes on with these pictures, and its record says how they were
            # found.
            cfg = dataclasses.replace(cfg, tv_images=shown.used)
            shown = TVImages(**before["tv_images"]) if before.get("tv_images") else shown
        run = str(before.get("run") or secrets.token_hex(8))
        say = []
        if lock.left_by is not None and resume:
            say.append(f"Process {lock.left_by}, which had this run, was killed.")
        rollbacks = 0
        while True:
            try:
                session = _Session(cfg, run_dir, run, images, shown, job.team)
                return (yield from session.go(signals, in_file, resume, rollbacks, say))
            except _FellIll as ill:
                rollbacks, say, resume = ill.rollbacks, [str(ill)], True
            gc.collect()  # the replay of the session that ended, before there is another


class _FellIll(Exception):  # noqa: N818  no error: the session ends, and the next goes back
    """Learning met a number that is none. The message says where, ``rollbacks`` how often that makes it."""

    def __init__(self, message: str, rollbacks: int) -> None:
        super().__init__(message)
        self.rollbacks = rollbacks


@dataclass
class _Session:
    """One stretch of a run: from its start, a resumption or a rollback to its end, a stop or the next rollback."""

    cfg: RunConfig
    run_dir: Path
    run: str  # id
    images: ImageSource | None
    shown: TVImages | None
    team: Team | None

    def go(
        self, signals: Signals, in_file: bool, resume: bool, rollbacks: int, say: list[str]
    ) -> Generator[Wants, None, Report]:
        """Prepare everything, then loop and finish."""
        cfg, run_dir = self.cfg, self.run_dir
        state = State(cfg, self.images, self.team)
        state.forecast.check_disk(run_dir, cfg.keep_checkpoints)
        metrics_at = self._restore(state, say) if resume else None
        state.slow_down(max(rollbacks, state.tally.rollbacks))
        self._write_config()
        with ExitStack() as stack:
            stack.callback(state.envs.close)
            signals.note()
            console = Console(file=stack.enter_context((run_dir / LOG_FILE).open("a"))) if in_file else None
            log = stack.enter_context(MetricsLog(run_dir, _sinks(cfg, run_dir, state), resume_at=metrics_at))
            title = f"{run_dir.name} ({state.device}, {cfg.precision}, {cfg.threads} threads)"
            bar = stack.enter_context(Progress(cfg.steps, state.step, title=title, console=console))
            if self.shown and (tv := cfg.env().tv):
                bar.say(f"{tv.describe()} {self.shown.reason}")
            for line in say:
                bar.say(line)
            run = _Run(cfg, run_dir, self.run, state, self.images, log, bar, signals)
            try:
                yield from run.loop()
                return run.finish(self.shown)
            except NotFinite as found:
                raise self._ill(state, found) from None
            except OSError as error:
                raise UserError(self._unwritten(state.step, error)) from error

    def _restore(self, state: State, say: list[str]) -> int:
        """Go back to the newest whole checkpoint. Returns where its metrics end."""
        saved, damaged = checkpoint.load_newest(self.run_dir, self.run)
        say += [f"Passed over a damaged checkpoint: {line}" for line in damaged]
        if saved is None:  # killed before it first saved: from its beginning again
            say.append("Resumed at 0 steps.")
            return 0
        if not checkpoint.metrics_intact(self.run_dir, checkpoint.folder_of(self.run_dir, saved.step)):
            say.append(f"{METRICS_FILE} is not as it was written: the training goes on whole, its record is damaged.")
        state.restore(saved)
        say.append(f"Resumed at {state.step:,} steps.")
        return saved.metrics_at

    def _write_config(self) -> None:
        about = {
            "config": to_plain(self.cfg),
            "run": self.run,
            "tv_images": self.shown and dataclasses.asdict(self.shown),
            "versions": versions(),
            "git_revision": git_revision(),
        }
        write_atomically(self.run_dir / CONFIG_FILE, dumps(sealed(about), indent=2) + "\n")

    def _ill(self, state: State, found: NotFinite) -> Exception:
        """What follows from a number that is none: another try, or, after too many, the end."""
        try:
            state.guard.ask()
        except NotFinite as first:  # a device that nobody asked yet knows where it began
            found = first
        where = f"step {state.step:,}, {str(found).rstrip('.')}"
        kept = ""
        if found.batch is not None:
            kept = f" What it learned from is in {save_batch(self.run_dir / 'not_finite', state.step, found.batch)}."
        count = state.tally.rollbacks + 1
        if count <= self.cfg.rollbacks:
            rates = f"{self.cfg.rollback_lr**count:g} of the learning rates"
            return _FellIll(f"Back to the last checkpoint, with {rates} ({where}).{kept}", count)
        return UserError(
            f"A number that is none at {where}; after {self.cfg.rollbacks} rollbacks the run gives up.{kept} Its last "
            "checkpoint is whole: look at the env's rewards, or start again with smaller learning rates."
        )

    def _unwritten(self, step: int, error: OSError) -> str:
        whole = checkpoint.checkpoints(self.run_dir)
        kept = f"the checkpoint {whole[-1].name} is whole" if whole else "nothing was saved yet"
        return (
            f"{self.run_dir} could not be written ({error.strerror or error}) at step {step:,}; {kept}: make room "
            "there, then go on with --resume."
        )


@dataclass(frozen=True)
class Report:
    """What a finished run left behind."""

    summary: dict[str, Any]
    agent: Path
    video: Path | None  # None: no pictures wanted
    curves: Path | None


def settled(cfg: RunConfig) -> RunConfig:
    """The config with what was left to the machine decided, so that a resumed run computes the same bits."""
    device = pick_device(cfg.device)
    return dataclasses.replace(
        cfg,
        device=cast(Device, device.type),
        precision=pick_precision(cfg.precision, device),
        threads=pick_threads(cfg.threads),
    )


def read_config(run_dir: Path) -> dict[str, Any]:
    """``config.json`` of a run: its "config", and what it was started with.

    Raises UserError, naming the copy to put back, when it is damaged.
    """
    path = run_dir / CONFIG_FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(about["config"], dict) and ("sha256" not in about or is_sealed(about)):
            return dict(about)
    except FileNotFoundError:
        raise UserError(f"{run_dir} holds no run to resume (no {CONFIG_FILE}); check --run-name and --runs.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # told below, with the other kind of damage
    copies = [folder / CONFIG_FILE for folder in reversed(checkpoint.checkpoints(run_dir))]
    fix = next((f"put back its copy: cp {copy} {path}" for copy in copies if copy.is_file()), "restore it")
    raise UserError(f"{path} is damaged; {fix}.")


class Signals:
    """Notes SIGINT and SIGTERM instead of dying, from ``note`` on; the loop looks at ``caught`` between steps."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        return self

    def note(self) -> None:
        """Begin; before there is anything to save, a signal may as well end the program."""
        if not self._before and threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.caught = signum
        # A second one, for those who cannot wait, does what it always did.
        signal.signal(signum, self._before[signum])

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)


def _sinks(cfg: RunConfig, run_dir: Path, state: State) -> list[Sink]:
    sinks: list[Sink] = [TensorBoardSink(run_dir)]
    if cfg.wandb:
        wandb = WandbSink(
            project=cfg.wandb_project,
            entity=cfg.wandb_entity,
            run_name=cfg.wandb_run_name or run_dir.name,
            config=to_plain(cfg),
            directory=run_dir,
            resume_id=state.wandb_id,
        )
        state.wandb_id = wandb.run_id
        sinks.append(wandb)
    return sinks


class _Run:
    """The loop over one State, with everything it reports to."""

    def __init__(
        self,
        cfg: RunConfig,
        run_dir: Path,
        run: str,
        state: State,
        images: ImageSource | None,
        log: MetricsLog,
        bar: Progress,
        signals: Signals,
    ):
        self.cfg, self.run_dir, self.run, self.state, self.images = cfg, run_dir, run, state, images
        self.log, self.bar, self.signals = log, bar, signals
        self.clock = time.monotonic()
        self.alarmed = set[str]()  # each alarm is told once
        self.recent = deque[bool](maxlen=500)  # of TV on/off, for the screen alone
        self.tv_chance = tv_chance(cfg.env())

    def loop(self) -> Iterator[Wants]:
        """Act, remember, learn, report; until the steps are done or somebody asks to stop."""
        s, tally = self.state, self.state.tally
        if not s.row:
            s.row = s.envs.reset_row()
        while s.step < self.cfg.steps:
            # First, so that a checkpoint lies before the evaluation due at its step: whoever goes on from it evaluates.
            if self.cfg.eval_every and s.step - tally.evaluated >= self.cfg.eval_every:
                self._keep_best(float(np.mean(self._evaluate(self.cfg.eval_episodes)[0].returns)))
            yield from self._want("random" if s.step < self.cfg.prefill else "sample")
            while self._update_is_due():  # before the envs move, so that a device learns while they do
                yield from self._want(None)
            s.row = s.envs.step(s.action())
            self._count(s.row)
            self._log()
            if self.cfg.checkpoint_every and s.step - tally.saved >= self.cfg.checkpoint_every:
                self._save()
            if self.signals.caught is not None:
                self._save()
                raise Stopped(self.signals.caught)

    def _want(self, policy: Policy | None) -> Iterator[Wants]:
        wants = Wants(self.state, policy)
        yield wants
        if wants.failed:
            raise wants.failed

    def _update_is_due(self) -> bool:
        """Whether learning lags behind ``update_every``, and a whole sequence is there to learn from."""
        due = (self.state.step - self.cfg.prefill) / self.cfg.update_every
        return self.state.tally.updates < due and len(self.state.replay) > self.cfg.seq_length

    def _count(self, row: dict[str, np.ndarray]) -> None:
        """Take the new row into the tally; report the episodes that end with it."""
        tally = self.state.tally
        for line in self.state.envs.news():
            self.bar.say(line)
        moved = ~row["is_first"]
        watched = row["tv_on"] & moved  # what a reset shows is no step
        tally.rows += int(moved.sum())
        tally.tv_rows += int(watched.sum())
        self._place(moved, watched)
        self.recent.extend(bool(x) for x in row["tv_on"])
        for i in range(self.cfg.num_envs):
            tally.returns[i] += float(row["reward"][i])
            tally.lengths[i] += int(moved[i])
            tally.watched[i] += int(watched[i])
            if row["is_last"][i]:
                values: dict[str, float] = {"return": tally.returns[i], "length": tally.lengths[i]}
                if self.tv_chance is not None:
                    values |= {"tv_share": tally.watched[i] / tally.lengths[i], "tv_chance": self.tv_chance}
                if (coverage := self._coverage()) is not None:
                    values["coverage"] = coverage
                self.log.write(self.state.step, "episode", values)
                self.bar.update(self.state.step, episode_return=tally.returns[i], tv_share=self._tv_share())
                tally.returns[i], tally.lengths[i], tally.watched[i] = 0.0, 0, 0

    def _place(self, moved: np.ndarray, watched: np.ndarray) -> None:
        """Note when the TV was on, and where the envs are."""
        s, tally = self.state, self.state.tally
        if tally.tv_bins is not None and moved.any():
            now = (s.step - 1) // BIN
            tally.tv_bins.extend([0, 0] for _ in range(now + 1 - len(tally.tv_bins)))
            tally.tv_bins[now][0] += int(watched.sum())
            tally.tv_bins[now][1] += int(moved.sum())
        if tally.visited is not None:
            new = {cell for cell, step in zip(s.envs.cells(), moved, strict=False) if step} - set(tally.visited)
            tally.visited.extend(sorted(new))

    def _coverage(self) -> float | None:
        """Share of the grid's cells visited by training steps; None without a grid, or where it was not counted."""
        grid, visited = self.state.envs.grid, self.state.tally.visited
        return None if grid is None or visited is None else len(visited) / grid.cells

    def _tv_share(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.cfg.noisy_tv and self.recent else None

    def _log(self) -> None:
        s, tally = self.state, self.state.tally
        self.bar.update(s.step)
        if s.step - tally.logged < self.cfg.log_every:
            return
        s.guard.ask()
        passed = s.step - tally.logged
        tally.logged = s.step
        if s.summed == 0:
            return
        values = {k: v for k, v in s.sums.means().items() if self._says_something(k)}
        now = time.monotonic()
        tally.seconds += now - self.clock
        values["wall_steps_per_s"] = passed / (now - self.clock)
        if s.probe and self.cfg.tv.control is None:
            values |= s.probe.report()
        self._alarm(values)
        self.clock = now
        self.log.write(s.step, "train", {"updates": tally.updates, **values})
        s.summed = 0

    def _alarm(self, values: dict[str, float]) -> None:
        if self.state.tally.updates >= FIRST_ALARM:
            found = alarms(values)
            for key in found.keys() - self.alarmed:
                self.bar.say(found[key])
            self.alarmed |= found.keys()

    def _says_something(self, key: str) -> bool:
        """Whether a training metric is more than a constant 0: no bonus without curiosity, no TV steps without a TV."""
        of_tv = "tv" in key
        of_bonus = "bonus" in key
        return (self.cfg.noisy_tv or not of_tv) and (self.cfg.agent.curiosity != "none" or not of_bonus)

    def _make(self, *, tv_on: bool) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: make_env(self.cfg.env(tv_on=tv_on), images=self.images)

    def _evaluate(self, episodes: int) -> tuple[Scores, Scores | None, Path | None]:
        """What ``_play`` says. A signal ends it and the run; whoever goes on begins the evaluation again."""
        try:
            return self._play(episodes)
        except Stopped:
            self._save()  # not before, for until here the agent's generator was lent out
            raise

    def _give_way(self) -> None:
        if self.signals.caught is not None:
            raise Stopped(self.signals.caught)

    def _play(self, episodes: int) -> tuple[Scores, Scores | None, Path | None]:
        """Play with the policy's mode, the TV as in training and showing nothing; film one episode.

        Showing nothing is "sham". For a policy that no longer learns, "off" is the same env but for a button that does
        nothing either way, so there is one such score and not two. None without a TV.
        """
        s = self.state
        self.bar.update(s.step, note="evaluating")
        watch = self._give_way
        scores = evaluate(s.agent, self._make(tv_on=True), episodes=episodes, seed=EVAL_SEED, watch=watch)
        off = None
        if self.cfg.noisy_tv:
            same = self.cfg.env(tv_on=False) == self.cfg.env()  # a TV that was a sham from the start
            make = self._make(tv_on=False)
            off = scores if same else evaluate(s.agent, make, episodes=episodes, seed=EVAL_SEED, watch=watch)
        trace = None
        if self.cfg.pictures:
            title = f"{self.run_dir.name} after {s.step:,} steps"
            make, has_tv = self._make(tv_on=True), self.cfg.noisy_tv
            trace = record(s.agent, make, seed=EVAL_SEED, title=title, has_tv=has_tv, watch=watch)
        # Only now, so that whoever is stopped before has evaluated nothing, and evaluates when he goes on.
        s.tally.evaluated = s.step
        self.log.write(s.step, "eval", {"arm": "as_trained", **scores.row(has_tv=self.cfg.noisy_tv)})
        if off:
            self.log.write(s.step, "eval", {"arm": "tv_off", **off.row()})
        path = self.run_dir / "videos" / f"eval_iter_{s.step}_ep_0.mp4"
        video = episode_video(path, trace) if trace else None
        self.bar.say(f"{s.step:,} steps: evaluation return {np.mean(scores.returns):.1f} (mean of {episodes})")
        return scores, off, video

    def _save(self) -> None:
        if self.state.tally.saved == self.state.step:
            return  # nothing is learned without a step, and a whole checkpoint is never replaced
        begin = time.monotonic()
        self.state.save(self.run_dir, self.run, self.log.position())
        self.state.tally.saving_seconds += time.monotonic() - begin

    def _keep_best(self, mean: float) -> None:
        """Leave the agent of the best evaluation so far as a file of its own."""
        tally = self.state.tally
        if tally.best is None or mean > tally.best[1]:
            tally.best = [float(self.state.step), mean]
            save_agent(self.run_dir / BEST_AGENT, self.state.agent, self._about())

    def _about(self) -> dict[str, Any]:
        return {
            "env": self.cfg.env_name,
            "noisy_tv": self.cfg.noisy_tv,
            "steps": self.state.step,
            "seed": self.cfg.seed,
            "run": to_plain(self.cfg),
        }

    def finish(self, shown: TVImages | None) -> Report:
        """Last evaluation, agent file, curves, summary."""
        s = self.state
        if self.cfg.checkpoint_every:
            self._save()  # before the last evaluation: whoever resumes a finished run repeats it, and no line twice
        scores, off, video = self._evaluate(2 * self.cfg.eval_episodes)
        agent = self.run_dir / "agent_lpm.pth"
        save_agent(agent, s.agent, self._about())
        summary = self._summary(scores, off, shown)
        write_summary(self.run_dir, summary)
        return Report(summary, agent, video, plot_run(self.run_dir) if self.cfg.pictures else None)

    def _summary(self, scores: Scores, off: Scores | None, shown: TVImages | None) -> dict[str, Any]:
        s = self.state
        grid = s.envs.grid
        return {
            "env_steps": s.step,
            "updates": s.tally.updates,
            "wall_seconds": s.tally.seconds + time.monotonic() - self.clock,
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
            "saving_seconds": s.tally.saving_seconds,
            "rollbacks": s.tally.rollbacks,
            "env_restarts": s.envs.restarts,
            "best_on_the_way": s.tally.best and {"step": int(s.tally.best[0]), "return": s.tally.best[1]},
            "eval_return_mean": float(np.mean(scores.returns)),
            "eval_returns": scores.returns,
            "eval_return_tv_off": None if off is None else float(np.mean(off.returns)),
            "coverage": self._coverage(),
            "coverage_grid": None if grid is None else grid.describe(),
            "tv_share": s.tally.tv_rows / max(1, s.tally.rows) if self.cfg.noisy_tv else None,
            "tv_chance": self.tv_chance,
            **self._escape(),
            **self._late_means(),
            "tv_images": dataclasses.asdict(shown) if shown else None,
            "env_name": self.cfg.env_name,
            "curiosity": self.cfg.agent.curiosity,
            "seed": self.cfg.seed,
            "device": self.cfg.device,
            "precision": self.cfg.precision,
            "threads": self.cfg.threads,
            "versions": versions(),
            "git_revision": git_revision(),
        }

    def _escape(self) -> dict[str, float | None]:
        """How the run got away from the TV; None without one, or where it was not counted from the start."""
        bins, step = self.state.tally.tv_bins, self.state.step
        if self.tv_chance is None or bins is None:
            return {"tv_share_last_quarter": None, "escape_step": None}
        return {
            "tv_share_last_quarter": late_tv_share(bins, step),
            "escape_step": escape_step(bins[: step // BIN], self.tv_chance),
        }

    def _late_means(self) -> dict[str, float | None]:
        """What the last quarter of the run said of the TV; None where it said nothing."""
        rows = read_metrics(self.run_dir)
        return {
            name: late_mean(rows, key, self.state.step)
            for name, key in (
                ("dream_tv_share", "dream/tv_share"),
                ("probe_accuracy", "probe/accuracy"),
                ("recon_tv_share", "loss/recon_tv_share"),
                ("bonus_tv_on", "bonus/tv_on"),
                ("bonus_tv_off", "bonus/tv_off"),
            )
        }

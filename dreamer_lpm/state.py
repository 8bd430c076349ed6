"""Everything of a run that survives a restart, and what it does: observe, learn, save, restore."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer_lpm import checkpoint
from dreamer_lpm.agent import Agent, Carry, Felt, Policy
from dreamer_lpm.capture import Captured, Download, upload
from dreamer_lpm.config import RunConfig
from dreamer_lpm.envs import Envs, make_env
from dreamer_lpm.forecast import Forecast
from dreamer_lpm.fusing import fuse
from dreamer_lpm.guard import Guard, check_finite
from dreamer_lpm.machine import pick_device
from dreamer_lpm.noisy_tv import ImageSource
from dreamer_lpm.probe import PER_BATCH, TVProbe
from dreamer_lpm.replay import Replay
from dreamer_lpm.settings import from_plain
from dreamer_lpm.team import Team
from dreamer_lpm.types import Batch, UserError
from dreamer_lpm.untrusted import check_like
from dreamer_lpm.world import Latent

POLICIES: tuple[Policy, ...] = ("random", "sample")  # of training
# What torch, numpy and the parts of a run raise at a state that is not theirs.
_UNFIT = (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, OSError, AssertionError, AttributeError)


@dataclass
class Tally:
    """Running counts of the training so far; plain numbers, saved as JSON."""

    updates: int = 0
    returns: list[float] = field(default_factory=lambda: [0.0])  # of each env's episode under way
    lengths: list[int] = field(default_factory=lambda: [0])
    watched: list[int] = field(default_factory=lambda: [0])  # TV steps of the episode under way
    rows: int = 0  # agent steps of all envs
    tv_rows: int = 0  # those with the TV on
    tv_bins: list[list[int]] = field(default_factory=list)  # [tv_rows, rows] of each 100 env steps
    visited: list[int] = field(default_factory=list)  # cells of the env's grid, in order of the first visit
    logged: int = 0  # env steps at the last line of training metrics
    evaluated: int = 0
    saved: int = 0
    best: list[float] | None = None  # env step and mean return of the best evaluation on the way
    rollbacks: int = 0
    seconds: float = 0.0  # of wall time, over all sessions
    saving_seconds: float = 0.0  # of these, to write checkpoints
    shared_seconds: float = 0.0  # of wall time, each session's divided by the runs in its process
    revisions: list[str] = field(default_factory=list)  # of the code that had a part in it


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
    """Everything that survives a restart, generators included. ``together``: runs in this process, itself counted."""

    def __init__(self, cfg: RunConfig, images: ImageSource | None, team: Team | None = None, together: int = 1):
        self.cfg, self.team = cfg, team
        seeds = np.random.SeedSequence(cfg.seed).spawn(3)  # one tree: envs (and their TVs), replay, networks
        env_seed, agent_seed = (int(s.generate_state(1)[0]) for s in (seeds[0], seeds[2]))
        make = partial(make_env, cfg.env(), images=images)
        self.envs = Envs(make, cfg.num_envs, env_seed, workers=cfg.env_workers)
        try:
            self._begin(agent_seed, seeds[1], together)
        except BaseException:
            self.envs.close()  # processes of their own outlive nobody
            raise

    def _begin(self, agent_seed: int, draws: np.random.SeedSequence, together: int) -> None:
        cfg = self.cfg
        self.device = pick_device(cfg.device)
        self.agent = Agent(
            cfg.agent, self.envs.action_spec, seed=agent_seed, device=self.device, bf16=cfg.precision == "bf16"
        )
        self.rng = np.random.default_rng(draws)
        self.fields = self._fields()
        # No more than the run can fill: a step has at most one reset beside it. A device commits all of it.
        held = min(cfg.replay_capacity // cfg.num_envs, 2 * cfg.steps // cfg.num_envs + 2)
        self.forecast = self._forecast(together, held * cfg.num_envs)
        self.forecast.check_memory(self.device)
        try:
            self.replay = Replay(held, self.fields, cfg.num_envs, self.device)
        except RuntimeError as error:  # torch's word for memory that cannot be had
            raise UserError(
                f"A replay of {cfg.replay_capacity:,} steps does not fit into memory; lower replay_capacity."
            ) from error
        self.carry = self.agent.begin(cfg.num_envs)
        self.row: dict[str, np.ndarray] = {}
        n = cfg.num_envs
        self.tally = Tally(returns=[0.0] * n, lengths=[0] * n, watched=[0] * n)
        feat_size = self.agent.world.rssm.feat_size
        # Of a sham too, which it can say nothing of, so that both can learn as one.
        self.probe = TVProbe(feat_size, self.device) if cfg.noisy_tv and cfg.tv.control != "off" else None
        self.sums = Sums()
        self.summed = 0
        self.guard = Guard(self.device)
        self._download = Download(self.device)
        self._chosen: Callable[[], np.ndarray] = self._download.numpy
        self.saved_rows = 0
        self.pieces: dict[Path, str] = {}  # of the replay on disk, with their SHA-256
        self.wandb_id: str | None = None  # of the W&B run, if there is one
        self.forget_graphs()

    def forget_graphs(self) -> None:
        """Whatever was recorded is recorded anew, for tensors have moved."""
        self._observe = {policy: Captured(partial(self._see, policy), self.device) for policy in POLICIES}
        self._update = Captured(self._learn, self.device)
        self._update.records &= self.team is None

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
        # The very first is made before a flock can form (flock.py), which would have to compile anew.
        if self.cfg.compile and not self.team and self.updates_here and not self.agent.fused:
            fuse(self.agent)
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

    def _forecast(self, together: int, held: int) -> Forecast:
        row = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.fields.values())
        weights = sum(x.numel() * x.element_size() for x in self.agent.state_dict().values())
        rows = min(self.cfg.replay_capacity, self.cfg.steps)
        if self.device.type == "cpu":  # memory is taken as it is filled: what the runs beside want looks free yet
            return Forecast(rows, row, weights, runs=together)
        return Forecast(rows, row, weights, reserved=held)

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
        if self.probe and (held := saved.tensors["probe"]):
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
        self.tally = from_plain(Tally, saved.plain["tally"])
        if self.probe and saved.tensors["probe"]:
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

"""A training run: the loop, and everything that it reports to.

from dreamer_lpm.config import RunConfig
from dreamer_lpm.train import train
train(RunConfig(steps=10_000, noisy_tv=True), Path("runs/mine"))
"""

from __future__ import annotations

import dataclasses
import gc
import json
import secrets
import shlex
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console

from dreamer_lpm import checkpoint
from dreamer_lpm.agent import Policy
from dreamer_lpm.capture import own_stream
from dreamer_lpm.config import RunConfig, resumed, settled
from dreamer_lpm.envs import make_env, repeat_of, tv_chance
from dreamer_lpm.evaluate import AGENT_FILE, Scores, evaluate, record, save_agent
from dreamer_lpm.guard import FIRST_ALARM, alarms, save_batch
from dreamer_lpm.lock import RunLock
from dreamer_lpm.machine import bf16_slowdown, keep_freed_memory, peak_memory, pick_device, use_arithmetic
from dreamer_lpm.noisy_tv import ImageSource, NoisyTVError, TVImages, TVSpec, load_images
from dreamer_lpm.noisy_tv.images import pooled
from dreamer_lpm.report.measures import BIN, escape_step, late_mean, late_tv_share
from dreamer_lpm.report.metrics import METRICS_FILE, MetricsLog, Sink, TensorBoardSink, WandbSink, read_metrics
from dreamer_lpm.report.plots import plot_run
from dreamer_lpm.report.progress import Progress
from dreamer_lpm.report.strict_json import is_sealed, sealed, write_json
from dreamer_lpm.report.summary import CONFIG_FILE, SUMMARY_FILE, own_revision, versions
from dreamer_lpm.report.video import episode_video
from dreamer_lpm.settings import from_plain, to_plain
from dreamer_lpm.state import State
from dreamer_lpm.team import Team
from dreamer_lpm.types import STOPS, NotFinite, UserError, insists

LOG_FILE = "log.txt"  # of a run among several: what a run alone says on the screen
BEST_AGENT = "agent_best.pth"
EVAL_SEED = 1_000_003  # evaluation episodes are none of the training's


class Stopped(Exception):  # noqa: N818  no error: the run is saved, and can go on
    """The run was asked to stop, and is saved. ``signum`` is the signal that asked."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"by signal {self.signum}; the run is saved, and goes on with train(cfg, run_dir, resume=True)"


@dataclass(frozen=True)
class Job:
    """A run to start in ``run_dir``, or to go on with."""

    cfg: RunConfig
    run_dir: Path
    resume: bool = False
    team: Team | None = None  # who learns it with this process
    pictures: tuple[ImageSource, TVImages] | None = None  # of its TV, where they are found already
    together: int = 1  # runs in its process, itself counted


def train(cfg: RunConfig, run_dir: str | Path, *, resume: bool = False, team: Team | None = None) -> Report:
    """Start a run in ``run_dir``, or go on with the one there. Returns what it left behind.

    ``team``: the processes that learn it together, of which this is the first. Raises UserError before any work is
    lost, and Stopped, once all is saved, on SIGINT, SIGTERM and SIGHUP.
    """
    with (
        Signals() as signals,
        own_stream(pick_device(cfg.device)),
        closing(session(Job(cfg, Path(run_dir), resume, team), signals)) as work,  # a second Ctrl-C leaves no lock
    ):
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
    failed: Exception | None = None

    def serve(self) -> None:
        """Do it. What goes wrong is the run's to hear of, when it goes on."""
        use_arithmetic(self.state.cfg.device, self.state.cfg.precision)
        try:
            if self.policy is None:
                self.state.learn()
            else:
                self.state.observe(self.policy)
        except Exception as error:  # noqa: BLE001  it is raised again, there
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
            raise UserError(
                f"{run_dir} already holds a run: go on with --resume (in Python: resume=True), or choose another."
            )
        cfg = from_plain(RunConfig, to_plain(cfg))  # as strict as flags and files: what was saved must be legible
        cfg = settled(resumed(cfg, from_plain(RunConfig, before["config"])) if resume else cfg)
        if job.team:
            job.team.check(cfg.batch_size)
        torch.set_num_threads(cfg.threads)
        use_arithmetic(cfg.device, cfg.precision)
        keep_freed_memory()
        images, shown = job.pictures or pictures_of(cfg.env().tv, cfg.data_dir) or (None, None)
        if shown:
            # Whatever "auto" finds tomorrow, this run goes on with these pictures, and its record says how they were
            # found.
            cfg = dataclasses.replace(cfg, tv_images=shown.used)
            shown = TVImages(**before["tv_images"]) if before.get("tv_images") else shown
        run = str(before.get("run") or secrets.token_hex(8))
        say = list(vain(cfg))
        if job.team and cfg.compile:
            say.append("Several processes learn without --compile: one that is faster than the others would wait.")
        if lock.left_by is not None and resume:
            say.append(f"Process {lock.left_by}, which had this run, was killed.")
        rollbacks = 0
        while True:
            try:
                stretch = _Session(cfg, run_dir, run, images, shown, job.team, job.together)
                return (yield from stretch.go(signals, in_file, resume, rollbacks, say))
            except _FellIll as ill:
                rollbacks, say, resume = ill.rollbacks, [str(ill)], True
            gc.collect()  # the replay of the session that ended, before there is another


def pictures_of(tv: TVSpec | None, data_dir: Path | None) -> tuple[ImageSource, TVImages] | None:
    """What a run's TV shows; None where nothing will ever be shown: no TV, or a control.

    A pool is made once for all who take it: every env, those of evaluations, and every run of several. Raises
    NoisyTVError when what was asked for by name cannot be had.
    """
    if tv is None or tv.control is not None:
        return None
    images, shown = load_images(tv.source, data_dir)
    return pooled(images, tv.pool), shown


def vain(cfg: RunConfig) -> Iterator[str]:
    """What was asked for and will do no good."""
    if not cfg.noisy_tv and (cfg.tv != TVSpec() or cfg.tv_images != "auto"):
        yield "There is no TV, whatever tv.* and --tv-images say: add --noisy-tv."
    elif unread := cfg.tv.unread():
        yield f"The TV's trigger '{cfg.tv.trigger}' does not read {', '.join(f'tv.{name}' for name in unread)}."
    if cfg.precision == "bf16" and pick_device(cfg.device).type == "cpu" and (slowdown := bf16_slowdown()) > 1.5:
        yield f"A product takes {slowdown:.1f} times as long in bf16 as in fp32 on this CPU: leave --precision out."
    first = _first_update(cfg)
    if cfg.steps <= first:
        yield (
            f"Nothing will be learned: {cfg.steps:,} steps end within the first {first:,}, which only fill the memory "
            "(--prefill, --seq-length, --num-envs)."
        )


def _first_update(cfg: RunConfig) -> int:
    """Env steps after which learning begins: with many envs a whole sequence of each can take more than the prefill."""
    return max(cfg.prefill, cfg.seq_length * cfg.num_envs * repeat_of(cfg.env()))


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
    together: int  # runs in this process, itself counted

    def go(
        self, signals: Signals, in_file: bool, resume: bool, rollbacks: int, say: list[str]
    ) -> Generator[Wants, None, Report]:
        """Prepare everything, then loop and finish."""
        cfg, run_dir = self.cfg, self.run_dir
        state = State(cfg, self.images, self.team, self.together)
        try:
            with ExitStack() as stack:
                stack.callback(state.envs.close)
                state.forecast.check_disk(run_dir, cfg.keep_checkpoints)
                metrics_at = self._restore(state, say) if resume else None
                state.slow_down(max(rollbacks, state.tally.rollbacks))
                self._write_config()
                if (revision := own_revision()) and revision not in state.tally.revisions:
                    state.tally.revisions.append(revision)
                signals.note()
                console = Console(file=stack.enter_context((run_dir / LOG_FILE).open("a"))) if in_file else None
                log = stack.enter_context(MetricsLog(run_dir, _sinks(cfg, run_dir, state), resume_at=metrics_at))
                title = (
                    f"{run_dir.name} ({state.device}, {cfg.precision}, {cfg.threads} thread{'s' * (cfg.threads > 1)})"
                )
                bar = stack.enter_context(Progress(cfg.steps, state.step, title=title, console=console))
                if tv := cfg.env().tv:
                    bar.say(f"{tv.describe()} {self.shown.reason}" if self.shown else tv.describe(), prose=True)
                    if tv.control is None and (tv.trigger == "state" or tv.persistence != "new"):
                        bar.say("Random play without pictures finds out how often it is on by chance.")
                for line in say:
                    bar.say(line)
                run = _Run(self, state, log, bar, signals)
                try:
                    yield from run.loop()
                    return run.finish()
                except NotFinite as found:
                    raise self._ill(state, found) from None
                except (UserError, NoisyTVError, OSError, Stopped):
                    raise
                except Exception as error:  # of an env or a bonus: whoever wrote it needs the traceback
                    # By its name, for runs that learn as one hear of one error.
                    where = f"{run_dir} was at step {state.step:,}; {self._whole()}"
                    error.add_note(f"{where}. Once that is mended, go on with --resume.")
                    raise
        except OSError as error:  # also of the logs that are closed above
            raise UserError(self._unwritten(state.step, error)) from error

    def _restore(self, state: State, say: list[str]) -> int:
        """Go back to the newest whole checkpoint. Returns where its metrics end."""
        saved, damaged = checkpoint.load_newest(self.run_dir, self.run)
        say += [f"Passed over a damaged checkpoint: {line}" for line in damaged]
        if saved is None and (self.run_dir / SUMMARY_FILE).is_file():
            raise UserError(
                f"{self.run_dir} is finished and kept no checkpoint to go on from: start a new run, with "
                "--checkpoint-every above 0 if it may have to go further."
            )
        if saved is None:  # killed before it first saved: from its beginning again
            say.append("Resumed at 0 steps.")
            return 0
        if not checkpoint.metrics_intact(self.run_dir, checkpoint.folder_of(self.run_dir, saved.step)):
            say.append(f"{METRICS_FILE} is not as it was written: the training goes on whole, its record is damaged.")
        state.restore(saved)
        past = state.step - self.cfg.steps
        if past >= self.cfg.num_envs * repeat_of(self.cfg.env()):  # the last steps of a finished run may pass its end
            raise UserError(
                f"{self.run_dir} has {state.step:,} steps behind it, and --steps {self.cfg.steps} asks for fewer: with "
                f"--steps {state.step} it is finished as it is, with more it goes on."
            )
        say.append(f"Resumed at {state.step:,} steps.")
        return saved.metrics_at

    def _write_config(self) -> None:
        about = {
            "config": to_plain(self.cfg),
            "run": self.run,
            "tv_images": self.shown and dataclasses.asdict(self.shown),
            "versions": versions(),
            "git_revision": own_revision(),
        }
        write_json(self.run_dir / CONFIG_FILE, sealed(about))

    def _ill(self, state: State, found: NotFinite) -> Exception:
        """What follows from a number that is none: another try, or, after too many, the end."""
        try:
            state.guard.ask()
        except NotFinite as first:  # a device that nobody asked yet knows where it began
            found = first
        where = f"step {state.step:,}, {str(found).rstrip('.')}"
        kept = ""
        if found.batch is not None:
            with suppress(OSError):  # a full disk is no reason not to go back
                path = save_batch(self.run_dir / "not_finite", state.step, found.batch)
                kept = f" What it learned from is in {path}."
        count = state.tally.rollbacks + 1
        if count <= self.cfg.rollbacks:
            rates = f"{self.cfg.rollback_lr**count:g} of the learning rates"
            to = "last checkpoint" if checkpoint.checkpoints(self.run_dir) else "beginning, for nothing was saved yet"
            return _FellIll(f"Back to the {to}, with {rates} ({where}).{kept}", count)
        return UserError(
            f"A number that is none at {where}; after {self.cfg.rollbacks} rollbacks the run gives up;"
            f" {self._whole()}.{kept} Look at the env's rewards, or start again with smaller learning rates."
        )

    def _unwritten(self, step: int, error: OSError) -> str:
        return (
            f"{self.run_dir} could not be written ({error.strerror or error}) at step {step:,}; {self._whole()}: make "
            "room there, then go on with --resume."
        )

    def _whole(self) -> str:
        whole = checkpoint.checkpoints(self.run_dir)
        return f"the checkpoint {whole[-1].name} is whole" if whole else "nothing was saved yet"


@dataclass(frozen=True)
class Report:
    """What a finished run left behind."""

    summary: dict[str, Any]
    agent: Path
    video: Path | None  # None: no pictures wanted
    curves: Path | None


def is_begun(run_dir: Path) -> bool:
    """Whether there is a run to go on with, be it one that lost its ``config.json``."""
    return (run_dir / CONFIG_FILE).is_file() or bool(checkpoint.checkpoints(run_dir))


def read_config(run_dir: Path) -> dict[str, Any]:
    """``config.json`` of a run: its "config", and what it was started with.

    Raises UserError, naming the copy to put back, when it is damaged or gone.
    """
    path = run_dir / CONFIG_FILE
    if not is_begun(run_dir):
        seeds = sorted(p.parent.name for p in run_dir.parent.glob(f"{run_dir.name}-[0-9]*/{CONFIG_FILE}"))
        fix = f"name one of {', '.join(seeds)}, or all by --seeds" if seeds else "check --run-name and --runs"
        raise UserError(f"{run_dir} holds no run to resume (no {CONFIG_FILE}); {fix}.")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        exported = "spec" in about
        if not exported and isinstance(about["config"], dict) and is_sealed(about):
            return dict(about)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        exported = False  # told below, with the other kind of damage
    if exported:
        raise UserError(f"{run_dir} is an exported agent and no run; name a run's folder.")
    copies = [folder / CONFIG_FILE for folder in reversed(checkpoint.checkpoints(run_dir))]
    put_back = (shlex.join(["cp", str(copy), str(path)]) for copy in copies if copy.is_file())
    fix = next((f"put back its copy: {command}" for command in put_back), "restore it")
    raise UserError(f"{path} is {'damaged' if path.exists() else 'gone'}; {fix}.")


class Signals:
    """Notes the signals of ``STOPS`` instead of dying, from ``note`` on; the loop looks at ``caught`` between steps."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        return self

    def note(self) -> None:
        """Begin; before there is anything to save, a signal may as well end the program."""
        if not self._before and threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for signum in STOPS:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.caught is None:
            self.caught, self._since = signum, time.monotonic()
        elif insists(signum, self._since):  # does what it always did
            signal.signal(signum, self._before[signum])
            signal.raise_signal(signum)

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

    def __init__(self, session: _Session, state: State, log: MetricsLog, bar: Progress, signals: Signals):
        self.session, self.cfg, self.run_dir = session, session.cfg, session.run_dir
        self.state, self.log, self.bar, self.signals = state, log, bar, signals
        self.clock = time.monotonic()  # until then tally.seconds counts
        self.paced = state.step, self.clock  # where and when the pace of the log's next line begins
        self.alarmed = set[str]()  # each alarm is told once
        self.recent = deque[bool](maxlen=500)  # of TV on/off, for the screen alone
        self.tv_chance = tv_chance(self.cfg.env())
        self.first_update = _first_update(self.cfg)

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
        use_arithmetic(self.cfg.device, self.cfg.precision)
        if wants.failed:
            raise wants.failed

    def _update_is_due(self) -> bool:
        """Whether learning lags behind ``update_every``, and a whole sequence is there to learn from."""
        due = (self.state.step - self.first_update) / self.cfg.update_every
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
        if moved.any():
            now = max(0, s.step - 1) // BIN  # envs may have started again before the first step
            tally.tv_bins.extend([0, 0] for _ in range(now + 1 - len(tally.tv_bins)))
            tally.tv_bins[now][0] += int(watched.sum())
            tally.tv_bins[now][1] += int(moved.sum())
        new = {cell for cell, step in zip(s.envs.cells(), moved, strict=False) if step} - set(tally.visited)
        tally.visited.extend(sorted(new))

    def _coverage(self) -> float | None:
        """Share of the grid's cells visited by training steps; None without a grid."""
        grid = self.state.envs.grid
        return None if grid is None else len(self.state.tally.visited) / grid.cells

    def _tv_share(self) -> float | None:
        return sum(self.recent) / len(self.recent) if self.cfg.noisy_tv and self.recent else None

    def _log(self) -> None:
        s, tally = self.state, self.state.tally
        self.bar.update(s.step)
        if s.step - tally.logged < self.cfg.log_every:
            return
        s.guard.ask()
        tally.logged = s.step
        (step, at), self.paced = self.paced, (s.step, time.monotonic())
        if s.summed == 0:
            return
        values = {k: v for k, v in s.sums.means().items() if self._says_something(k)}
        values["wall_steps_per_s"] = (s.step - step) / (self.paced[1] - at)
        if s.probe and self.cfg.tv.control is None:
            values |= s.probe.report()
        self._alarm(values)
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
        return partial(make_env, self.cfg.env(tv_on=tv_on), images=self.session.images)  # for workers, too

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
        s.guard.ask()  # what is played is also written, and a device was not looked at since the last line of metrics
        self.bar.update(s.step, note="evaluating")
        how: Any = {"seed": EVAL_SEED, "watch": self._give_way, "workers": self.cfg.env_workers}
        scores = evaluate(s.agent, self._make(tv_on=True), episodes=episodes, **how)
        off = None
        if self.cfg.noisy_tv:
            same = self.cfg.env(tv_on=False) == self.cfg.env()  # a TV that was a sham from the start
            make = self._make(tv_on=False)
            off = scores if same else evaluate(s.agent, make, episodes=episodes, **how)
        for line in [*scores.news, *(off.news if off and off is not scores else ())]:
            self.bar.say(f"{line} It was evaluating: its episodes ended there.")
        video = self._film(how) if self.cfg.pictures else None
        # Only now, so that whoever is stopped before has evaluated nothing, and evaluates when he goes on.
        s.tally.evaluated = s.step
        self.log.write(s.step, "eval", {"arm": "as_trained", **scores.row(has_tv=self.cfg.noisy_tv)})
        if off:
            self.log.write(s.step, "eval", {"arm": "tv_off", **off.row()})
        self.bar.say(f"{s.step:,} steps: evaluation return {np.mean(scores.returns):.1f} (mean of {episodes})")
        return scores, off, video

    def _film(self, how: dict[str, Any]) -> Path | None:
        """An episode as an MP4; None, with a word, where it cannot be written: training is worth more."""
        s = self.state
        title = f"{self.run_dir.name} after {s.step:,} steps"
        trace = record(s.agent, self._make(tv_on=True), title=title, has_tv=self.cfg.noisy_tv, **how)
        path = self.run_dir / "videos" / f"eval_iter_{s.step}_ep_0.mp4"
        try:
            return episode_video(path, trace, watch=self._give_way)
        except (OSError, UserError) as error:  # what the disk says, or that there is no ffmpeg
            self._give_way()  # whoever stops all processes stops the encoder too
            self.bar.say(f"No film: {error}")
            return None

    def _save(self) -> None:
        if self.state.tally.saved == self.state.step:
            return  # nothing is learned without a step, and a whole checkpoint is never replaced
        begin, tally = self._count_seconds(), self.state.tally
        self.state.save(self.run_dir, self.session.run, self.log.position())
        tally.saving_seconds += time.monotonic() - begin

    def _count_seconds(self) -> float:
        """Bring the tally's wall time up to now, which is returned."""
        now, tally = time.monotonic(), self.state.tally
        tally.seconds += now - self.clock
        tally.shared_seconds += (now - self.clock) / self.session.together
        self.clock = now
        return now

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

    def finish(self) -> Report:
        """Last evaluation, agent file, curves, summary."""
        s = self.state
        if self.cfg.checkpoint_every or checkpoint.checkpoints(self.run_dir):  # one of a stop is behind by now
            self._save()  # before the last evaluation: whoever resumes a finished run repeats it, and no line twice
        scores, off, video = self._evaluate(2 * self.cfg.eval_episodes)
        agent = self.run_dir / AGENT_FILE
        save_agent(agent, s.agent, self._about())
        summary = self._summary(scores, off)
        write_json(self.run_dir / SUMMARY_FILE, summary)
        return Report(summary, agent, video, plot_run(self.run_dir) if self.cfg.pictures else None)

    def _summary(self, scores: Scores, off: Scores | None) -> dict[str, Any]:
        self._count_seconds()
        s, shown = self.state, self.session.shown
        grid = s.envs.grid
        return {
            "env_steps": s.step,
            "updates": s.tally.updates,
            "wall_seconds": s.tally.seconds,
            "shared_seconds": s.tally.shared_seconds,
            "runs_in_process": self.session.together,
            "peak_memory_bytes": peak_memory(),
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
            "git_revision": ", ".join(s.tally.revisions) or None,
        }

    def _escape(self) -> dict[str, float | None]:
        """How the run got away from the TV; None without one."""
        bins, step = self.state.tally.tv_bins, self.state.step
        if self.tv_chance is None:
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

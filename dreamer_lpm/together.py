"""Several runs in one process, in turns, each as it would be alone; on a GPU those that are alike learn as one."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from dreamer_lpm.capture import new_stream
from dreamer_lpm.flock import Flock, alike
from dreamer_lpm.machine import pick_device, use_arithmetic
from dreamer_lpm.noisy_tv import NoisyTVError
from dreamer_lpm.report.screen import Screen
from dreamer_lpm.train import LOG_FILE, Job, Report, Signals, Stopped, Wants, session
from dreamer_lpm.types import UserError

FLOCKS_ON = ("cuda",)  # devices; a CPU is busy with one agent
LOOK_EVERY = 0.2  # seconds between two looks at all runs, for the screen


def train_together(jobs: Sequence[Job], screen: Screen | None = None) -> list[Report | Exception]:
    """Start these runs, or go on with them. What each left behind, or why it ended.

    A run that cannot go on leaves the others, and in its log.txt the traceback of what was no mistake of the user's;
    SIGINT, SIGTERM and SIGHUP stop them all, saved (Stopped). With ``screen``, which shows them all, each says what it
    has to say in its folder, in log.txt.
    """
    with Signals() as signals:
        streams = {device: new_stream(device) for device in {pick_device(job.cfg.device) for job in jobs}}
        runs = [_Turns(job, signals, streams, in_file=screen is not None) for job in jobs]
        flocks = _Flocks()
        looked = 0.0
        while active := [run for run in runs if run.result is None]:
            for run in active:
                run.go_on()
                if screen and run.result is not None:
                    run.tell(screen)
            flocks.serve([run for run in active if run.device.type in FLOCKS_ON and run.result is None])
            for run in active:
                run.serve()
            if screen and time.monotonic() - looked > LOOK_EVERY:
                screen.update({run.name: (run.step, run.job.cfg.steps) for run in active if run.result is None})
                looked = time.monotonic()
    return [run.result for run in runs if run.result is not None]


class _Turns:
    """A run that goes on, when it is asked to, up to where it wants its state to do something."""

    def __init__(
        self, job: Job, signals: Signals, streams: dict[torch.device, torch.cuda.Stream | None], *, in_file: bool
    ) -> None:
        self.job, self.name = job, job.run_dir.name
        self.device = pick_device(job.cfg.device)
        self.stream = streams[self.device]  # all begin on one
        self.result: Report | Exception | None = None
        self.wants: Wants | None = None
        self.waits = False  # for others, to do it with them
        self.settled = False  # whether it is known with whom
        self.step = 0
        self._work = session(job, signals, in_file=in_file)

    def go_on(self) -> None:
        """Up to what it wants next, unless it still wants something, or to its end."""
        if self.wants:
            return
        with torch.cuda.stream(self.stream):
            try:
                self.wants = next(self._work)
                self.step = self.wants.state.step
            except StopIteration as end:
                self.result = end.value
            except Exception as error:  # noqa: BLE001  whatever it is, the others go on
                self.result = error
                if not isinstance(error, UserError | NoisyTVError | OSError | Stopped):
                    self._write_down()
                _let_go_of_frames(error)

    def _write_down(self) -> None:
        """The traceback, in the run's log; without a word where the disk is full."""
        with suppress(OSError):
            self.job.run_dir.mkdir(parents=True, exist_ok=True)  # gone, if nothing had come of it
            with (self.job.run_dir / LOG_FILE).open("a") as log:
                traceback.print_exc(file=log)

    def serve(self) -> None:
        """What it wants, for it alone, unless it waits for others."""
        if self.wants and not self.waits:
            with torch.cuda.stream(self.stream):
                self.wants.serve()
            self.wants = None

    def tell(self, screen: Screen) -> None:
        """Say how the run ended."""
        if isinstance(self.result, Report):
            screen.done(self.name, self.job.cfg.steps)
        else:
            screen.gone(self.name)
            screen.say(f"{self.name} {'is stopped.' if isinstance(self.result, Stopped) else f'failed: {self.result}'}")


class _Flocks:
    """Which runs learn as one.

    Members learn all at once, so those that want to learn wait for the others. What they observe, they may also observe
    alone: an episode may have ended for one before another.
    """

    def __init__(self) -> None:
        self._flocks: list[tuple[list[_Turns], Flock]] = []

    def serve(self, runs: Sequence[_Turns]) -> None:
        """Do what members of a flock want, if they all want the same; of all others, note who waits."""
        self._let_go(runs)
        for run in runs:
            run.waits = False
        self._gather(runs)
        for members, flock in self._flocks:
            wants = {run.wants.policy for run in members if run.wants}
            if len(wants) > 1:
                for run in members:
                    run.waits = run.wants is not None and run.wants.policy is None
                continue
            (policy,) = wants
            with _heard_by(members), torch.cuda.stream(members[0].stream):
                use_arithmetic(flock.model.cfg.device, flock.model.cfg.precision)
                flock.learn() if policy is None else flock.observe(policy)
            for run in members:
                run.wants = None

    def _let_go(self, runs: Sequence[_Turns]) -> None:
        """Flocks of which one has ended, or gone back to a checkpoint."""
        for members, flock in list(self._flocks):
            if not all(run in runs and run.wants and run.wants.state in flock.states for run in members):
                with torch.cuda.stream(members[0].stream):  # after what was launched there
                    flock.dissolve()
                for run in members:
                    run.settled = False
                self._flocks.remove((members, flock))

    def _gather(self, runs: Sequence[_Turns]) -> None:
        """New flocks, of runs that are alike, each on a stream of its own; also one that has no like."""
        fresh = [(run, run.wants.state) for run in runs if not run.settled and run.wants]
        if fresh:
            # A state and what it recorded hold each other: those of runs that ended would keep the memory of the flock
            # they were in, of which a device has no second, until Python happens to look for such rings.
            gc.collect()
        while fresh:
            peers = [(run, state) for run, state in fresh if alike(fresh[0][1], state)]
            fresh = [pair for pair in fresh if pair not in peers]
            stream = new_stream(peers[0][0].device)
            for run, _ in peers:
                if stream and run.stream:
                    stream.wait_stream(run.stream)
                run.stream, run.settled = stream, True
            if len(peers) > 1:
                members = [run for run, _ in peers]
                with _heard_by(members), torch.cuda.stream(stream):
                    self._flocks.append((members, Flock([state for _, state in peers])))


def _let_go_of_frames(error: BaseException | None) -> None:
    """What was in the frames that an error passed through: the run's state, and the device's memory with it."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


@contextmanager
def _heard_by(members: Sequence[_Turns]) -> Iterator[None]:
    """What goes wrong for all of them is theirs to hear of, when they go on, and no other run's."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  it is raised again, there
        for run in members:
            if run.wants:
                run.wants.failed = error
                run.wants = None

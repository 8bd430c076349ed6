"""Several runs in one process: each as it would be alone, whatever becomes of the others."""

from __future__ import annotations

import gc
import signal
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dreamer_lpm import guard as guard_module
from dreamer_lpm import machine as machine_module
from dreamer_lpm import together as together_module
from dreamer_lpm import train as train_module
from dreamer_lpm.config import RunConfig
from dreamer_lpm.flock import Flock
from dreamer_lpm.guard import Guard
from dreamer_lpm.noisy_tv import TVImages, load_images
from dreamer_lpm.report.metrics import read_metrics
from dreamer_lpm.state import State
from dreamer_lpm.together import train_together
from dreamer_lpm.train import Job, Report, Stopped, Wants, train
from dreamer_lpm.types import NotFinite, UserError
from tests.tiny_run import TINY, WITH_TV

CFG = replace(WITH_TV, steps=150, eval_every=70, checkpoint_every=50, num_envs=1, replay_capacity=300, pictures=False)
SEEDS = [replace(CFG, seed=seed) for seed in range(3)]
OTHER = replace(CFG, agent=replace(TINY.agent, curiosity="none"), steps=100)
LONGER = replace(CFG, seed=7, steps=190, pictures=True)


@pytest.fixture
def flocks(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """On a CPU as on a GPU. How many updates were made by flocks of each size."""
    monkeypatch.setattr(together_module, "FLOCKS_ON", ("cpu",))
    monkeypatch.setattr(guard_module, "TOLD_AT_ONCE", ())
    sizes: Counter[int] = Counter()
    learn = Flock.learn
    monkeypatch.setattr(Flock, "learn", lambda self: (sizes.update([len(self.states)]), learn(self))[1])
    return sizes


def jobs(folder: Path, *cfgs: RunConfig, resume: bool = False) -> list[Job]:
    return [Job(cfg, folder / f"{cfg.agent.curiosity}-{cfg.seed}", resume) for cfg in cfgs]


def weights(job: Job) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(job.run_dir / "agent_lpm.pth", weights_only=True)["weights"]
    return found


def rows(job: Job) -> list[tuple[Any, ...]]:
    return [(row["step"], row["kind"], sorted(row), row.get("updates")) for row in read_metrics(job.run_dir)]


def assert_alike(a: Job, b: Job) -> None:
    for (key, x), y in zip(weights(a).items(), weights(b).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-3, msg=key)
    assert rows(a) == rows(b)


def test_each_run_is_what_it_would_be_alone(tmp_path: Path, flocks: Counter[int]) -> None:
    every = jobs(tmp_path / "together", *SEEDS, OTHER, LONGER)
    results = train_together(every)
    assert all(isinstance(result, Report) for result in results), results
    assert flocks[4] > 15, "four are alike: the fifth has another curiosity"
    for job in every:
        alone = Job(job.cfg, tmp_path / "alone" / job.run_dir.name)
        train(alone.cfg, alone.run_dir)
        assert_alike(job, alone)
    size = (tmp_path / "together" / "lpm-0" / "agent_lpm.pth").stat().st_size
    assert size < 1.05 * (tmp_path / "alone" / "lpm-0" / "agent_lpm.pth").stat().st_size, "its own weights alone"


def test_pictures_that_were_found_already_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = load_images("static")[0], TVImages("auto", "photos", 3, "found by somebody")
    monkeypatch.setattr(train_module, "load_images", None)
    monkeypatch.setattr(train_module, "plot_run", lambda run_dir: None)
    [job] = jobs(tmp_path, replace(CFG, steps=30, eval_every=0, pictures=False))
    [result] = train_together([replace(job, pictures=pictures)])
    assert isinstance(result, Report), result
    assert (result.summary["tv_images"]["used"], result.summary["tv_images"]["count"]) == ("photos", 3)


def test_without_flocks_the_bits_are_the_same(tmp_path: Path) -> None:
    every = jobs(tmp_path / "together", *SEEDS[:2])
    train_together(every)
    for job in every:
        alone = Job(job.cfg, tmp_path / "alone" / job.run_dir.name)
        train(alone.cfg, alone.run_dir)
        assert all(torch.equal(x, y) for x, y in zip(weights(job).values(), weights(alone).values(), strict=True))


def test_a_signal_saves_them_all_and_all_go_on(
    tmp_path: Path, flocks: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    learned = State.learned

    def interrupted(self: State) -> None:
        learned(self)
        if self.tally.updates == 12 and self.cfg.seed == 1 and not flocks["told"]:  # type: ignore[index]
            flocks["told"] += 1  # type: ignore[index]
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(State, "learned", interrupted)
    results = train_together(jobs(tmp_path, *SEEDS))
    assert [type(result) for result in results] == [Stopped] * 3
    assert signal.getsignal(signal.SIGTERM) is before
    every = jobs(tmp_path, *SEEDS, resume=True)
    assert all(isinstance(result, Report) for result in train_together(every))
    for job in every:
        alone = Job(job.cfg, tmp_path / "alone" / job.run_dir.name)
        train(alone.cfg, alone.run_dir)
        assert_alike(job, alone)


def test_one_that_breaks_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An env, or a library, may raise anything; what it raised is in that run's log."""
    observe = State.observe

    def breaking(self: State, policy: Any) -> None:
        if self.cfg.seed == 1 and self.step >= 60:
            raise RuntimeError("the simulator is gone")
        observe(self, policy)

    monkeypatch.setattr(State, "observe", breaking)
    asked = jobs(tmp_path, *SEEDS)
    results = train_together(asked)
    assert [type(result) for result in results] == [Report, RuntimeError, Report]
    assert "RuntimeError: the simulator is gone" in (asked[1].run_dir / "log.txt").read_text()


def test_one_that_breaks_before_it_has_a_folder_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = State.__init__

    def breaking(self: State, cfg: RunConfig, *args: Any) -> None:
        if cfg.seed == 1:
            raise RuntimeError("no licence for the simulator")
        begin(self, cfg, *args)

    monkeypatch.setattr(State, "__init__", breaking)
    asked = jobs(tmp_path, *SEEDS)
    assert [type(result) for result in train_together(asked)] == [Report, RuntimeError, Report]
    assert "no licence for the simulator" in (asked[1].run_dir / "log.txt").read_text()


def test_each_run_computes_in_its_own_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is a switch of the process, and the others in it may want it otherwise."""
    on: list[bool] = []
    monkeypatch.setattr(machine_module, "set_tf32", on.append)
    for precision in ("fp32", "tf32", "fp32"):
        cfg = SimpleNamespace(device="cuda", precision=precision)
        learned: list[int] = []
        state = SimpleNamespace(cfg=cfg, learn=lambda learned=learned: learned.append(len(on)))
        Wants(cast(State, state), None).serve()
        assert learned == [len(on)], "set before it learns"
    assert on == [False, True, False]


@pytest.mark.parametrize("where", ["learn", "_stacked_agents"])
def test_a_flock_that_fails_leaves_the_others(
    tmp_path: Path, flocks: Counter[int], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A device that is full when several learn as one is no fault of the run that has no like."""

    def full(self: Flock) -> None:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(Flock, where, full)
    asked = jobs(tmp_path, *SEEDS, OTHER)
    results = train_together(asked)
    assert [type(result) for result in results] == [torch.OutOfMemoryError] * 3 + [Report]
    assert "OutOfMemoryError: planted" in (asked[1].run_dir / "log.txt").read_text()


def test_one_that_fails_leaves_the_others(
    tmp_path: Path, flocks: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    look, asked = Guard.ask, [0]

    def ill(self: Guard) -> None:
        look(self)
        asked[0] += 1
        if asked[0] == 8:
            raise NotFinite("planted")

    taken = jobs(tmp_path, CFG)[0].run_dir
    taken.mkdir(parents=True)
    (taken / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    monkeypatch.setattr(Guard, "ask", ill)
    results = train_together(jobs(tmp_path, *SEEDS, LONGER))
    assert isinstance(results[0], UserError)
    assert "already holds a run" in str(results[0])
    others = [result for result in results[1:] if isinstance(result, Report)]
    assert sorted(other.summary["rollbacks"] for other in others) == [0, 0, 1]


def test_runs_that_ended_leave_their_memory_to_the_others(
    tmp_path: Path, flocks: Counter[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device has no room for the flock of before beside the one that goes on."""
    states = weakref.WeakSet[State]()
    alive: list[tuple[int, int]] = []
    init = Flock.__init__

    def noting(self: Flock, members: list[State]) -> None:
        alive.append((len(members), len(states)))
        init(self, members)
        states.update(members)

    action = State.action

    def breaking(self: State) -> Any:
        if self.cfg.seed == 1 and self.step >= 90:
            raise RuntimeError("the simulator is gone")
        return action(self)

    monkeypatch.setattr(Flock, "__init__", noting)
    monkeypatch.setattr(State, "action", breaking)
    gc.disable()
    try:
        train_together(jobs(tmp_path, *SEEDS))
    finally:
        gc.enable()
    assert alive == [(3, 0), (2, 2)], "of the three the one that ended is gone"

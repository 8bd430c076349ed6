"""What only a CUDA device can show: the same numbers as a CPU, graphs that equal what they recorded, no waiting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer_lpm.agent import Agent
from dreamer_lpm.capture import WARM_UP, new_stream
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.noisy_tv import load_images
from dreamer_lpm.state import State
from dreamer_lpm.together import train_together
from dreamer_lpm.train import Job, Report, train
from dreamer_lpm.types import Batch
from tests.test_capture import everything
from tests.test_flock import assert_close
from tests.test_flock import played as play
from tests.tiny_run import TINY, WITH_TV

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CUDA = torch.device("cuda")
ON_CUDA = replace(WITH_TV, device="cuda")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Whole fp32, for comparisons."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.cuda.set_sync_debug_mode("default")


def played(cfg: RunConfig, steps: int = 26, *, graphs: bool = True, after: int = 10**9) -> State:
    """Some steps and updates; from step ``after`` on any implicit wait for the device is an error."""
    with torch.cuda.stream(new_stream(CUDA)):
        state = State(cfg, load_images("static", None)[0])
        for captured in (*state._observe.values(), state._update):
            captured.records = graphs
        state.row = state.envs.reset_row()
        for i in range(steps):
            if i == after:
                torch.cuda.set_sync_debug_mode("error")
            state.observe("random" if i < 10 else "sample")
            if i > 10:
                state.learn()
            state.row = state.envs.step(state.action())
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return state


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_an_update_is_the_same_as_on_a_cpu(curiosity: str) -> None:
    cfg = replace(TINY.agent, curiosity=curiosity)
    state = State(replace(WITH_TV, agent=cfg), load_images("static", None)[0])
    state.row = state.envs.reset_row()
    for _ in range(12):
        state.observe("random")
        state.row = state.envs.step(state.action())
    agents = [Agent(cfg, state.envs.action_spec, seed=1, device=d) for d in ("cpu", "cuda")]
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch, uniform = state.replay.sample(rng, 2, 6), agents[0].uniform(agents[0].update_chances(2, 6))
        here, there = (
            agent.update(Batch(*(x.to(agent.device) for x in batch)), uniform.to(agent.device)) for agent in agents
        )
        for key, value in here.items():
            torch.testing.assert_close(there[key].cpu(), value, rtol=2e-3, atol=2e-4, equal_nan=True, msg=key)


@pytest.mark.parametrize("curiosity", REGISTRY)
def test_a_graph_does_what_it_recorded(curiosity: str) -> None:
    cfg = replace(ON_CUDA, agent=replace(TINY.agent, curiosity=curiosity))
    one, other = everything(played(cfg, graphs=False)), everything(played(cfg, graphs=True))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=2e-3, atol=2e-4, equal_nan=True, msg=key)


def test_nothing_waits_for_the_device_between_two_lines_of_the_log() -> None:
    played(ON_CUDA, 40, after=10 + 2 * WARM_UP + 4)


def test_nor_without_graphs() -> None:
    played(ON_CUDA, 40, after=10 + 2 * WARM_UP + 4, graphs=False)


def test_several_seeds_in_one_process_equal_each_alone(tmp_path: Path) -> None:
    cfgs = [replace(ON_CUDA, seed=seed, steps=100) for seed in range(3)]
    side_by_side = train_together([Job(cfg, tmp_path / f"{cfg.seed}") for cfg in cfgs])
    for cfg, result in zip(cfgs, side_by_side, strict=True):
        assert isinstance(result, Report)
        alone = train(cfg, tmp_path / f"alone-{cfg.seed}")
        weights = [
            torch.load(tmp_path / name / "agent_lpm.pth", weights_only=True, map_location="cpu")["weights"]
            for name in (f"{cfg.seed}", f"alone-{cfg.seed}")
        ]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-2, atol=1e-3, msg=key)
        assert result.summary["updates"] == alone.summary["updates"]


def test_fused_steps_learn_the_same() -> None:
    plain, fused = (played(replace(ON_CUDA, compile=how)) for how in (False, True))
    assert fused.agent.fused
    assert not plain.agent.fused
    assert_close([fused], [plain], atol=5e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("curiosity", ["lpm", "lpm_dual", "lpm_paired"])
def test_members_of_a_flock_learn_what_they_would_alone(curiosity: str, compiled: bool) -> None:
    cfg = replace(ON_CUDA, compile=compiled, agent=replace(TINY.agent, curiosity=curiosity))
    with torch.cuda.stream(new_stream(CUDA)):
        assert_close(play(cfg, together=True), play(replace(cfg, compile=False), together=False), atol=5e-3)

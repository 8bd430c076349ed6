"""The documents, and an agent to try their examples with."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dreamer_lpm.agent import Agent, AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import CuriosityConfig
from dreamer_lpm.evaluate import save_agent
from dreamer_lpm.settings import to_plain
from dreamer_lpm.types import ActionSpec
from dreamer_lpm.world import RSSMConfig, WorldConfig

ROOT = Path(__file__).parents[2]


def small_agent(path: Path, run: RunConfig, spec: ActionSpec) -> Path:
    """A small untrained agent at ``path``, as if ``run`` had trained it."""
    world = WorldConfig(rssm=RSSMConfig(deter=16, hidden=16, stoch=4, classes=4), depth=2)
    small = AgentConfig(world=world, behavior=BehaviorConfig(hidden=16), bonus=CuriosityConfig(hidden=16, queue=240))
    about = {"env": run.env_name, "run": to_plain(replace(run, agent=small))}
    save_agent(path, Agent(small, spec), about)
    return path


@pytest.fixture
def agent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small untrained Pendulum agent, as ``agent_lpm.pth`` in an otherwise empty working directory."""
    monkeypatch.setenv("SDL_VIDEODRIVER", os.environ.get("SDL_VIDEODRIVER", "dummy"))
    monkeypatch.chdir(tmp_path)
    return small_agent(tmp_path / "agent_lpm.pth", RunConfig(), ActionSpec("continuous", 1))

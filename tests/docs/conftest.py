"""The documents, and an agent to try their examples with."""

import os
from pathlib import Path

import pytest

from dreamer_lpm.agent import Agent, AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.curiosity import CuriosityConfig
from dreamer_lpm.evaluate import save_agent
from dreamer_lpm.types import ActionSpec
from dreamer_lpm.world import RSSMConfig, WorldConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small untrained Pendulum agent, as ``agent_lpm.pth`` in an otherwise empty working directory."""
    monkeypatch.setenv("SDL_VIDEODRIVER", os.environ.get("SDL_VIDEODRIVER", "dummy"))
    monkeypatch.chdir(tmp_path)
    world = WorldConfig(rssm=RSSMConfig(deter=16, hidden=16, stoch=4, classes=4), depth=2)
    small = AgentConfig(world=world, behavior=BehaviorConfig(hidden=16), bonus=CuriosityConfig(hidden=16, queue=64))
    path = tmp_path / "agent_lpm.pth"
    save_agent(path, Agent(small, ActionSpec("continuous", 1)), {"env": "Pendulum-v1"})
    return path

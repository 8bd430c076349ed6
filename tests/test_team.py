"""Several processes that learn one agent: their gradients, their run, and what goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dreamer_lpm import checkpoint, cli, commands
from dreamer_lpm import state as state_module
from dreamer_lpm.agent import Agent, total
from dreamer_lpm.curiosity import REGISTRY
from dreamer_lpm.state import State
from dreamer_lpm.team import LARGEST_STATISTIC, Team, joined
from dreamer_lpm.types import ActionSpec, Batch, UserError
from tests.tiny_run import TINY, differences, write_config
from tests.world.tiny import random_batch

B, T, WORLD = 4, 6, 2
SPEC = ActionSpec("continuous", 2)


def _agent(curiosity: str) -> Agent:
    return Agent(replace(TINY.agent, curiosity=curiosity), SPEC, seed=1)


def _by_hand(agents: list[Agent], batch: Batch, uniform: torch.Tensor) -> None:
    """One update of agents that are one: the mean of the gradients that each takes of its share."""
    for own, first in zip(agents[1].buffers(), agents[0].buffers(), strict=True):
        if own.numel() <= LARGEST_STATISTIC:
            own.copy_(first)
    shares = [Batch(*parts) for parts in zip(*(x.chunk(WORLD) for x in batch), strict=True)]
    for agent, share, chance in zip(agents, shares, uniform.chunk(WORLD), strict=True):
        agent.starts = agent.cfg.behavior.starts // WORLD
        agent.optimizer.zero_grad()
        torch.autograd.backward(total(agent(share, chance).losses))
    for one, other in zip(*(agent.parameters() for agent in agents), strict=True):
        if one.grad is not None and other.grad is not None:
            one.grad = (one.grad + other.grad) / 2
            other.grad = one.grad.clone()
    for agent in agents:
        for params in agent.learned.values():
            nn.utils.clip_grad_norm_(params, agent.cfg.clip)
        agent.optimizer.step()
        agent.behavior.critic.follow()


def _member(rank: int, port: int, found: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with joined() as team:
        assert team is not None
        if rank:
            team.help()
            return
        wrong = []
        for name in REGISTRY:
            agent = _agent(name)
            agents = [_agent(name) for _ in range(WORLD)]
            for i in range(3):
                uniform = agent.uniform(team.chances(agent, B, T))
                batch = random_batch(SPEC, (B, T), seed=i)
                team.update(agent, batch, uniform)
                _by_hand(agents, batch, uniform)
            pairs = zip(agent.state_dict().items(), agents[0].state_dict().values(), strict=True)
            wrong += [f"{name}: {key}" for (key, x), y in pairs if not torch.allclose(x.float(), y.float(), atol=1e-5)]
        found.write_text("\n".join(["done", *wrong]))


def test_a_team_learns_as_one_agent_from_the_mean_of_its_gradients(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_member, (port, tmp_path / "found"), nprocs=WORLD)
    assert (tmp_path / "found").read_text() == "done"


def _torchrun(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD),
               "-m", "dreamer_lpm", "train", "--run-name", "run", *options]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "runs/run/agent_lpm.pth", weights_only=True)["weights"]
    return weights


def test_a_team_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_config(folder)
    _finish(_torchrun(whole, "--config", "tiny.toml", "--curiosity", "none", "--no-pictures"))
    _finish(_torchrun(cut, "--config", "tiny.toml", "--curiosity", "none", "--no-pictures", "--steps", "96"))
    assert differences(_weights(whole), _weights(cut))
    _finish(_torchrun(cut, "--resume", "--steps", "160"))
    assert differences(_weights(whole), _weights(cut)) == []


def test_a_team_that_is_told_to_stop_saves_and_ends(tmp_path: Path) -> None:
    write_config(tmp_path)
    process = _torchrun(
        tmp_path, "--config", "tiny.toml", "--steps", "1000000", "--no-pictures", "--checkpoint-every", "0"
    )
    metrics = tmp_path / "runs/run/metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert "Stopped and saved (SIGTERM)" in said
    assert checkpoint.checkpoints(tmp_path / "runs/run")


@pytest.mark.parametrize("alone", [True, False])
def test_nobody_is_fused_in_a_team(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process alone would be, and would wait for the others all the same."""
    fused: list[Agent] = []
    monkeypatch.setattr(state_module, "fuse", fused.append)
    state = State(replace(TINY, compile=True), None)
    agent = state.agent
    if not alone:
        state.team = SimpleNamespace(  # type: ignore[assignment]
            chances=lambda agent, b, t: agent.update_chances(b, t),
            update=lambda agent, batch, uniform: (agent.update(batch, uniform), batch),
        )
    state.row = state.envs.reset_row()
    while len(state.replay) <= TINY.seq_length:
        state.observe("random")
        state.row = state.envs.step(state.action())
    state.learn()
    state.learn()
    assert fused == ([agent] if alone else [])


def test_what_a_team_cannot_do_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="take a multiple of it"):
        Team.check(SimpleNamespace(size=2), 3)  # type: ignore[arg-type]
    monkeypatch.setattr(commands, "joined", lambda: nullcontext(SimpleNamespace(rank=0, size=2)))
    assert cli.main(["train", "--seeds", "0,1"]) == 2
    assert "start dreamer-lpm without it" in capsys.readouterr().err

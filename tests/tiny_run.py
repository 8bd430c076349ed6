"""The smallest run that still does everything a run does, and what is compared when two of them must be equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamer_lpm import checkpoint
from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.behavior import BehaviorConfig
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import CuriosityConfig
from dreamer_lpm.settings import to_plain
from tests.world.tiny import WORLD_CONFIG

TINY = RunConfig(
    steps=160,
    env_name="CartPole-v1",
    tv_images="static",
    time_limit=20,
    batch_size=2,
    seq_length=6,
    update_every=4.0,
    prefill=40,
    replay_capacity=1000,
    eval_every=0,
    eval_episodes=1,
    log_every=30,
    agent=AgentConfig(
        world=WORLD_CONFIG,
        behavior=BehaviorConfig(hidden=16, layers=1, horizon=3, starts=4),
        bonus=CuriosityConfig(hidden=16, queue=40),
    ),
    device="cpu",
    precision="fp32",
    threads=1,
)
# Continuous actions, two envs, and a TV that is often on.
WITH_TV = replace(TINY, env_name="Pendulum-v1", noisy_tv=True, num_envs=2, action_repeat=1)


def as_toml(data: Mapping[str, Any], name: str = "") -> str:
    """Plain settings as TOML, in the table ``name``. It has no null: what is None is left out."""
    text = f"[{name}]\n" if name else ""
    text += "".join(f"{k} = {json.dumps(v)}\n" for k, v in data.items() if v is not None and not isinstance(v, dict))
    return text + "".join(as_toml(v, f"{name}.{k}".lstrip(".")) for k, v in data.items() if isinstance(v, dict))


def write_config(folder: Path, *, env_name: str = "CartPole-v1", steps: int = 160) -> Path:
    """``TINY`` as a file."""
    path = folder / "tiny.toml"
    path.write_text(as_toml(to_plain(replace(TINY, env_name=env_name, steps=steps))), encoding="utf-8")
    return path


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every row, without the times that differ from machine to machine."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("wall_")} for row in rows]


def everything(run_dir: Path) -> dict[str, Any]:
    """What a run has become: its newest checkpoint to the last bit, its memory, its record."""
    saved, damaged = checkpoint.load_newest(run_dir)
    assert saved is not None
    assert not damaged
    tally = {key: value for key, value in saved.plain["tally"].items() if "seconds" not in key}
    plain = {**saved.plain, "tally": tally}
    cfg = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["config"]
    held = cfg["replay_capacity"] // cfg["num_envs"]  # the pieces may hold older rows too
    pieces = [checkpoint.load_rows(path) for path in saved.replay]
    memory = {key: np.concatenate([piece[key] for piece in pieces])[-held:] for key in pieces[0]}
    agent = torch.load(run_dir / "agent_lpm.pth", weights_only=True)
    best_file = run_dir / "agent_best.pth"
    best = torch.load(best_file, weights_only=True)["weights"] if best_file.exists() else {}
    return {"step": saved.step, "tensors": saved.tensors, **plain, "memory": memory, "metrics": metrics(run_dir),
            "agent": agent["weights"], "best": best}  # fmt: skip


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Names of what is not equal bit for bit. NaN equals NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        missing = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        return missing + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where} has {len(a)} and {len(b)}"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return differences(a.numpy(), b.numpy(), where)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
        return [] if same else [where]
    return [] if (type(a) is type(b) and repr(a) == repr(b)) else [f"{where}: {a!r} and {b!r}"]

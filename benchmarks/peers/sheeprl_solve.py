"""Trains sheeprl's DreamerV3 on pixel Pendulum with its own program, for `dreamer-lpm bench --solve --against sheeprl`.

Runs in the peer's own virtual environment (sheeprl-requirements.txt) and imports nothing of this project. It trains
until it is killed, and appends one JSON line to --log when the agent is built (what was built) and after every training
episode: {"kind": "episode", "step": env steps so far, "return": of the env itself, "updates": so far}.

The env is made of sheeprl's own wrappers: actions from [-1, 1], each taken --action-repeat times, then the env's
picture, drawn once and shrunk by cv2's INTER_AREA. They are what `dreamer_lpm.envs.make_env` makes of it.

Favours to the peer: no metrics, no checkpoints, no evaluation, a replay in memory instead of in files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import sheeprl_update as update
import torch
from sheeprl.cli import check_configs, run_algorithm

ENV_ID = "ToldPendulum-v1"
ENDLESS = 1_000_000_000  # policy steps; whoever started this program ends it


class Told(gym.Wrapper):
    """Tells of every episode by the env's own steps and rewards, before any other wrapper."""

    def __init__(self, env: gym.Env, tell: Any):
        super().__init__(env)
        self.tell, self.steps, self.total = tell, 0, 0.0

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        _, reward, terminated, truncated, _ = result
        self.steps += 1
        self.total += float(reward)
        if terminated or truncated:
            self.tell(kind="episode", step=self.steps, **{"return": self.total})
            self.total = 0.0
        return result


class Diary:
    """Writes lines of JSON; knows the updates made so far."""

    def __init__(self, path: Path):
        self.file = path.open("w", buffering=1)
        self.updates = 0

    def tell(self, **values: Any) -> None:
        print(json.dumps({**values, "updates": self.updates}), file=self.file)

    def listen(self, module: Any, settings: list[str]) -> None:
        """Hear of the agent that `module` builds, and of each of its updates."""
        build, train = module.build_agent, module.train

        def build_agent(*args: Any, **kwargs: Any) -> Any:
            world, actor, critic, *others = build(*args, **kwargs)
            parts = {**update.world_parts(world), "actor": actor, "critic": critic}
            parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
            versions = {name: metadata.version(name) for name in ("sheeprl", "torch", "lightning", "gymnasium")}
            self.tell(kind="about", step=0, overrides=settings, parameters=parameters, versions=versions)
            return (world, actor, critic, *others)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.updates += 1
            return train(*args, **kwargs)

        module.build_agent, module.train = build_agent, counted


def main() -> int:
    parser = update.parser(__doc__)
    add = parser.add_argument
    add("--log", type=Path, required=True, help="file for the JSON lines")
    add("--seed", type=int, default=0)
    add("--action-repeat", type=int, default=1)
    add("--prefill", type=int, default=1024, help="policy steps of random actions before the first update")
    add("--replay-ratio", type=float, default=1.0, help="updates per policy step")
    add("--capacity", type=int, default=1_000_000, help="policy steps that the replay holds")
    options = parser.parse_args()
    os.dup2(2, 1)  # whatever libraries print belongs with their errors
    warnings.simplefilter("ignore")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    torch.set_num_threads(options.threads)
    settings = overrides(options)
    cfg = update.compose(settings)
    diary = Diary(options.log)
    diary.listen(import_module(f"sheeprl.algos.{options.algo}.{options.algo}"), settings)
    cfg.log_root = str(options.log.parent / "sheeprl")  # not among the overrides, which are told
    register(diary)
    check_configs(cfg)
    run_algorithm(cfg)
    return 0


def register(diary: Diary) -> None:
    """Let sheeprl make ENV_ID: Pendulum that tells. Gymnasium's checker of every step is off, as it is for ours."""

    def make(render_mode: str) -> gym.Env:
        return Told(gym.make("Pendulum-v1", render_mode=render_mode, disable_env_checker=True), diary.tell)

    gym.register(ENV_ID, entry_point=make, disable_env_checker=True)


def overrides(options: argparse.Namespace) -> list[str]:
    """sheeprl's settings: the sizes, the env, the budget, and nothing on the side. The rest is its own default."""
    return [
        *update.overrides(options),
        "env=gym",
        f"env.id={ENV_ID}",
        "env.num_envs=1",
        "env.sync_env=True",
        f"env.action_repeat={options.action_repeat}",
        "env.capture_video=False",
        f"seed={options.seed}",
        f"num_threads={options.threads}",
        f"fabric.precision={options.precision}",
        f"algo.total_steps={ENDLESS}",
        f"algo.learning_starts={options.prefill}",
        f"algo.replay_ratio={options.replay_ratio}",
        "algo.run_test=False",
        f"buffer.size={options.capacity}",
        "buffer.memmap=False",
        "metric.log_level=0",
        "checkpoint.every=0",
        "checkpoint.save_last=False",
    ]


if __name__ == "__main__":
    sys.exit(main())

"""Times one update of sheeprl's DreamerV3 with its own `train`, for `dreamer-lpm bench --against sheeprl`.

Runs in the peer's own virtual environment (sheeprl-requirements.txt) and imports nothing of this project. It builds the
agent by sheeprl's own configs and `build_agent`, says on standard output what it built (one JSON line), then for every
line "N" on standard input does N updates and answers with one JSON line:
{"wall": [s, ...], "cpu": [s, ...], "peak_memory_bytes": n}.

Two algorithms of sheeprl are DreamerV3:
  dreamer_v3_5  the published one (Nature 2025): block-diagonal GRU, k5 convolutions on the full grid. With the default
                sizes here it is sheeprl's own `dreamer_v3_5_1M`, 0.69M parameters.
  dreamer_v3    the one of 2023: dense GRU, k4 s2 convolutions, gradients through the dreams for continuous actions.

Favours to the peer: its metrics are switched off (they cost an aggregator call and two entropies), and neither sampling
from its replay nor writing latents back into it is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any, TextIO

import gymnasium as gym
import hydra
import torch
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.utils.metric import MetricAggregator
from sheeprl.utils.utils import dotdict
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.flop_counter import FlopCounterMode

ACTION_SIZE = 1


def main() -> int:
    options = parser(__doc__).parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    cfg = compose([*overrides(options), "env=dummy"])  # the composed config names an env, none is made
    torch.set_float32_matmul_precision(cfg.float32_matmul_precision)
    Distribution.set_default_validate_args(cfg.distribution.validate_args)
    MetricAggregator.disabled = True
    fabric = Fabric(accelerator="cpu", devices=1, precision=options.precision)
    fabric.seed_everything(0)
    parts, update = {"dreamer_v3_5": build_v3_5, "dreamer_v3": build_v3}[options.algo](fabric, cfg)
    with FlopCounterMode(display=False) as flops:
        update()
    about = {
        "algo": options.algo,
        "overrides": overrides(options),
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        "gflop": flops.get_total_flops() / 1e9,
        "versions": {name: metadata.version(name) for name in ("sheeprl", "torch", "lightning", "numpy")},
    }
    serve(about, update, answers)
    return 0


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that say which algorithm, how large and in which arithmetic."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--algo", choices=("dreamer_v3_5", "dreamer_v3"), default="dreamer_v3_5")
    made.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    sizes = {
        "batch": 16,
        "length": 64,
        "horizon": 15,
        "deter": 512,
        "hidden": 64,
        "stoch": 32,
        "classes": 4,
        "depth": 4,
        "layers": 3,  # of actor and critic
    }
    for name, default in {**sizes, "threads": 1}.items():
        made.add_argument(f"--{name}", type=int, default=default)
    return made


def overrides(options: argparse.Namespace) -> list[str]:
    """The settings that make sheeprl's agent the asked size; all else is its own default."""
    common = [
        f"exp={options.algo}",
        "algo.cnn_keys.encoder=[rgb]",
        "algo.mlp_keys.encoder=[]",
        f"algo.per_rank_batch_size={options.batch}",
        f"algo.per_rank_sequence_length={options.length}",
        f"algo.horizon={options.horizon}",
        f"algo.dense_units={options.hidden}",
        f"algo.actor.mlp_layers={options.layers}",
        f"algo.critic.mlp_layers={options.layers}",
        f"algo.world_model.stochastic_size={options.stoch}",
        f"algo.world_model.discrete_size={options.classes}",
        f"algo.world_model.recurrent_model.recurrent_state_size={options.deter}",
    ]
    if options.algo == "dreamer_v3_5":
        return [
            *common,
            f"algo={options.algo}",
            f"algo.cnn_channels_multiplier={options.depth}",
            f"algo.world_model.recurrent_model.hidden_size={options.hidden}",
        ]
    return [
        *common,
        "algo=dreamer_v3_S",
        f"algo.world_model.encoder.cnn_channels_multiplier={options.depth}",
        f"algo.world_model.transition_model.hidden_size={options.hidden}",
        f"algo.world_model.representation_model.hidden_size={options.hidden}",
        "algo.mlp_layers=1",  # one hidden layer in the heads of the world model
    ]


def compose(settings: list[str]) -> Any:
    """sheeprl's composed config, as its command line makes it."""
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        cfg = hydra.compose("config", settings)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    return dotdict(plain)


def observation_space() -> gym.spaces.Dict:
    return gym.spaces.Dict({"rgb": gym.spaces.Box(0, 255, (3, 64, 64), "uint8")})


def noise(time_steps: int, batch: int) -> dict[str, Tensor]:
    """A batch of random frames in the peer's layout: time first, channels first."""
    zeros = torch.zeros(time_steps, batch, 1)
    return {
        "rgb": torch.randint(0, 256, (time_steps, batch, 3, 64, 64), dtype=torch.uint8),
        "actions": torch.rand(time_steps, batch, ACTION_SIZE) * 2 - 1,
        "rewards": torch.randn(time_steps, batch, 1),
        "is_first": zeros.clone(),
        "terminated": zeros.clone(),
        "truncated": zeros.clone(),
    }


def build_v3_5(fabric: Fabric, cfg: Any) -> tuple[dict[str, nn.Module], Callable[[], None]]:
    """The agent of 2025 and its update: one optimizer, sequences that start from stored latents."""
    module = import_module("sheeprl.algos.dreamer_v3_5.dreamer_v3_5")
    world, actor, critic, target, _ = module.build_agent(fabric, (ACTION_SIZE,), True, cfg, observation_space())
    weights = [*world.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = fabric.setup_optimizers(hydra.utils.instantiate(cfg.algo.optimizer, params=weights, _convert_="all"))
    moments = returns_range(module, cfg)
    steps, batch = cfg.algo.per_rank_sequence_length + cfg.algo.replay_context, cfg.algo.per_rank_batch_size
    sizes = cfg.algo.world_model
    data = noise(steps, batch)
    data["deter"] = torch.zeros(steps, batch, sizes.recurrent_model.recurrent_state_size, dtype=torch.float16)
    data["stoch"] = torch.zeros(steps, batch, sizes.stochastic_size, dtype=torch.uint8)

    def update() -> None:
        module.train(fabric, cfg, world, actor, critic, target, optimizer, moments, dict(data), None, (ACTION_SIZE,))
        module.update_target_critic(critic, target, cfg.algo.critic.tau)

    return {**world_parts(world), "actor": actor, "critic": critic}, update


def build_v3(fabric: Fabric, cfg: Any) -> tuple[dict[str, nn.Module], Callable[[], None]]:
    """The agent of 2023 and its update: three optimizers, sequences that start from the initial state."""
    module = import_module("sheeprl.algos.dreamer_v3.dreamer_v3")
    cfg.env.frame_stack = -1  # as its own main sets it
    world, actor, critic, target, _ = module.build_agent(fabric, (ACTION_SIZE,), True, cfg, observation_space())
    optimizers = fabric.setup_optimizers(
        *(
            hydra.utils.instantiate(part.optimizer, params=weights.parameters(), _convert_="all")
            for part, weights in ((cfg.algo.world_model, world), (cfg.algo.actor, actor), (cfg.algo.critic, critic))
        )
    )
    moments = returns_range(module, cfg)
    data = {
        name: value.float()
        for name, value in noise(cfg.algo.per_rank_sequence_length, cfg.algo.per_rank_batch_size).items()
    }
    networks = (world, actor, critic, target)

    def update() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(list(target.parameters()), list(critic.parameters()), cfg.algo.critic.tau)
        module.train(fabric, *networks, *optimizers, dict(data), None, cfg, True, (ACTION_SIZE,), moments)

    return {**world_parts(world), "actor": actor, "critic": critic}, update


def returns_range(module: Any, cfg: Any) -> nn.Module:
    """The peer's normaliser of returns."""
    settings = cfg.algo.actor.moments
    moments: nn.Module = module.Moments(settings.decay, settings.max, settings.percentile.low, settings.percentile.high)
    return moments


def world_parts(world: Any) -> dict[str, nn.Module]:
    return {
        "encoder": world.encoder,
        "rssm": world.rssm,
        "decoder": world.observation_model,
        "reward": world.reward_model,
        "continue": world.continue_model,
    }


def serve(about: dict[str, Any], update: Callable[[], None], answers: TextIO) -> None:
    """Say what was built, then do as many updates as each line of standard input asks for."""
    print(json.dumps(about), file=answers)
    for line in sys.stdin:
        wall, cpu = [], []
        for _ in range(int(line)):
            start, cpu_start = time.perf_counter(), time.process_time()
            update()
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps({"wall": wall, "cpu": cpu, "peak_memory_bytes": peak}), file=answers)


if __name__ == "__main__":
    sys.exit(main())

"""Playing with a trained agent: episodes, their score and their video, and ``load`` for everybody else's programs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamer_lpm.agent import Agent, AgentConfig, Carry, Policy, shapes
from dreamer_lpm.capture import own_stream, save_tensors
from dreamer_lpm.curiosity import Transition
from dreamer_lpm.envs import Envs
from dreamer_lpm.machine import pick_device
from dreamer_lpm.report.strict_json import write_json, write_whole
from dreamer_lpm.report.video import EpisodeTrace
from dreamer_lpm.settings import from_plain, to_plain
from dreamer_lpm.types import ActionSpec, UserError
from dreamer_lpm.untrusted import read_tensors, regular_size
from dreamer_lpm.world import Latent

FORMAT = 1  # of an agent file
AGENT_FILE = "agent_lpm.pth"  # of a run
WEIGHTS_FILE, CONFIG_FILE = "weights.safetensors", "config.json"  # of an agent folder
LARGEST_CONFIG = 1_000_000  # bytes
FILM = 2_000  # steps of an episode that are filmed at most; all their pictures are in memory at once
MOST_LAYERS = 100
ANY_SPEC = ActionSpec("continuous", 1)


@dataclass(frozen=True)
class Scores:
    """What N evaluation episodes gave."""

    returns: list[float]
    lengths: list[int]  # agent steps
    tv_shares: list[float]  # of an episode's steps, in [0, 1]
    news: Sequence[str] = ()  # of processes of the envs that died, whose episodes ended there

    def row(self, *, has_tv: bool = True) -> dict[str, Any]:
        """As a row of metrics; no TV, no share of it."""
        return {
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "returns": self.returns,
            "length_mean": float(np.mean(self.lengths)),
            **({"tv_share": float(np.mean(self.tv_shares))} if has_tv else {}),
        }


def _go_on() -> None:
    """Nobody asks to stop."""


@contextmanager
def _played(
    agent: Agent, make: Callable[[], gym.Env[Any, Any]], episodes: int, seed: int, workers: int
) -> Iterator[Envs]:
    """Envs to play in while the agent's generator is lent out; it is put back, and they are closed, afterwards."""
    envs = Envs(make, episodes, seed, workers=workers)
    if envs.action_spec != agent.spec:
        envs.close()
        wanted, offered = (f"{spec.size} {spec.kind} actions" for spec in (agent.spec, envs.action_spec))
        raise UserError(f"The agent has learned {wanted} and this env takes {offered}: play it where it learned.")
    kept = agent.generator.get_state()
    agent.generator.manual_seed(seed)
    try:
        yield envs
    finally:
        agent.generator.set_state(kept)
        envs.close()


def evaluate(
    agent: Agent,
    make: Callable[[], gym.Env[Any, Any]],
    *,
    episodes: int,
    seed: int,
    policy: Policy = "mode",
    watch: Callable[[], None] = _go_on,
    workers: int = 0,
) -> Scores:
    """Play ``episodes`` whole episodes side by side in one env each, on seeds of their own.

    The agent's generator is put back afterwards: evaluating never changes the training that follows. ``watch`` is
    called before each step, and may raise to end it. ``workers``: processes that step the envs, as in ``Envs``; where
    one dies the episode ends there.
    """
    returns, lengths, watched = np.zeros(episodes), np.zeros(episodes, int), np.zeros(episodes)
    playing = np.ones(episodes, bool)
    with _played(agent, make, episodes, seed, workers) as envs:
        row, acting = envs.reset_row(), agent.acting(policy)
        with own_stream(agent.device):
            carry = agent.begin(episodes)
            while playing.any():
                watch()
                carry = agent.act(carry, row, policy, acting)
                row = envs.step(carry.action.cpu().numpy())
                returns += np.where(playing, row["reward"], 0.0)
                lengths += playing
                watched += playing & row["tv_on"]
                playing &= ~row["is_last"]
    return Scores(returns.tolist(), lengths.tolist(), (watched / lengths).tolist(), envs.news())


@torch.no_grad()
def record(
    agent: Agent,
    make: Callable[[], gym.Env[Any, Any]],
    *,
    seed: int,
    policy: Policy = "mode",
    title: str = "",
    has_tv: bool,
    watch: Callable[[], None] = _go_on,
    workers: int = 0,
) -> EpisodeTrace:
    """Play one episode and keep what the env showed, what the model made of it, and what it had expected.

    Of a longer one, its first FILM steps. ``watch`` and ``workers`` as in :func:`evaluate`.
    """
    frames: dict[str, list[Any]] = {k: [] for k in ("obs", "reward", "tv_on", "bonus", "seen", "expected")}
    with _played(agent, make, 1, seed, workers) as envs:
        carry, row = agent.begin(1), envs.reset_row()
        while True:
            watch()
            before, carry = carry, agent.act(carry, row, policy)
            frames["obs"].append(row["obs"][0])
            frames["reward"].append(float(row["reward"][0]))
            frames["tv_on"].append(bool(row["tv_on"][0]))
            frames["seen"].append(_picture(agent.world.decoder(carry.latent.feat)))
            frames["expected"].append(_picture(agent.world.predict(carry.latent)))
            frames["bonus"].append(0.0 if row["is_first"][0] else _bonus(agent, before.latent, row, carry.latent))
            if row["is_last"][0] or len(frames["obs"]) == FILM:
                break
            row = envs.step(carry.action.cpu().numpy())
    array = {k: np.stack(v) for k, v in frames.items()}
    curious = agent.cfg.curiosity != "none"
    return EpisodeTrace(
        obs=array["obs"], reward=array["reward"], reconstruction=array["seen"], prediction=array["expected"],
        tv_on=array["tv_on"] if has_tv else None, bonus=array["bonus"] if curious else None, title=title,
    )  # fmt: skip


def _picture(decoded: Tensor) -> np.ndarray:
    """(1, 64, 64, 3) in [0, 1] -> (64, 64, 3) uint8."""
    out: np.ndarray = (decoded[0].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return out


def _bonus(agent: Agent, before: Latent, row: Mapping[str, np.ndarray], after: Latent) -> float:
    action = torch.as_tensor(row["action"], device=agent.device)
    mask = torch.ones(1, dtype=torch.bool, device=agent.device)
    return float(agent.curiosity.reward(Transition(before.feat, action, after.feat, mask)))


def save_agent(path: Path, agent: Agent, about: Mapping[str, Any]) -> None:
    """Write an agent that ``torch.load(path, weights_only=True)`` and :func:`load` can read. Atomic.

    ``about``: plain data to carry along, such as the env it was trained in.
    """
    data = {**_description(agent, about), "weights": agent.state_dict()}
    write_whole(path, lambda file: save_tensors(data, file))


def export_agent(folder: Path, agent: Agent, about: Mapping[str, Any]) -> None:
    """Write an agent as ``weights.safetensors`` and ``config.json``, which other programs read too, into ``folder``.

    :func:`load` reads the folder. Raises UserError when there is something in it already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; choose another folder, or remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.contiguous() for name, x in agent.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, _description(agent, about))
    # safetensors lets only the owner read; who may read a new file is the user's to say, by the umask.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _description(agent: Agent, about: Mapping[str, Any]) -> dict[str, Any]:
    spec = dataclasses.asdict(agent.spec)
    return {"format": FORMAT, "config": to_plain(agent.cfg), "spec": spec, "about": dict(about)}


def _read_folder(folder: Path) -> dict[str, Any]:
    for name, most in ((CONFIG_FILE, LARGEST_CONFIG), (WEIGHTS_FILE, None)):
        size = regular_size((folder / name).resolve())  # what a cache of models holds are links
        if most is not None and size > most:
            raise ValueError(f"{name} is larger than it can be")
    description = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return {**description, "weights": load_file(folder / WEIGHTS_FILE)}


def _check_fit(cfg: AgentConfig, spec: ActionSpec, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless the weights are those of such an agent; before any memory is taken for it."""
    layers = (cfg.world.head_layers, cfg.behavior.layers, cfg.bonus.members, len(cfg.world.stages))
    if max(layers) > MOST_LAYERS or spec.size < 1:
        raise ValueError("no agent is that large")
    if {name: x.shape for name, x in weights.items()} != shapes(cfg, spec):
        raise ValueError("these weights are another agent's")


class Player:
    """A trained agent, ready to be asked: ``action = player.act(obs)``.

    It remembers; call ``reset`` when an episode begins.
    """

    def __init__(self, agent: Agent, about: dict[str, Any]):
        self.agent, self.about = agent, about
        self.reset()

    def reset(self) -> None:
        """Forget the past: the next picture is the first of an episode."""
        self._carry: Carry = self.agent.begin(1)
        self._first = True

    def act(self, obs: np.ndarray, *, policy: Policy = "mode") -> np.ndarray | int:
        """The action for a picture (64, 64, 3) uint8.

        It is a float32 array (A,) in [-1, 1], or the number of a discrete choice.
        Raises UserError for a picture of another shape or dtype.
        """
        size = self.agent.world.encoder.frame
        if obs.shape != (size, size, 3) or obs.dtype != np.uint8:
            raise UserError(
                f"act() wants a uint8 picture ({size}, {size}, 3), got {obs.dtype} {obs.shape}; shrink it with "
                "cv2.resize(..., interpolation=cv2.INTER_AREA)."
            )
        row = {"obs": obs[None], "action": self._carry.action.cpu().numpy(), "is_first": np.array([self._first])}
        self._carry, self._first = self.agent.act(self._carry, row, policy), False
        action: np.ndarray = self._carry.action[0].cpu().numpy()
        return int(action.argmax()) if self.agent.spec.is_discrete else action


def load(path: str | Path, device: str = "cpu") -> Player:
    """Read an agent file such as ``agent_lpm.pth``, or a folder that :func:`export_agent` wrote.

    Runs no code of it, and takes no more memory than the weights in it do.
    Raises UserError when it is missing, damaged, a run's folder, or not an agent of this project, or the device is not
    there or has no room for it.
    """
    where, path = pick_device(device), Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; train one first: dreamer-lpm train --steps 10000 --noisy-tv")
    own = path / AGENT_FILE
    if own.is_file() and not (path / WEIGHTS_FILE).exists():
        raise UserError(f"{path} is the folder of a run; its agent is {own}.")
    if path.name == WEIGHTS_FILE:
        raise UserError(f"{path} is one of the files of an exported agent; name its folder, {path.parent}.")
    try:
        data = _read_folder(path) if path.is_dir() else read_tensors(path.resolve())
        if data["format"] != FORMAT:
            raise UserError(f"{path} has format {data['format']}, this version reads {FORMAT}; update dreamer-lpm.")
        cfg, spec = from_plain(AgentConfig, data["config"]), from_plain(ActionSpec, data["spec"], ANY_SPEC)
        _check_fit(cfg, spec, data["weights"])
        agent = Agent(cfg, spec, device=where)
        agent.load_state_dict(data["weights"])
        return Player(agent.eval(), dict(data["about"]))
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise UserError(f"{where} has no room for the agent of {path}; make some, or take another --device.") from None
    except Exception as error:  # noqa: BLE001  whatever a damaged or foreign file makes torch raise
        raise UserError(
            f"{path} is not an agent file of Dreamer-LPM, or it is damaged ({type(error).__name__})."
        ) from None

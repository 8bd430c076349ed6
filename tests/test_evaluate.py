"""Playing with a trained agent: true scores, no trace in the agent, and files that a stranger may open."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import dreamer_lpm
import dreamer_lpm.evaluate as evaluate_module
from dreamer_lpm.agent import Agent, Carry, shapes
from dreamer_lpm.curiosity import REGISTRY, FitGate, Transition
from dreamer_lpm.envs import EnvConfig, make_env
from dreamer_lpm.envs.vector import episode_seed
from dreamer_lpm.evaluate import Player, evaluate, export_agent, load, record, save_agent
from dreamer_lpm.noisy_tv import TVSpec, load_images
from dreamer_lpm.types import ActionSpec, UserError
from tests.test_agent import CONFIG, equal, everything
from tests.tiny_run import differences

DISCRETE, CONTINUOUS = ActionSpec("discrete", 2), ActionSpec("continuous", 1)
CARTPOLE = EnvConfig("CartPole-v1")
PENDULUM = EnvConfig("Pendulum-v1", time_limit=12, action_repeat=2)
SCREEN = load_images("static")[0]


def make_agent(spec: ActionSpec, curiosity: str = "lpm_dual") -> Agent:
    """Untrained, but with an opinion: a fresh actor's last layer says the same of every picture."""
    agent = Agent(replace(CONFIG, curiosity=curiosity), spec, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*agent.behavior.actor.parameters(), *agent.curiosity.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    for module in agent.modules():
        if isinstance(module, FitGate):
            module.opened.fill_(1.0)  # the bonus pays, as if its predictor were fitted
    return agent


def env_of(cfg: EnvConfig) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: make_env(cfg, images=SCREEN)


def played_by_hand(player: Player, cfg: EnvConfig, seed: int) -> tuple[float, int, float]:
    """Return, agent steps and TV share of one episode, by Gymnasium's own loop."""
    env = make_env(cfg, images=SCREEN)
    obs, _ = env.reset(seed=seed)
    player.reset()
    total, length, watched, over = 0.0, 0, 0, False
    while not over:
        obs, reward, terminated, truncated, info = env.step(player.act(obs))
        total, length, watched = total + float(reward), length + 1, watched + info.get("tv_on", False)
        over = terminated or truncated
    env.close()
    return total, length, watched / length


@pytest.mark.parametrize(
    ("spec", "cfg"),
    [
        (DISCRETE, CARTPOLE),  # episodes end by themselves, at different lengths
        (DISCRETE, replace(CARTPOLE, tv=TVSpec(source="static", tv_action=1))),
        (DISCRETE, replace(CARTPOLE, tv=TVSpec(source="static", trigger="always"))),
        (CONTINUOUS, PENDULUM),
        (ActionSpec("continuous", 2), replace(PENDULUM, tv=TVSpec(source="static", trigger="remote"))),
    ],
)
def test_scores_are_those_of_episodes_played_by_hand(spec: ActionSpec, cfg: EnvConfig) -> None:
    agent = make_agent(spec)
    scores = evaluate(agent, env_of(cfg), episodes=3, seed=7)
    want = [played_by_hand(Player(agent, {}), cfg, episode_seed(7, i, 0)) for i in range(3)]
    assert scores.returns == pytest.approx([total for total, _, _ in want], rel=1e-4)
    assert scores.lengths == [length for _, length, _ in want]
    assert scores.tv_shares == pytest.approx([share for _, _, share in want])
    if spec is DISCRETE:
        assert len(set(scores.lengths)) > 1, "the test wants episodes that end apart"
    row = scores.row()
    assert row["return_mean"] == pytest.approx(np.mean(scores.returns))
    assert row["return_std"] == pytest.approx(np.std(scores.returns))
    assert (row["returns"], row["length_mean"]) == (scores.returns, np.mean(scores.lengths))
    assert row["tv_share"] == pytest.approx(np.mean(scores.tv_shares))
    assert "tv_share" not in scores.row(has_tv=False)


@pytest.mark.parametrize("policy", ["mode", "sample"])
def test_evaluating_leaves_no_trace(policy: Any) -> None:
    agent = make_agent(CONTINUOUS)
    before, global_torch, global_numpy = everything(agent), torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    a, b = (evaluate(agent, env_of(PENDULUM), episodes=2, seed=7, policy=policy) for _ in range(2))
    record(agent, env_of(PENDULUM), seed=7, policy=policy, has_tv=False)
    assert a == b
    assert a != evaluate(agent, env_of(PENDULUM), episodes=2, seed=8, policy=policy)
    assert equal(everything(agent), before)
    assert torch.equal(torch.get_rng_state(), global_torch)
    assert repr(np.random.get_state()) == global_numpy  # noqa: NPY002


def test_the_agents_generator_is_put_back_even_if_the_env_breaks() -> None:
    class Broken(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            raise UserError("out of order")

    class NeverBegun(gym.Wrapper[Any, Any, Any, Any]):
        def reset(self, **kwargs: Any) -> Any:
            raise UserError("out of order")

    agent = make_agent(CONTINUOUS)
    before = agent.generator.get_state()
    for play in (
        lambda make: evaluate(agent, make, episodes=1, seed=7, policy="sample"),
        lambda make: record(agent, make, seed=7, policy="sample", has_tv=False),
    ):
        for wrapper in (Broken, NeverBegun):
            with pytest.raises(UserError, match="out of order"):
                play(lambda wrapper=wrapper: wrapper(make_env(PENDULUM)))
            assert torch.equal(agent.generator.get_state(), before)


def test_a_recording_shows_what_was_seen() -> None:
    agent, cfg = make_agent(CONTINUOUS), replace(PENDULUM, tv=TVSpec(source="static", threshold=0.1))
    trace = record(agent, env_of(cfg), seed=7, title="a title", has_tv=True)
    score = evaluate(agent, env_of(cfg), episodes=1, seed=7)
    steps = score.lengths[0] + 1
    for pictures in (trace.obs, trace.reconstruction, trace.prediction):
        assert pictures is not None
        assert (pictures.shape, pictures.dtype) == ((steps, 64, 64, 3), np.uint8)
    assert trace.tv_on is not None
    assert trace.bonus is not None
    assert (trace.title, len(trace.reward), len(trace.bonus), trace.bonus[0]) == ("a title", steps, steps, 0)
    assert np.abs(trace.bonus[1:]).max() > 0
    assert trace.reward.sum() == pytest.approx(score.returns[0], rel=1e-4)
    assert trace.tv_on[1:].mean() == pytest.approx(score.tv_shares[0])
    assert trace.tv_on.any(), "the test wants a TV that was on"
    spread = trace.obs.reshape(steps, -1).std(1)  # static is livelier than a Pendulum
    assert spread[trace.tv_on].min() > spread[~trace.tv_on].max()


def test_a_film_of_a_long_episode_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "FILM", 5)
    trace = record(make_agent(CONTINUOUS), env_of(PENDULUM), seed=7, has_tv=False)
    assert (len(trace.obs), len(trace.reward)) == (5, 5)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="policy must be mode, sample or random, not 'greedy'"):
        evaluate(make_agent(CONTINUOUS), env_of(PENDULUM), episodes=1, seed=7, policy=cast(Any, "greedy"))


def test_a_recording_speaks_neither_of_a_tv_nor_of_a_bonus_that_is_not_there() -> None:
    trace = record(make_agent(CONTINUOUS, "none"), env_of(PENDULUM), seed=7, has_tv=False)
    assert (trace.tv_on, trace.bonus) == (None, None)


# --- agent files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent_lpm.pth"
    save_agent(path, make_agent(DISCRETE), {"env": "CartPole-v1", "nested": {"steps": [1, 2]}})
    return path


def test_a_full_disk_is_told_and_leaves_what_was_there(agent_file: Path) -> None:
    resource = pytest.importorskip("resource")
    before = agent_file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes a file
        with pytest.raises(OSError, match="File too large"):
            save_agent(agent_file, make_agent(CONTINUOUS), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in agent_file.parent.iterdir()] == [agent_file.name]
    assert agent_file.read_bytes() == before


def test_an_agent_file_is_plain_data(agent_file: Path) -> None:
    data = torch.load(agent_file, weights_only=True)
    assert data["about"] == {"env": "CartPole-v1", "nested": {"steps": [1, 2]}}
    assert data["spec"] == {"kind": "discrete", "size": 2}
    assert [path.name for path in agent_file.parent.iterdir()] == ["agent_lpm.pth"]


@pytest.mark.parametrize("spec", [DISCRETE, ActionSpec("continuous", 3)])
def test_five_lines_for_a_stranger(spec: ActionSpec, tmp_path: Path) -> None:
    original = make_agent(spec)
    save_agent(tmp_path / "agent_lpm.pth", original, {})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

    agent = dreamer_lpm.load(tmp_path / "agent_lpm.pth")
    action = agent.act(picture)

    assert differences(dict(agent.agent.state_dict()), dict(original.state_dict())) == []
    assert agent.agent.cfg == original.cfg
    if spec.is_discrete:
        assert isinstance(action, int)
        assert action in (0, 1)
    else:
        assert isinstance(action, np.ndarray)
        assert (action.shape, action.dtype) == ((3,), np.float32)
        assert np.abs(action).max() <= 1


def test_an_exported_agent_is_the_same_agent_in_files_that_carry_no_code(agent_file: Path, tmp_path: Path) -> None:
    player = load(agent_file)
    export_agent(tmp_path / "out", player.agent, player.about)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "weights.safetensors"]
    again = load(tmp_path / "out")
    assert differences(dict(again.agent.state_dict()), dict(player.agent.state_dict())) == []
    assert (again.agent.cfg, again.agent.spec, again.about) == (player.agent.cfg, player.agent.spec, player.about)
    tensors = load_file(tmp_path / "out" / "weights.safetensors")
    assert differences(tensors, dict(player.agent.state_dict())) == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["spec"] == {"kind": "discrete", "size": 2}
    with pytest.raises(UserError, match="out is there already; choose another folder"):
        export_agent(tmp_path / "out", player.agent, player.about)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_an_exported_agent_may_be_read_by_whom_the_umask_says(agent_file: Path, tmp_path: Path) -> None:
    player = load(agent_file)
    before = os.umask(0o027)
    try:
        export_agent(tmp_path / "out", player.agent, player.about)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()] == [0o640, 0o640]


@pytest.mark.parametrize("harm", ["no weights", "no config", "cut", "no json", "other weights", "a link"])
def test_an_exported_agent_that_is_damaged(harm: str, agent_file: Path, tmp_path: Path) -> None:
    player = load(agent_file)
    folder = tmp_path / "out"
    export_agent(folder, player.agent, player.about)
    weights, config = folder / "weights.safetensors", folder / "config.json"
    if harm == "a link":
        config.unlink()
        config.symlink_to("/dev/zero")  # which never ends
    else:
        {
            "no weights": weights.unlink,
            "no config": config.unlink,
            "cut": lambda: cut(weights),
            "no json": lambda: config.write_text("{"),
            "other weights": lambda: save_file({"weight": torch.zeros(1)}, weights),
        }[harm]()
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_agents_may_be_links_to_files(agent_file: Path, tmp_path: Path) -> None:
    """As in the caches of those who share models."""
    player = load(agent_file)
    folder = tmp_path / "out"
    export_agent(folder, player.agent, player.about)
    for path in list(folder.iterdir()):
        path.symlink_to(path.rename(tmp_path / f"blob of {path.name}"))
    (tmp_path / "link.pth").symlink_to(agent_file)
    for linked in (folder, tmp_path / "link.pth"):
        assert load(linked).about == player.about


@pytest.mark.parametrize("curiosity", REGISTRY)
@pytest.mark.parametrize("space", ["frame", "random", "embedding", "kl"])
def test_the_shapes_of_an_agent_are_known_before_it_is_built(curiosity: str, space: Any) -> None:
    cfg = replace(CONFIG, curiosity=curiosity, bonus=replace(CONFIG.bonus, error_space=space))
    before = torch.get_rng_state()
    try:
        want = {name: x.shape for name, x in Agent(cfg, CONTINUOUS).state_dict().items()}
    except UserError:
        assert space != "frame", "a bonus without an error has no space for it"
        return
    assert shapes(cfg, CONTINUOUS) == want
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sizes",
    [
        {"world": {"rssm": {"deter": 10**9}}},
        {"world": {"rssm": {"deter": 10**18}}},
        {"world": {"head_layers": 10**9}},
        {"behavior": {"layers": 10**9}},
        {"bonus": {"members": 10**9}, "curiosity": "disagreement"},
        {"bonus": {"queue": 10**15}, "curiosity": "lpm"},
        {"world": {"stages": [[8, 4, 10**9]]}},
        {"world": {"stages": [[4, 2, 1]] * 5000}},
    ],
)
def test_a_config_that_claims_a_giant_takes_no_memory(sizes: dict[str, Any], agent_file: Path) -> None:
    changed(config=sizes)(agent_file)
    begin = time.monotonic()
    with pytest.raises(UserError):
        load(agent_file)
    assert time.monotonic() - begin < 30


def test_a_flipped_bit_among_the_weights_is_seen(agent_file: Path) -> None:
    content = bytearray(agent_file.read_bytes())
    content[len(content) // 2] ^= 1
    agent_file.write_bytes(content)
    with pytest.raises(UserError, match="is not an agent file of Dreamer-LPM, or it is damaged"):
        load(agent_file)


def test_a_player_remembers_until_it_is_reset(tmp_path: Path) -> None:
    player = Player(make_agent(ActionSpec("continuous", 3)), {})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    first, second = player.act(picture), player.act(picture)
    assert not np.array_equal(first, second)
    player.reset()
    assert np.array_equal(player.act(picture), first)


@pytest.mark.parametrize(
    ("picture", "got"),
    [
        (np.zeros((96, 80, 3), np.uint8), r"uint8 \(96, 80, 3\)"),
        (np.zeros((3, 64, 64), np.uint8), r"uint8 \(3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), r"float32 \(64, 64, 3\)"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"uint8 \(1, 64, 64, 3\)"),
    ],
)
def test_another_picture_is_answered_with_what_to_do(picture: np.ndarray, got: str, agent_file: Path) -> None:
    with pytest.raises(UserError, match=rf"a uint8 picture \(64, 64, 3\), got {got}; shrink it with cv2.resize"):
        load(agent_file).act(picture)


class Bomb:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return (Path.touch, (self.trap,))


def changed(**changes: Any) -> Callable[[Path], None]:
    """An agent file with other parts; a part that is None is missing."""

    def damage(path: Path) -> None:
        data = {**torch.load(path, weights_only=True), **changes}
        torch.save({key: value for key, value in data.items() if value is not None}, path)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


NO_AGENT = "is not an agent file of Dreamer-LPM, or it is damaged"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (cut, NO_AGENT),
    "empty": (lambda path: path.write_bytes(b""), NO_AGENT),
    "text": (lambda path: path.write_text("an agent"), NO_AGENT),
    "folder": (lambda path: (path.unlink(), path.mkdir()), NO_AGENT),
    "pickle bomb": (lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("trap")), protocol=2)), NO_AGENT),
    "torch bomb": (lambda path: torch.save(Bomb(path.with_name("trap")), path), NO_AGENT),
    "bomb among the weights": (lambda path: changed(weights=Bomb(path.with_name("trap")))(path), NO_AGENT),
    "module": (lambda path: torch.save(torch.nn.Linear(1, 1), path), NO_AGENT),
    "list": (lambda path: torch.save([1, 2], path), NO_AGENT),
    "foreign": (lambda path: torch.save({"state_dict": {}}, path), NO_AGENT),
    "no weights": (changed(weights=None), NO_AGENT),
    "no about": (changed(about=None), NO_AGENT),
    "other weights": (changed(weights={"weight": torch.zeros(1)}), NO_AGENT),
    "weights no mapping": (changed(weights=[1]), NO_AGENT),
    "config no mapping": (changed(config=3), NO_AGENT),
    "newer": (changed(format=2), "has format 2, this version reads 1; update dreamer-lpm."),
    "unknown setting": (changed(config={"lpm_etta": 1.0}), "Unknown setting 'lpm_etta'; did you mean 'lpm_eta'?"),
    "gone": (Path.unlink, "does not exist; train one first: dreamer-lpm train"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.filterwarnings("ignore:.*pickle protocol.*:UserWarning")
def test_no_agent_file_is_one_clear_sentence_and_runs_no_code(name: str, agent_file: Path) -> None:
    damage, message = DAMAGE[name]
    damage(agent_file)
    with pytest.raises(UserError) as caught:
        load(agent_file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not agent_file.with_name("trap").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_missing_device_is_not_a_damaged_file(agent_file: Path) -> None:
    with pytest.raises(UserError, match="Device 'cuda' is not available here"):
        load(agent_file, "cuda")
    assert load(agent_file, "auto").agent.device.type in ("cpu", "mps")


def test_a_full_device_is_not_a_damaged_file(agent_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(evaluate_module, "Agent", full)
    with pytest.raises(UserError, match=r"cpu has no room for the agent of .*; make some, or take another --device"):
        load(agent_file)


def test_a_film_shows_posterior_prior_and_bonus_of_each_step() -> None:
    agent = make_agent(CONTINUOUS)
    agent.world.rssm.post_out.weight.data.mul_(30)  # so that looking makes a difference
    steps, act = [], agent.act

    def spy(carry: Carry, row: dict[str, np.ndarray], *more: Any) -> Carry:
        after = act(carry, row, *more)
        steps.append((carry, row["action"].copy(), after))
        return after

    agent.act = spy  # type: ignore[method-assign]
    trace = record(agent, env_of(PENDULUM), seed=7, has_tv=False)
    assert trace.bonus is not None
    for t, (before, action, after) in enumerate(steps):
        for shown, picture in (
            (trace.reconstruction, agent.world.decoder(after.latent.feat)),
            (trace.prediction, agent.world.predict(after.latent)),
        ):
            assert np.array_equal(shown[t], (picture[0].detach().clamp(0, 1) * 255).round().byte().numpy())
        if t:
            here = torch.ones(1, dtype=torch.bool)
            ask = Transition(before.latent.feat, torch.from_numpy(action), after.latent.feat, here)
            assert trace.bonus[t] == pytest.approx(float(agent.curiosity.reward(ask)), rel=1e-4, abs=1e-6)
    assert (trace.reconstruction != trace.prediction).any()


def test_sampled_play_hangs_on_its_seed_alone() -> None:
    fresh, used = make_agent(CONTINUOUS), make_agent(CONTINUOUS)
    used.uniform(5)  # as training goes on
    one, two = (evaluate(agent, env_of(PENDULUM), episodes=2, seed=7, policy="sample") for agent in (fresh, used))
    assert one == two

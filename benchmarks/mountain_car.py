"""How much of MountainCarContinuous each curiosity sees, without a Noisy TV and in front of one, from state vectors.

    python3 benchmarks/mountain_car.py --seeds 10

There is no reward but the bonus. A second action is a remote control: in the noisy arm, pressing it (above 0, so half
of all uniformly random actions) puts a new uniformly random number into a third observation, which otherwise stays as
it is; in the clean arm the number stays 0. Every bonus gets the same small PPO agent, the same one-step predictor and
the same settings. Finished rows of the CSV are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from testbed import Row, interval, read_rows, told, write_rows, write_summary
from torch import Tensor, nn

from dreamer_lpm.curiosity import CuriosityConfig, Dims, Transition, build_curiosity, mse, needs_earlier
from dreamer_lpm.nets import Kept, mlp

ARMS = ("clean", "noisy")
RANDOM = "random"  # uniformly random actions, nothing learned
METHODS = (
    RANDOM, "none", "prediction_error", "icm", "rnd", "disagreement", "ama", "lpm", "lpm_dual", "lpm_paired",
    "lpm_optimistic",
)  # fmt: skip
PAPER = {  # arXiv 2509.25438, coverage %, clean and noisy; its ensemble is the nearest to `disagreement`
    "icm": (90.9, 12.8), "rnd": (45.5, 28.0), "disagreement": (91.2, 61.0), "ama": (33.0, 13.2), "lpm": (76.5, 67.0),
}  # fmt: skip
OBS, ACTION = 3, 2  # position, velocity, channel; force, remote
ENVS, STEPS = 8, 128  # of one rollout
GRID = 20  # cells a side, over the whole ranges of position and velocity


@dataclass(frozen=True)
class Setting:
    """Shared by every method: nothing here was chosen for one of them."""

    rollouts: int = 50
    hidden: int = 64
    gamma: float = 0.99
    lam: float = 0.95
    clip: float = 0.2
    entropy: float = 3e-3
    epochs: int = 4
    minibatches: int = 4
    lr: float = 3e-4
    model_updates: int = 32  # of predictor and curiosity, after each rollout
    model_batch: int = 128
    model_lr: float = 1e-3
    queue: int = 4096  # LPM's: 32 updates


class NoisyMountainCar:
    """``ENVS`` copies of MountainCarContinuous-v0 with a remote control; everything in [-1, 1].

    An episode ends at the flag or after the task's 999 steps, and the next one begins at once.
    """

    def __init__(self, noisy: bool, seed: int):
        self.noisy = noisy
        self.rng = np.random.default_rng([seed, 1])  # its own: watching the TV must not change the car
        self.cars = [gym.make("MountainCarContinuous-v0", disable_env_checker=True) for _ in range(ENVS)]
        space = self.cars[0].observation_space
        assert isinstance(space, gym.spaces.Box)
        self.low, self.span = space.low, space.high - space.low
        self.visited = np.zeros((GRID, GRID), bool)
        first = [car.reset(seed=1000 * seed + i)[0] for i, car in enumerate(self.cars)]
        self.obs = self._observe(np.array(first), np.zeros(ENVS))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """action (N, 2) in [-1, 1] -> the observation it led to (N, 3), and whether an episode ended there (N,).

        ``self.obs`` is where the next step starts: the same, or the first observation of a new episode.
        """
        steps = [car.step(force) for car, force in zip(self.cars, action[:, :1], strict=True)]
        ended = np.array([terminated or truncated for _, _, terminated, truncated, _ in steps])
        watched = self.noisy & (action[:, 1] > 0)
        channel = np.where(watched, self.rng.uniform(-1, 1, ENVS), self.obs[:, 2])
        led_to = self._observe(np.array([raw for raw, *_ in steps]), channel)
        self.obs = led_to
        if ended.any():
            first = np.array([car.reset()[0] for car, end in zip(self.cars, ended, strict=True) if end])
            self.obs = led_to.copy()
            self.obs[ended] = self._observe(first, np.zeros(len(first)))
        return led_to, ended

    def _observe(self, raw: np.ndarray, channel: np.ndarray) -> np.ndarray:
        """raw (n, 2), channel (n,) -> (n, 3); marks the cells as visited."""
        share = (raw - self.low) / self.span
        cell = np.minimum((share * GRID).astype(int), GRID - 1)
        self.visited[cell[:, 0], cell[:, 1]] = True
        return np.column_stack([2 * share - 1, channel]).astype(np.float32)

    def coverage(self, block: int = 1) -> float:
        """Percent of the grid's cells visited, or of squares of ``block`` x ``block`` cells."""
        side = GRID // block
        return 100 * float(self.visited.reshape(side, block, side, block).any((1, 3)).mean())


class Policy(nn.Module):
    """A normal with tanh mean and its value: two small networks."""

    def __init__(self, hidden: int):
        super().__init__()
        self.actor = mlp(OBS, hidden, 2, 2 * ACTION, zero=True)
        self.critic = mlp(OBS, hidden, 2, 1, zero=True)

    def forward(self, obs: Tensor) -> torch.distributions.Normal:
        mean, spread = self.actor(obs).chunk(2, -1)
        return torch.distributions.Normal(mean.tanh(), 0.1 + 0.9 * (spread + 2).sigmoid(), validate_args=False)

    def value(self, obs: Tensor) -> Tensor:
        out: Tensor = self.critic(obs)
        return out.squeeze(-1)


@dataclass
class Rollout:
    """(STEPS, ENVS, ...): what was seen, drawn, and led to."""

    obs: Tensor
    drawn: Tensor  # before clipping to [-1, 1], as the policy's ratio needs it
    action: Tensor
    led_to: Tensor
    ended: Tensor


class Predictor(nn.Module):
    """f(o, a): the next observation, whole and not as a difference, so that there is something to learn."""

    def __init__(self, hidden: int):
        super().__init__()
        self.net = mlp(OBS + ACTION, hidden, 2, OBS)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([obs, action], -1))
        return out


def as_frame(obs: Tensor) -> Tensor:
    """(..., 3) in [-1, 1] -> (..., 1, 1, 3) in [0, 1]: to a bonus that looks at pictures, the colour of one pixel."""
    return ((obs + 1) / 2)[..., None, None, :]


def transition(predictor: nn.Module, obs: Tensor, action: Tensor, led_to: Tensor) -> Transition:
    with torch.no_grad():
        predicted = predictor(obs, action)
    mask = torch.ones(obs.shape[:-1], dtype=torch.bool)  # no transition crosses the end of an episode
    return Transition(obs, action, led_to, mask, as_frame(led_to), as_frame(predicted), frame=as_frame(obs))


def collect(env: NoisyMountainCar, policy: Policy | None) -> Rollout:
    """One rollout; without a policy the actions are uniformly random."""
    obs, drawn, led_to, ended = [], [], [], []
    for _ in range(STEPS):
        obs.append(torch.from_numpy(env.obs))
        with torch.no_grad():
            drawn.append(policy(obs[-1]).sample() if policy else 2 * torch.rand(ENVS, ACTION) - 1)
        arrived, end = env.step(drawn[-1].clamp(-1, 1).numpy())
        led_to.append(torch.from_numpy(arrived))
        ended.append(torch.from_numpy(end))
    action = torch.stack(drawn)
    return Rollout(torch.stack(obs), action, action.clamp(-1, 1), torch.stack(led_to), torch.stack(ended))


class Learner:
    """Agent, predictor and bonus of one run."""

    def __init__(self, method: str, cfg: Setting):
        self.cfg = cfg
        self.policy, self.predictor = Policy(cfg.hidden), Predictor(cfg.hidden)
        curiosity = CuriosityConfig(cfg.hidden, cfg.queue)
        self.bonus = build_curiosity(method, curiosity, Dims(OBS, ACTION))
        self.earlier = Kept(self.predictor, curiosity.rate) if needs_earlier(self.bonus) else None
        self.policy_opt = torch.optim.Adam(self.policy.parameters(), cfg.lr, fused=True)
        curious = [p for p in self.bonus.parameters() if p.requires_grad]
        self.model_opt = torch.optim.Adam([*self.predictor.parameters(), *curious], cfg.model_lr, fused=True)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def learn(self, data: Rollout) -> None:
        """Predictor and bonus first, as in the agent, where the bonus is always that of the current networks."""
        self.seen.append((data.obs.flatten(0, 1), data.action.flatten(0, 1), data.led_to.flatten(0, 1)))
        self._improve_model()
        reward = self.bonus.reward(transition(self.predictor, data.obs, data.action, data.led_to))
        self._improve_policy(data, reward)

    def _improve_model(self) -> None:
        """Predictor and bonus learn from everything seen so far."""
        obs, action, led_to = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        for _ in range(self.cfg.model_updates):
            pick = torch.randint(len(obs), (self.cfg.model_batch,))
            o, a, o2 = obs[pick], action[pick], led_to[pick]
            losses = self.bonus.loss(self._compared(o, a, o2))
            loss = torch.stack([(self.predictor(o, a) - o2).square().mean(), *losses.values()]).sum()
            self.model_opt.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.model_opt.step()

    def _compared(self, obs: Tensor, action: Tensor, led_to: Tensor) -> Transition:
        """The transition with the error of the predictor some updates ago beside today's, if the bonus asks for it."""
        now = transition(self.predictor, obs, action, led_to)
        if self.earlier is None:
            return now
        self.earlier.follow(self.predictor)
        before = mse(transition(self.earlier.network, obs, action, led_to))
        return replace(now, error_before=before, lag=self.earlier.lag.expand(before.shape))

    def _improve_policy(self, data: Rollout, reward: Tensor) -> None:
        cfg = self.cfg
        with torch.no_grad():
            value = self.policy.value(data.obs)
            advantage = advantages(reward, value, self.policy.value(data.led_to), data.ended, cfg)
            target = (advantage + value).flatten()
            before = self.policy(data.obs).log_prob(data.drawn).sum(-1).flatten()
            # Never blown up to one: a bonus of nearly nothing must stay nearly nothing.
            advantage = ((advantage - advantage.mean()) / advantage.std().clamp(min=1.0)).flatten()
        obs, drawn = data.obs.flatten(0, 1), data.drawn.flatten(0, 1)
        for _ in range(cfg.epochs):
            for pick in torch.randperm(len(obs)).chunk(cfg.minibatches):
                normal = self.policy(obs[pick])
                ratio = (normal.log_prob(drawn[pick]).sum(-1) - before[pick]).exp()
                gain = torch.minimum(ratio * advantage[pick], ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * advantage[pick])
                critic = (self.policy.value(obs[pick]) - target[pick]).square().mean()
                loss = -gain.mean() - cfg.entropy * normal.entropy().sum(-1).mean() + 0.5 * critic
                self.policy_opt.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
                self.policy_opt.step()


def advantages(reward: Tensor, value: Tensor, next_value: Tensor, ended: Tensor, cfg: Setting) -> Tensor:
    """Generalised advantages, all (T, N). The end of an episode is a cut and not a loss: its last value counts."""
    delta = reward + cfg.gamma * next_value - value
    out, running = torch.empty_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + cfg.gamma * cfg.lam * running * ~ended[t]
        out[t] = running
    return out


def run(method: str, arm: str, seed: int, cfg: Setting) -> Row:
    """One agent's life: the percentage of the grid that it saw by each quarter, and how often it pressed the remote."""
    torch.manual_seed(seed)
    started = time.process_time()
    env = NoisyMountainCar(arm == "noisy", seed)
    learner = None if method == RANDOM else Learner(method, cfg)
    coverage, pressed = [], []
    for _ in range(cfg.rollouts):
        data = collect(env, learner.policy if learner else None)
        coverage.append(env.coverage())
        pressed.append(float((data.action[..., 1] > 0).float().mean()))
        if learner:
            learner.learn(data)
    quarter = cfg.rollouts // 4
    return {
        "method": method, "arm": arm, "seed": seed, "steps": cfg.rollouts * STEPS * ENVS,
        **{f"coverage_q{q}": round(coverage[quarter * q - 1], 2) for q in (1, 2, 3)},
        "coverage": round(coverage[-1], 2),
        "coverage_coarse": round(env.coverage(block=2), 2),
        "remote_share": round(float(np.mean(pressed)), 4),
        "remote_share_last_quarter": round(float(np.mean(pressed[-quarter:])), 4),
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def values(rows: Sequence[Row], method: str, arm: str, key: str) -> list[float]:
    """That column of every seed."""
    return [float(row[key]) for row in rows if (row["method"], row["arm"]) == (method, arm)]


def table(rows: Sequence[Row]) -> str:
    """Mean +- half the 95 % interval over seeds, beside the paper's, as Markdown."""
    lines = [
        "| method | seeds | clean, % | noisy, % | noisy - clean | remote pressed, noisy | paper: clean / noisy, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in present(rows):
        clean, noisy = (values(rows, method, arm, "coverage") for arm in ARMS)
        cells = [interval(clean), interval(noisy), interval([n - c for c, n in zip(clean, noisy, strict=True)])]
        remote = interval(values(rows, method, "noisy", "remote_share_last_quarter"))
        paper = " / ".join(map(str, PAPER[method])) if method in PAPER else "-"
        shown = " | ".join(told(mean, half, ".1f") for mean, half in cells)
        lines.append(f"| `{method}` | {len(clean)} | {shown} | {told(*remote)} | {paper} |")
    return "\n".join(lines)


def gains(rows: Sequence[Row]) -> str:
    """Coverage less that of what follows no bonus, paired by seed, as Markdown; empty without any of those."""
    plain = [(name, arm) for name in ("random", "none") for arm in ARMS if values(rows, name, arm, "coverage")]
    if not plain:
        return ""
    lines = [
        f"| method | {' | '.join(f'less `{name}`, {arm}' for name, arm in plain)} |",
        "|---" * (len(plain) + 1) + "|",
    ]
    for method in (m for m in present(rows) if m not in dict(plain)):
        cells = []
        for name, arm in plain:
            pairs = zip(*(values(rows, m, arm, "coverage") for m in (method, name)), strict=False)
            mean, half = interval([one - other for one, other in pairs])
            cells.append(told(mean, half, "+.1f"))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def present(rows: Sequence[Row]) -> list[str]:
    """The methods in these rows, in the order of ``METHODS``."""
    return [m for m in METHODS if any(row["method"] == m for row in rows)]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Every seed as a dot, mean and interval beside it, the paper's figures as diamonds."""
    methods = present(rows)
    figure = Figure(figsize=(11, 2.8 + 0.42 * len(methods)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    for axes, key in ((left, "coverage"), (right, "remote_share_last_quarter")):
        for arm, colour, shift in zip(ARMS, ("#2563eb", "#ea580c"), (-0.17, 0.17), strict=True):
            for y, method in enumerate(methods):
                x = values(rows, method, arm, key)
                mean, half = interval(x)
                axes.plot(x, [y + shift] * len(x), "o", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
                label = f"{arm}: mean and 95 % interval" if y == 0 else None
                axes.errorbar(
                    mean,
                    y + shift,
                    xerr=half if len(x) > 1 else None,
                    fmt="|",
                    markersize=9,
                    color=colour,
                    capsize=3,
                    label=label,
                )
                if axes is left and method in PAPER:
                    label = f"{arm}: the paper" if method == next(m for m in methods if m in PAPER) else None
                    paper = PAPER[method][ARMS.index(arm)]
                    axes.plot(paper, y + shift, "D", color=colour, markerfacecolor="none", markersize=6, label=label)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    right.axvline(0.5, color="#6b7280", linestyle="--", linewidth=1)
    above = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3), "textcoords": "offset points"}
    right.annotate("chance", (0.5, 1), color="#6b7280", ha="center", fontsize=8, **above)
    left.set_yticks(range(len(methods)), methods)
    left.set_ylim(len(methods) - 0.5, -0.5)
    left.set_xlim(0, 100)
    right.set_xlim(-0.02, 1.02)
    left.set_xlabel(f"position x speed cells seen, % of {GRID} x {GRID}", fontsize=9)
    right.set_xlabel("share of steps that press the remote, last quarter", fontsize=9)
    named = dict(sorted(zip(*reversed(left.get_legend_handles_labels()), strict=True)))
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    steps = int(rows[0]["steps"])
    figure.suptitle(f"MountainCarContinuous, no reward but the bonus, {steps:,} steps", fontsize=12, fontweight="bold")
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--rollouts", type=int, default=Setting.rollouts, help=f"of {ENVS * STEPS} steps each, 4 or more"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mountain_car"))
    options = parser.parse_args(arguments)
    if options.rollouts < 4 or options.seeds < 1:
        parser.error("--rollouts must be 4 or more and --seeds 1 or more.")
    cfg = Setting(rollouts=options.rollouts)
    results = options.out / "results.csv"
    rows = read_rows(results)
    if any(int(row["steps"]) != cfg.rollouts * STEPS * ENVS for row in rows):
        parser.error(f"{results} has runs of another length: give its --rollouts, or another --out.")
    torch.set_num_threads(1)
    done = {(row["method"], row["arm"], int(row["seed"])) for row in rows}
    for seed in range(options.seeds):
        for method in options.methods:
            for arm in ARMS:
                if (method, arm, seed) not in done:
                    rows.append(run(method, arm, seed, cfg))
                    write_rows(results, rows)
                    print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    rows.sort(key=lambda row: (METHODS.index(row["method"]), ARMS.index(row["arm"]), int(row["seed"])))
    write_rows(results, rows)
    draw(rows, options.out / "coverage.png")
    tables = "\n\n".join(filter(None, (table(rows), gains(rows))))
    (options.out / "table.md").write_text(tables + "\n", encoding="utf-8")
    cpu = sum(float(row["cpu_seconds"]) for row in rows)
    command = f"python3 benchmarks/mountain_car.py --seeds {max(int(row['seed']) for row in rows) + 1}"
    write_summary(options.out, command, {"setting": asdict(cfg), "grid": GRID, "cpu_minutes": round(cpu / 60, 1)})
    print(tables)


if __name__ == "__main__":
    main()

"""Load a trained agent and let it play one episode:  python3 examples/play.py [agent_lpm.pth]"""

import sys

from dreamer_lpm import load
from dreamer_lpm.config import RunConfig
from dreamer_lpm.envs import make_env
from dreamer_lpm.settings import from_plain


def play(path: str) -> float:
    """The return of one episode in the env of its training, whose TV shows nothing."""
    player = load(path)
    env = make_env(from_plain(RunConfig, player.about["run"]).env(tv_on=False))
    obs, _ = env.reset(seed=0)  # a picture: (64, 64, 3), uint8
    total, over = 0.0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(player.act(obs))
        total, over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    print(f"return {play(sys.argv[1] if len(sys.argv) > 1 else 'agent_lpm.pth'):.1f}")

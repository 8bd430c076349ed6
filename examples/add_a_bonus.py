"""A curiosity of your own is one class and one line, and then it works everywhere:  python3 examples/add_a_bonus.py

Whoever loads such an agent imports its module first, as an agent file holds no code; so does a command:
python3 -c "import my_bonus, dreamer_lpm.cli as cli; cli.main()" eval runs/change/agent_lpm.pth

In the repository it would be a file in dreamer_lpm/curiosity/ and a line in its registry; the tests of every bonus
(tests/curiosity/test_contract.py) then try it too.
"""

from pathlib import Path

from torch import Tensor

from dreamer_lpm.agent import AgentConfig
from dreamer_lpm.config import RunConfig
from dreamer_lpm.curiosity import REGISTRY, IntrinsicReward, Losses, Normalized, Transition
from dreamer_lpm.train import train


class Change(IntrinsicReward):
    """r = |o' - o|^2 / dim: pays for a picture unlike the last one. Before a TV it promises to be captured."""

    needs_target = True  # it looks at frames, of which dreams have none: what it expects to pay is learned for them

    def reward(self, t: Transition) -> Tensor:
        """One number a step, (...). Asked twice, it says the same and has changed nothing."""
        return (t.small_target - t.small_frame).square().mean((-3, -2, -1))

    def loss(self, t: Transition) -> Losses:
        """Nothing to learn. Otherwise: named scalars, means over the steps where ``t.mask`` is true."""
        return {}


REGISTRY["change"] = lambda cfg, dims: Normalized(Change())  # its scale has no meaning: divide by its running deviation

if __name__ == "__main__":
    agent = AgentConfig(curiosity="lpm_dual+0.1*change")  # alone, "change" would do
    train(RunConfig(steps=10_000, noisy_tv=True, agent=agent), Path("runs/change"))

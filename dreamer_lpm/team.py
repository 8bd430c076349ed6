"""Several processes of one ``torchrun`` that learn one agent, each from its share of every batch.

The first has the run: env, replay, log, checkpoints, all chance. The others have nothing that could be lost: they are
given the agent as it is, then their share of each batch with its random numbers, and give gradients
(``DistributedDataParallel``). So a run may be stopped, resumed and rolled back as if it were alone, also with another
number of processes.

What differs from one process with the whole batch: memories of a bonus, such as the queue of LPM, are each process's
own and take that many times as many updates to fill; what is measured on a batch, metrics and scales alike, is measured
on the first process's share; and in the update in which a fit gate opens, the delayed copies behind it may differ by
that one step, which they forget as they follow.
"""

from __future__ import annotations

import io
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dreamer_lpm.agent import Agent
from dreamer_lpm.machine import set_tf32
from dreamer_lpm.types import STOPS, Batch, UserError

STOP, BEGIN, LEARN = range(3)
PATIENCE = timedelta(days=1)  # of those who wait while the first evaluates
LARGEST_STATISTIC = 64  # numbers in a buffer that all share; a larger one is a memory


class Team:
    """This process among those of its ``torchrun``. ``rank`` 0 calls ``update``, all others ``help``."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._agent: Agent | None = None
        self._parallel: DistributedDataParallel | None = None
        self._statistics: list[Tensor]
        self._shares: list[tuple[torch.Size, torch.dtype]]

    # --- the first ----------------------------------------------------------------------------------------------------

    def check(self, batch_size: int) -> None:
        """Raises UserError where a batch can not be shared out."""
        if batch_size % self.size:
            raise UserError(
                f"--batch-size {batch_size} can not be shared out to {self.size} processes; take a multiple of it."
            )

    def chances(self, agent: Agent, batch: int, length: int) -> int:
        """How many random numbers ``update`` takes, as ``Agent.update_chances``."""
        self._share_dreams(agent)
        return self.size * agent.update_chances(batch // self.size, length)

    def update(self, agent: Agent, batch: Batch, uniform: Tensor) -> tuple[dict[str, Tensor], Batch]:
        """``agent.update``, with everybody's gradients: its metrics, and this process's share of the batch."""
        if agent is not self._agent:
            self._tell(BEGIN)
            self._begin(agent, batch, uniform)
        self._tell(LEARN)
        return self._learn([*batch, uniform])

    def _begin(self, agent: Agent, batch: Batch, uniform: Tensor) -> None:
        self._shares = [(x[: len(x) // self.size].shape, x.dtype) for x in (*batch, uniform)]
        about = {
            "agent": (agent.cfg, agent.spec),
            "setup": {"device": agent.device.type, "bf16": agent.bf16, "size": agent.world.encoder.frame},
            "state": agent.state_dict(),
            "optimizer": agent.optimizer.state_dict(),
            "shares": self._shares,
            "tf32": torch.get_float32_matmul_precision() != "highest",
            "threads": torch.get_num_threads(),
        }
        file = io.BytesIO()
        torch.save(about, file)
        dist.broadcast_object_list([file.getvalue()])
        self._join(agent)

    def dismiss(self) -> None:
        """Nothing is left to learn."""
        self._tell(STOP)
        self._part()

    # --- the others ---------------------------------------------------------------------------------------------------

    def help(self) -> None:
        """Do what the first one says until it says that it is done; a signal is its to answer."""
        for signum in STOPS:
            signal.signal(signum, signal.SIG_IGN)
        while (told := self._hear()) != STOP:
            if told == BEGIN:
                self._meet()
            else:
                self._learn(None)
        self._part()

    def _meet(self) -> None:
        held: list[Any] = [None]
        dist.broadcast_object_list(held)
        about = torch.load(io.BytesIO(held[0]), map_location="cpu", weights_only=False)  # of our own process
        torch.set_num_threads(about["threads"])
        set_tf32(about["tf32"])
        agent = Agent(*about["agent"], **about["setup"])
        self._share_dreams(agent)
        self._shares = about["shares"]
        agent.load_state_dict(about["state"])
        agent.optimizer.load_state_dict(about["optimizer"])
        self._join(agent)

    # --- all ----------------------------------------------------------------------------------------------------------

    def _share_dreams(self, agent: Agent) -> None:
        agent.starts = max(1, agent.cfg.behavior.starts // self.size)

    def _join(self, agent: Agent) -> None:
        self._agent = agent
        self._statistics = [x for x in agent.buffers() if x.numel() <= LARGEST_STATISTIC]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch 2.13 names the option otherwise
            self._parallel = DistributedDataParallel(agent, broadcast_buffers=False)

    def _learn(self, whole: list[Tensor] | None) -> tuple[dict[str, Tensor], Batch]:
        assert self._agent is not None
        for x in self._statistics:
            dist.broadcast(x, 0)
        *share, uniform = (self._deal(i, None if whole is None else whole[i]) for i in range(len(self._shares)))
        batch = Batch(*share)
        return self._agent.update(batch, uniform, self._parallel), batch

    def _deal(self, i: int, whole: Tensor | None) -> Tensor:
        assert self._agent is not None
        shape, kind = self._shares[i]
        mine = torch.empty(shape, dtype=kind, device=self._agent.device)
        dist.scatter(mine, None if whole is None else list(whole.contiguous().chunk(self.size)))
        return mine

    def _part(self) -> None:
        """Nobody hangs up while another still listens, and nothing that talks outlives the line."""
        self._agent = self._parallel = None
        dist.barrier()

    def _tell(self, what: int) -> None:
        dist.broadcast(torch.tensor([what]), 0)

    def _hear(self) -> int:
        what = torch.empty(1, dtype=torch.long)
        dist.broadcast(what, 0)
        return int(what)


@contextmanager
def joined() -> Iterator[Team | None]:
    """The team that ``torchrun`` started this process into, None where it is alone; the others end with the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=PATIENCE)  # gloo for a CPU's tensors, NCCL for a GPU's
    team = Team()
    try:
        yield team
    finally:
        if team.rank == 0:
            team.dismiss()
        dist.destroy_process_group()

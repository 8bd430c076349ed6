"""Several runs' agents as one: their tensors lie stacked in memory, and one batched update serves them all.

An update of a small agent is thousands of tiny kernels that fill a hundredth of a GPU; for sixteen agents it is the
same number of kernels, sixteen times as large. Each member stays what it was: its own generators, replay, optimizer
moments, metrics and checkpoints, which are views of the stacks, and its numbers are those it would have alone, as far
as sums in another order round alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from dreamer_lpm.agent import Agent, Carry, Policy, Thought, total
from dreamer_lpm.capture import Captured, Download, upload
from dreamer_lpm.fusing import fuse
from dreamer_lpm.types import Batch
from dreamer_lpm.world import RSSM, Latent
from dreamer_lpm.world.codec import as_products

if TYPE_CHECKING:
    from dreamer_lpm.state import State

Tensors = dict[str, Tensor]


class Flock:
    """Observes and learns for all of ``states`` at once. They must be :func:`alike`."""

    def __init__(self, states: Sequence[State]) -> None:
        self.states = list(states)
        self.model = states[0]  # what is the same for all: shapes, names, how things are computed
        self.device = self.model.device
        self._parts = {"replay": self._stacked("replay")}
        self._weights = self._stacked_agents()
        names = [key for key, _ in self.model.agent.behavior.critic.net.named_parameters()]
        self._slow, self._critic = (
            [self._weights[f"behavior.critic.{which}.{key}"] for key in names] for which in ("slow", "net")
        )
        self._optimizer: torch.optim.Optimizer | None = None
        for state in self.states:
            state.forget_graphs()
            as_products(state.agent)
        self._observe = {policy: Captured(self._bind(policy), self.device) for policy in self.model._observe}
        self._update = Captured(self._learn, self.device)
        self._chosen = Download(self.device)
        self._uniform: dict[int, Tensor] = {}

    # --- stacks -------------------------------------------------------------------------------------------------------

    def _stacked(self, part: str) -> Tensors:
        """The tensors of one part of every state in one place, and the states with views of it."""
        held = [state.parts()[part] for state in self.states]
        stacks = {}
        for key in held[0]:
            stacks[key] = torch.stack([tensors[key] for tensors in held])
            for i, tensors in enumerate(held):  # before the next is stacked: a replay fills a device half
                tensors[key] = stacks[key][i]
        for state, tensors in zip(self.states, held, strict=True):
            state.hold(part, tensors)
        return stacks

    def _stacked_agents(self) -> Tensors:
        every = [_tensors(state.agent) for state in self.states]
        stacks = {key: torch.stack([tensors[key].detach() for tensors in every]) for key in every[0]}
        for i, tensors in enumerate(every):
            for key, x in tensors.items():
                x.data = stacks[key][i]
        for key, x in every[0].items():
            stacks[key].requires_grad_(x.requires_grad)
        return stacks

    def _stacked_optimizer(self) -> torch.optim.Optimizer:
        """One Adam over the stacks, with the members' moments; theirs become views of its."""
        names = {id(p): name for name, p in self.model.agent.named_parameters()}
        groups = [
            {**group, "params": [self._weights[names[id(p)]] for p in group["params"]]}
            for group in self.model.agent.optimizer.param_groups
        ]
        optimizer = torch.optim.Adam(groups)
        for name in names.values():
            weights = [state.agent.get_parameter(name) for state in self.states]
            if not weights[0].requires_grad:
                continue
            own = [state.agent.optimizer.state[weight] for state, weight in zip(self.states, weights, strict=True)]
            stacks = {key: torch.stack([held[key] for held in own]) for key in ("exp_avg", "exp_avg_sq")}
            optimizer.state[self._weights[name]] = {"step": own[0]["step"].clone(), **stacks}
            for i, held in enumerate(own):
                held.update(step=optimizer.state[self._weights[name]]["step"], **{k: x[i] for k, x in stacks.items()})
        return optimizer

    def dissolve(self) -> None:
        """Every member goes its own way from now on, and the flock is no more."""
        for state in self.states:
            for held in state.agent.optimizer.state.values():
                held["step"] = held["step"].clone()
            state.forget_graphs()
        vars(self).clear()  # what it recorded refers to it and it to that: its memory would wait for Python's collector

    # --- what the members do ------------------------------------------------------------------------------------------

    def observe(self, policy: Policy) -> None:
        """As ``State.observe`` of every member."""
        slots = torch.stack([state.replay.slot() for state in self.states])
        rows = {key: torch.from_numpy(np.stack([state.row[key] for state in self.states])) for key in self.model.row}
        inputs = {key: upload(x, self.device) for key, x in {"slot": slots, **rows}.items()}
        inputs["deter"] = torch.stack([state.carry.latent.deter for state in self.states])
        inputs["stoch"] = torch.stack([state.carry.latent.stoch for state in self.states])
        inputs["uniform"] = self._drawn(self.model.agent.chances(self.model.cfg.num_envs))
        deter, stoch, action = self._observe[policy](**inputs)
        self._chosen.start(action)
        for i, state in enumerate(self.states):
            state.observed(Carry(Latent(deter[i], stoch[i]), action[i]), self._member(i))

    def _member(self, i: int) -> Callable[[], np.ndarray]:
        chosen = self._chosen
        return lambda: chosen.numpy()[i]

    def learn(self) -> None:
        """As ``State.learn`` of every member. The first time each by itself: then all that is to stack is there."""
        if any(state.updates_here == 0 for state in self.states):
            for state in self.states:
                state.learn()
            return
        if self._optimizer is None:
            self._parts |= {name: self._stacked(name) for name in self.model.parts() if name != "replay"}
            self._optimizer = self._stacked_optimizer()
            if self.model.cfg.compile:
                fuse(self.model.agent)
        b, t = self.model.cfg.batch_size, self.model.cfg.seq_length
        self._update(
            places=upload(torch.stack([state.replay.draw(state.rng, b, t) for state in self.states]), self.device),
            update=upload(torch.tensor([state.tally.updates for state in self.states]), self.device),
            uniform=self._drawn(self.model.agent.update_chances(b, t)),
        )
        for state in self.states:
            state.learned()

    def _drawn(self, count: int) -> Tensor:
        """Every member's next random numbers, (members, count), from its own generator."""
        if count not in self._uniform:
            self._uniform[count] = torch.empty(len(self.states), count, device=self.device)
        for state, row in zip(self.states, self._uniform[count], strict=True):
            row.uniform_(generator=state.agent.generator)
        return self._uniform[count]

    # --- functions of tensors on the device ---------------------------------------------------------------------------

    def _bind(self, policy: Policy) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        module = _Observing(self.model, policy)

        def one(weights: Tensors, replay: Tensors, inputs: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            with self._holding(replay=replay):
                latent, action = functional_call(module, {f"agent.{k}": x for k, x in weights.items()}, kwargs=inputs)
            return latent.deter, latent.stoch, action

        @torch.no_grad()
        def every(**inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            found: tuple[Tensor, Tensor, Tensor] = vmap(one)(self._weights, self._parts["replay"], inputs)
            return found

        return every

    def _learn(self, *, places: Tensor, update: Tensor, uniform: Tensor) -> None:
        batch, thought, sums = vmap(self._think)(self._weights, self._parts["replay"], places, uniform)
        assert self._optimizer is not None
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(sums.sum())
        groups = zip(self.model.agent.learned, self._optimizer.param_groups, strict=True)
        norms = {f"grad/{name}": self._clip(group["params"]) for name, group in groups}
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self._slow, self._critic, self.model.agent.behavior.critic.rate)
            said = {**{f"loss/{k}": x.detach() for k, x in thought.losses.items()}, **norms, **thought.metrics}
            noted = {name: x for name, x in self._parts.items() if name != "replay"}
            vmap(self._note)(noted, update, said, batch, thought.felt)

    def _think(
        self, weights: Tensors, replay: Tensors, places: Tensor, uniform: Tensor
    ) -> tuple[Batch, Thought, Tensor]:
        with torch.no_grad(), self._holding(replay=replay):
            batch = self.model.replay.gather(places, self.model.cfg.seq_length)
        memories = [part for part in self.model.agent.modules() if isinstance(part, RSSM)]
        for rssm in memories:
            rssm.together = True
        try:
            thought: Thought = functional_call(self.model.agent, weights, (batch, uniform, True))
        finally:
            for rssm in memories:
                rssm.together = False
        return batch, thought, total(thought.losses)

    def _note(self, parts: Mapping[str, Tensors], update: Tensor, metrics: Tensors, batch: Batch, felt: Any) -> Tensor:
        with self._holding(**parts):
            self.model.note(update, metrics, batch, felt)
        return update  # vmap wants a result

    @contextmanager
    def _holding(self, **parts: Tensors) -> Iterator[None]:
        """The model with these tensors in the places of its own."""
        own = {name: self.model.parts()[name] for name in parts}
        for name, tensors in parts.items():
            self.model.hold(name, tensors)
        try:
            yield
        finally:
            for name, tensors in own.items():
                self.model.hold(name, tensors)

    def _clip(self, params: Sequence[Tensor]) -> Tensor:
        """Shorten each member's gradient to the largest norm allowed. Its norms before, (members,)."""
        grads = [p.grad for p in params if p.grad is not None]
        norms: Tensor = torch.linalg.vector_norm(torch.cat([g.flatten(1) for g in grads], 1), dim=1)
        factor = (self.model.cfg.agent.clip / (norms + 1e-6)).clamp(max=1.0)
        for g in grads:
            g.mul_(factor.reshape(-1, *[1] * (g.dim() - 1)))
        return norms


class _Observing(nn.Module):
    """``State._see`` as a module, whose weights can be given."""

    def __init__(self, state: State, policy: Policy) -> None:
        super().__init__()
        self.agent, self._see, self._policy = state.agent, state._see, policy

    def forward(self, **inputs: Tensor) -> Carry:
        return self._see(self._policy, **inputs)


def alike(a: State, b: State) -> bool:
    """Whether the two can be one: the same networks, batches and rates, after as many updates."""

    def kind(s: State) -> tuple[Any, ...]:
        rates = [group["lr"] for group in s.agent.optimizer.param_groups]
        replay = {name: x.shape for name, x in s.replay.data.items()}
        cfg, agent = s.cfg, replace(s.cfg.agent, extrinsic=1.0, lpm_eta=1.0)  # these two are each one's own
        sizes = (cfg.precision, cfg.compile, cfg.batch_size, cfg.seq_length, s.envs.action_spec)
        return (agent, *sizes, s.device, rates, replay, s.probe is None, s.tally.updates - s.updates_here)

    return kind(a) == kind(b)


def _tensors(agent: Agent) -> Tensors:
    return {**dict(agent.named_parameters()), **dict(agent.named_buffers())}

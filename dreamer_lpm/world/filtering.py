"""Filtering of whole sequences with its gradient written out: the one loop in which the world model learns.

Autograd would do the same with three times as many operations a step, each too small to be worth its overhead. Here
weights are cast once and not at every step, and their gradients are one product over all steps instead of a sum of T
small ones. ``RSSM.observe_step`` says the same thing in plain words, and the tests hold this against it.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from dreamer_lpm.fusing import fused, in_front
from dreamer_lpm.nets import EPS, arithmetic, by_block, one_hot_of_largest
from dreamer_lpm.world.gate import Gate, look

_ops = torch.ops.aten


class Weights(NamedTuple):
    """What the loop learns, as the RSSM holds it; X is its width ``hidden``."""

    stoch: Tensor  # (X, S*C)
    in_norm: Tensor  # (X,)
    in_shift: Tensor
    core_in: Tensor  # (3 D, X)
    core_rec: Tensor  # (3 D, D); with blocks, (blocks, D / blocks, 3 D / blocks)
    core_norm: Tensor  # (3 D,)
    core_shift: Tensor
    prior_in: Tensor  # (X, D)
    prior_norm: Tensor  # (X,)
    prior_shift: Tensor
    prior_out: Tensor  # (S*C, X)
    prior_bias: Tensor  # (S*C,)
    post_in: Tensor  # as those of the prior
    post_norm: Tensor
    post_shift: Tensor
    post_out: Tensor
    post_bias: Tensor


_COUNT = len(Weights._fields)


class How(NamedTuple):
    """How the steps are worked out."""

    fused: bool = False  # compiled: few large kernels instead of many small ones
    many: bool = False  # of several agents at once


@lru_cache
def _made(step: Callable[..., Any], how: How, unimix: float) -> Callable[..., Any]:
    """A step that is worked out so. Compiled once for each set of shapes."""

    def made(*inputs: Any) -> Any:
        return step(*inputs, unimix)

    return fused(vmap(made) if how.many else made, how.fused)


def _norm(x: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm: the output, and mean and 1 / std for the way back."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, shift, EPS)


def _norm_back(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, what: list[bool]) -> Any:
    """Gradients of what went in, of the weight and of the shift; ``what`` says which are wanted."""
    return _ops.native_layer_norm_backward(gradient, x, x.shape[-1:], mean, rstd, weight, weight, what)


def recur(deter: Tensor, weight: Tensor) -> Tensor:
    """deter (..., D) -> (..., 3 D), dense or block by block."""
    return F.linear(deter, weight) if weight.dim() == 2 else by_block(deter, weight)


def _recur_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """The same the other way: (..., 3 D) -> (..., D)."""
    return gradient @ weight if weight.dim() == 2 else by_block(gradient, weight.transpose(1, 2))


def _product(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of a weight (O, I) over all steps: gradient (T, B, O), x (T, B, I)."""
    return gradient.flatten(0, 1).t() @ x.flatten(0, 1)


def _recur_product(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return _product(gradient, x)
    n = len(weight)
    one, other = (y.reshape(-1, n, y.shape[-1] // n).transpose(0, 1) for y in (x, gradient))
    return torch.bmm(one.transpose(1, 2), other)


class _Cast(NamedTuple):
    """Weights in the type in which products are taken."""

    stoch: Tensor
    core_in: Tensor
    core_rec: Tensor
    heads: Tensor  # of prior and posterior, one above the other
    prior_out: Tensor
    post_out: Tensor


def _cast(w: Weights, kind: torch.dtype) -> _Cast:
    heads = torch.cat([w.prior_in, w.post_in], -2)
    return _Cast(*(x.to(kind) for x in (w.stoch, w.core_in, w.core_rec, heads, w.prior_out, w.post_out)))


# What the way back needs of a step.
_Kept = namedtuple(
    "_Kept",
    "z0 h0 u un um ur s g gm gr reset into update candidate h p pn pm pr ps q qn qm qr qs soft_p soft_q far keep",
)
# Of it, what the gradients of the weights need; and the gradients that came up in a step back, for them.
_Past = namedtuple("_Past", "z0 h0 u um ur s g gm gr h p pm pr ps q qm qr qs")
_Steps = namedtuple("_Steps", "u un g gn hidden pn qn p_logits q_logits")


class _Came(NamedTuple):
    """What enters a step."""

    action_in: Tensor  # (B, X)
    embed_in: Tensor  # (B, X)
    keep: Tensor  # (B, 1)
    kept: Tensor  # (B, 1) the same in the type of the products
    race: Tensor  # (B, S, C)
    first: Tensor  # (B,)


State = tuple[Tensor, Tensor]


def _forth(
    state: State, came: _Came, cast: _Cast, w: Weights, gate: Gate | tuple[()], unimix: float
) -> tuple[State, tuple[Tensor, Tensor], _Kept]:
    """One step: the state after it, the probabilities of posterior and prior, and what the way back needs."""
    (h, z), kind, classes, blocks = state, cast.stoch.dtype, came.race.shape[-2:], 1
    if cast.core_rec.dim() == 3:
        blocks = len(cast.core_rec)
    h0, z0 = h * came.keep, z * came.kept
    u = F.linear(z0, cast.stoch) + came.action_in
    un, um, ur = _norm(u, w.in_norm, w.in_shift)
    s = F.silu(un).to(kind)
    g = (F.linear(s, cast.core_in) + recur(h0.to(kind), cast.core_rec)).float()
    gn, gm, gr = _norm(g, w.core_norm, w.core_shift)
    reset, into, update = gn.view(len(g), blocks, 3, -1).unbind(2)
    reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
    candidate = torch.tanh(reset * into)
    h = torch.lerp(h0, candidate.flatten(1), update.flatten(1))
    p, q = F.linear(h.to(kind), cast.heads).chunk(2, -1)
    p, q = p.float(), q + came.embed_in
    pn, pm, pr = _norm(p, w.prior_norm, w.prior_shift)
    qn, qm, qr = _norm(q, w.post_norm, w.post_shift)
    ps, qs = F.silu(pn).to(kind), F.silu(qn).to(kind)
    soft_p = (F.linear(ps, cast.prior_out).float() + w.prior_bias).view(-1, *classes).softmax(-1)
    soft_q = (F.linear(qs, cast.post_out).float() + w.post_bias).view(-1, *classes).softmax(-1)
    # The weight is linear in both, so the uniform share can be mixed in once, afterwards.
    far = (look(h, gate, came.first) if gate else torch.ones_like(h[:, 0]))[:, None, None]
    prior = soft_p * (1 - unimix) + unimix / classes[-1]
    post = torch.lerp(soft_p, soft_q, far) * (1 - unimix) + unimix / classes[-1]
    z = one_hot_of_largest(post * came.race).flatten(-2).to(kind)
    kept = _Kept(
        z0, h0, u, un, um, ur, s, g, gm, gr, reset, into, update, candidate, h,
        p, pn, pm, pr, ps, q, qn, qm, qr, qs, soft_p, soft_q, far, came.keep,
    )  # fmt: skip
    return (h, z), (post, prior), kept


def _back(
    state: State, came: tuple[Tensor, Tensor, Tensor, Tensor], x: _Kept, cast: _Cast, w: Weights, unimix: float
) -> tuple[State, _Steps]:
    """One step back: gradients of the state after it, of what it gave (deter, stoch, posterior, prior) -> before it."""
    (h_g, z_g), (after_g, stoch_g, post_g, prior_g) = state, came
    kind, classes, wanted = cast.stoch.dtype, x.soft_p.shape[-2:], 1 - unimix
    only_input = [True, False, False]
    mixed_g = (post_g + (z_g + stoch_g).view(-1, *classes)) * wanted
    soft_q_g = mixed_g * x.far
    soft_p_g = torch.add(mixed_g - soft_q_g, prior_g, alpha=wanted)
    p_logits, q_logits = (
        _ops._softmax_backward_data(y, soft, -1, torch.float32).flatten(-2)
        for y, soft in ((soft_p_g, x.soft_p), (soft_q_g, x.soft_q))
    )
    pn_g = _ops.silu_backward((p_logits.to(kind) @ cast.prior_out).float(), x.pn)
    qn_g = _ops.silu_backward((q_logits.to(kind) @ cast.post_out).float(), x.qn)
    p_g = _norm_back(pn_g, x.p, x.pm, x.pr, w.prior_norm, only_input)[0]
    q_g = _norm_back(qn_g, x.q, x.qm, x.qr, w.post_norm, only_input)[0]
    hidden_g = torch.cat([p_g, q_g], -1).to(kind)
    after = h_g + after_g + hidden_g @ cast.heads
    update_g = (after * (x.candidate.flatten(1) - x.h0)).view_as(x.update)
    candidate_g = after.view_as(x.update) * x.update
    into_g = _ops.tanh_backward(candidate_g, x.candidate)
    gates_g = (
        _ops.sigmoid_backward(into_g * x.into, x.reset), into_g * x.reset, _ops.sigmoid_backward(update_g, x.update)
    )  # fmt: skip
    gn_g = torch.stack(gates_g, 2).view_as(x.g)
    g_g = _norm_back(gn_g, x.g, x.gm, x.gr, w.core_norm, only_input)[0].to(kind)
    un_g = _ops.silu_backward((g_g @ cast.core_in).float(), x.un)
    u_g = _norm_back(un_g, x.u, x.um, x.ur, w.in_norm, only_input)[0]
    h_g = (after - candidate_g.flatten(1) + _recur_back(g_g, cast.core_rec)) * x.keep
    z_g = (u_g.to(kind) @ cast.stoch) * x.keep
    return (h_g, z_g), _Steps(u_g, un_g, g_g, gn_g, hidden_g, pn_g, qn_g, p_logits, q_logits)


def _of_weights(back: _Steps, x: _Past, cast: _Cast, w: Weights) -> Weights:
    """Gradients of the weights over all steps; what came of those has time in front."""
    only_weights, h = [False, True, True], x.h.to(cast.stoch.dtype)
    p_hidden, q_hidden = back.hidden.chunk(2, -1)
    gradients = (
        _product(back.u.to(h.dtype), x.z0).float(),
        *_norm_back(back.un, x.u, x.um, x.ur, w.in_norm, only_weights)[1:],
        _product(back.g, x.s).float(),
        _recur_product(back.g, x.h0.to(h.dtype), cast.core_rec).float(),
        *_norm_back(back.gn, x.g, x.gm, x.gr, w.core_norm, only_weights)[1:],
        *_head(p_hidden, h, back.pn, (x.p, x.pm, x.pr), w.prior_norm, back.p_logits, x.ps),
        *_head(q_hidden, h, back.qn, (x.q, x.qm, x.qr), w.post_norm, back.q_logits, x.qs),
    )
    return Weights(*gradients)


class Filter(torch.autograd.Function):
    """T steps of the RSSM that see what came.

    deter (B, D), stoch (B, S*C), action_in and embed_in (B, T, X), keep (B, T, 1), race (B, T, S, C) the exponential of
    Gumbel noise, is_first (B, T), unimix, the parts of Weights and of Gate, if there is one -> deter (B, T, D), stoch
    (B, T, S*C), probabilities of posterior and prior (B, T, S, C), look (B, T). The sample's gradient goes straight
    through to the posterior's probabilities. No gradient goes into the state before the first step, nor into the gate.
    All of it may have a dimension more in front: ``how`` says so.
    """

    @staticmethod
    def forward(
        ctx: Any, how: How, deter: Tensor, stoch: Tensor, action_in: Tensor, embed_in: Tensor, keep: Tensor,
        race: Tensor, is_first: Tensor, unimix: float, *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        w, kind = Weights(*weights[:_COUNT]), arithmetic(deter.device)
        cast = _cast(w, kind)
        gate = Gate(*weights[_COUNT:]).cast(kind) if weights[_COUNT:] else ()
        step = _made(_forth, how, unimix)
        state = (deter, stoch.to(kind))
        outs, every = [], []
        whole = (action_in.float(), embed_in.float(), keep, keep.to(kind), race, is_first)
        each = (x.unbind(time) for x, time in zip(whole, (-2, -2, -2, -2, -3, -1), strict=True))
        for came in zip(*each, strict=True):
            state, seen, kept = step(state, _Came(*came), cast, w, gate)
            outs.append((*state, *seen, kept.far[..., 0, 0]))
            every.append(kept)
        ctx.save_for_backward(*w)  # not the gate, whose threshold moves meanwhile
        ctx.kept = every  # neither what came in nor what goes out
        ctx.kinds = (how, kind, unimix, action_in.dtype, embed_in.dtype, len(gate))
        after, stochs, post, prior, far = (
            torch.stack(x, time) for x, time in zip(zip(*outs, strict=True), (-2, -2, -3, -3, -1), strict=True)
        )
        ctx.mark_non_differentiable(far)
        return after, stochs.float(), post, prior, far

    @staticmethod
    def backward(ctx: Any, after_g: Tensor, stoch_g: Tensor, post_g: Tensor, prior_g: Tensor, _: Tensor) -> Any:
        how, kind, unimix, action_kind, embed_kind, ungated = ctx.kinds
        w = Weights(*ctx.saved_tensors)
        cast = _cast(w, kind)
        step = _made(_back, how, unimix)
        came = [after_g.unbind(-2), stoch_g.unbind(-2), post_g.unbind(-3), prior_g.unbind(-3)]
        state = (torch.zeros_like(came[0][0]), torch.zeros_like(came[1][0]))
        steps = []
        for given, kept in zip(reversed(list(zip(*came, strict=True))), reversed(ctx.kept), strict=True):
            state, found = step(state, given, kept, cast, w)
            steps.append(found)
        back = _Steps(*(torch.stack(x) for x in zip(*reversed(steps), strict=True)))
        past = _Past(*(torch.stack([getattr(kept, name) for kept in ctx.kept]) for name in _Past._fields))
        weights = (vmap(_of_weights, (1, 1, 0, 0)) if how.many else _of_weights)(back, past, cast, w)
        embed_g = back.hidden.chunk(2, -1)[1].movedim(0, -2).to(embed_kind)
        action_g = back.u.movedim(0, -2).to(action_kind)
        return None, None, None, action_g, embed_g, *[None] * 4, *weights, *[None] * ungated


class ManyFilters(torch.autograd.Function):
    """:class:`Filter` inside of ``torch.func.vmap``: all agents go through each step at once."""

    @staticmethod
    def forward(how: How, *inputs: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError("only inside of vmap; elsewhere there is Filter")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], how: How, *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        batched = in_front(info, in_dims[1:], inputs)
        return Filter.apply(how._replace(many=True), *batched), 0  # type: ignore[no-untyped-call]


def _head(
    hidden_g: Tensor, h: Tensor, normed_g: Tensor, norm: tuple[Tensor, Tensor, Tensor], weight: Tensor,
    logits_g: Tensor, active: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of one head's five weights, over all steps."""
    _, norm_g, shift_g = _norm_back(normed_g, *norm, weight, [False, True, True])
    return (
        _product(hidden_g, h).float(),
        norm_g,
        shift_g,
        _product(logits_g.to(active.dtype), active).float(),
        logits_g.sum((0, 1)),
    )

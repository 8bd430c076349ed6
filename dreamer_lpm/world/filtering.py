"""Filtering of whole sequences with its gradient written out: the one loop in which the world model learns.

Autograd would do the same with three times as many operations a step, each too small to be worth its overhead. Here
weights are cast once and not at every step, and their gradients are one product over all steps instead of a sum of T
small ones. ``RSSM.observe_step`` says the same thing in plain words, and the tests hold this against it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamer_lpm.nets import arithmetic, one_hot_of_largest

_ops = torch.ops.aten
_EPS = 1e-3  # of every layer norm in the RSSM


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


def _norm(x: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm: the output, and mean and 1 / std for the way back."""
    return torch.native_layer_norm(x, x.shape[-1:], weight, shift, _EPS)


def _norm_back(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, what: list[bool]) -> Any:
    """Gradients of what went in, of the weight and of the shift; ``what`` says which are wanted."""
    return _ops.native_layer_norm_backward(gradient, x, x.shape[-1:], mean, rstd, weight, weight, what)


def recur(deter: Tensor, weight: Tensor) -> Tensor:
    """deter (..., D) -> (..., 3 D), dense or block by block."""
    if weight.dim() == 2:
        return F.linear(deter, weight)
    grouped = deter.reshape(-1, len(weight), weight.shape[1]).transpose(0, 1)
    return torch.bmm(grouped, weight).transpose(0, 1).reshape(*deter.shape[:-1], -1)


def _recur_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """The same the other way: (..., 3 D) -> (..., D)."""
    return gradient @ weight if weight.dim() == 2 else recur(gradient, weight.transpose(1, 2))


def _product(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of a weight (O, I) over all steps: gradient (T, B, O), x (T, B, I)."""
    return gradient.flatten(0, 1).t() @ x.flatten(0, 1)


def _recur_product(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() == 2:
        return _product(gradient, x)
    n = len(weight)
    one, other = (y.reshape(-1, n, y.shape[-1] // n).transpose(0, 1) for y in (x, gradient))
    return torch.bmm(one.transpose(1, 2), other)


class Filter(torch.autograd.Function):
    """T steps of the RSSM that see what came.

    deter (B, D), stoch (B, S*C), action_in and embed_in (B, T, X), keep (B, T, 1), race (B, T, S, C) the exponential of
    Gumbel noise, look: (deter (B, D), t) -> (B,), unimix, Weights -> deter (B, T, D), stoch (B, T, S*C), probabilities
    of posterior and prior (B, T, S, C), look (B, T). The sample's gradient goes straight through to the posterior's
    probabilities. No gradient goes into the state before the first step, nor into the look.
    """

    @staticmethod
    def forward(
        ctx: Any, deter: Tensor, stoch: Tensor, action_in: Tensor, embed_in: Tensor, keep: Tensor, race: Tensor,
        look: Callable[[Tensor, int], Tensor], unimix: float, *weights: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        w = Weights(*weights)
        kind = arithmetic(deter.device)
        stoch_w, core_in, core_rec, prior_out, post_out = (
            x.to(kind) for x in (w.stoch, w.core_in, w.core_rec, w.prior_out, w.post_out)
        )
        heads = torch.cat([w.prior_in, w.post_in]).to(kind)
        classes, blocks = race.shape[-2:], 1 if core_rec.dim() == 2 else len(core_rec)
        h, z = deter, stoch.to(kind)
        kept, outs = [], []
        steps = (x.unbind(1) for x in (action_in.float(), embed_in.float(), keep, keep.to(kind), race))
        for t, (a, e, k, k_, r) in enumerate(zip(*steps, strict=True)):
            h0, z0 = h * k, z * k_
            u = F.linear(z0, stoch_w) + a
            un, um, ur = _norm(u, w.in_norm, w.in_shift)
            s = F.silu(un).to(kind)
            g = (F.linear(s, core_in) + recur(h0.to(kind), core_rec)).float()
            gn, gm, gr = _norm(g, w.core_norm, w.core_shift)
            reset, into, update = gn.view(len(g), blocks, 3, -1).unbind(2)
            reset, update = torch.sigmoid(reset), torch.sigmoid(update - 1)
            candidate = torch.tanh(reset * into)
            h = torch.lerp(h0, candidate.flatten(1), update.flatten(1))
            p, q = F.linear(h.to(kind), heads).chunk(2, -1)
            p, q = p.float(), q + e
            pn, pm, pr = _norm(p, w.prior_norm, w.prior_shift)
            qn, qm, qr = _norm(q, w.post_norm, w.post_shift)
            ps, qs = F.silu(pn).to(kind), F.silu(qn).to(kind)
            soft_p = (F.linear(ps, prior_out).float() + w.prior_bias).view(-1, *classes).softmax(-1)
            soft_q = (F.linear(qs, post_out).float() + w.post_bias).view(-1, *classes).softmax(-1)
            # The weight is linear in both, so the uniform share can be mixed in once, afterwards.
            far = look(h, t)[:, None, None]
            prior = soft_p * (1 - unimix) + unimix / classes[-1]
            post = torch.lerp(soft_p, soft_q, far) * (1 - unimix) + unimix / classes[-1]
            z = one_hot_of_largest(post * r).flatten(-2).to(kind)
            outs.append((h, z, post, prior, far))
            kept.append(
                (z0, h0, u, un, um, ur, s, g, gm, gr, reset, into, update, candidate, h,
                 p, pn, pm, pr, ps, q, qn, qm, qr, qs, soft_p, soft_q, far, k)
            )  # fmt: skip
        ctx.save_for_backward(*weights)
        ctx.kept = kept  # neither what came in nor what goes out
        ctx.kinds = (kind, unimix, classes, action_in.dtype, embed_in.dtype)
        after, stochs, post, prior, far = (torch.stack(x, 1) for x in zip(*outs, strict=True))
        far = far.flatten(1)
        ctx.mark_non_differentiable(far)
        return after, stochs.float(), post, prior, far

    @staticmethod
    def backward(ctx: Any, after_g: Tensor, stoch_g: Tensor, post_g: Tensor, prior_g: Tensor, _: Tensor) -> Any:
        w, kept = Weights(*ctx.saved_tensors), ctx.kept
        kind, unimix, classes, action_kind, embed_kind = ctx.kinds
        stoch_w, core_in, core_rec, prior_out, post_out = (
            x.to(kind) for x in (w.stoch, w.core_in, w.core_rec, w.prior_out, w.post_out)
        )
        heads = torch.cat([w.prior_in, w.post_in]).to(kind)
        only_input, only_weights = [True, False, False], [False, True, True]
        wanted = 1 - unimix
        h_g = torch.zeros_like(after_g[:, 0])
        z_g = torch.zeros_like(stoch_g[:, 0])
        steps = []
        for t in range(len(kept) - 1, -1, -1):
            (
                z0, h0, u, un, um, ur, s, g, gm, gr, reset, into, update, candidate, h,
                p, pn, pm, pr, ps, q, qn, qm, qr, qs, soft_p, soft_q, far, k,
            ) = kept[t]  # fmt: skip
            mixed_g = (post_g[:, t] + (z_g + stoch_g[:, t]).view(-1, *classes)) * wanted
            soft_q_g = mixed_g * far
            soft_p_g = torch.add(mixed_g - soft_q_g, prior_g[:, t], alpha=wanted)
            p_logits, q_logits = (
                _ops._softmax_backward_data(x, soft, -1, torch.float32).flatten(-2)
                for x, soft in ((soft_p_g, soft_p), (soft_q_g, soft_q))
            )
            pn_g = _ops.silu_backward((p_logits.to(kind) @ prior_out).float(), pn)
            qn_g = _ops.silu_backward((q_logits.to(kind) @ post_out).float(), qn)
            p_g = _norm_back(pn_g, p, pm, pr, w.prior_norm, only_input)[0]
            q_g = _norm_back(qn_g, q, qm, qr, w.post_norm, only_input)[0]
            hidden_g = torch.cat([p_g, q_g], -1).to(kind)
            after = h_g + after_g[:, t] + hidden_g @ heads
            update_g = (after * (candidate.flatten(1) - h0)).view_as(update)
            candidate_g = after.view_as(update) * update
            into_g = _ops.tanh_backward(candidate_g, candidate)
            gn_g = torch.stack(
                [
                    _ops.sigmoid_backward(into_g * into, reset),
                    into_g * reset,
                    _ops.sigmoid_backward(update_g, update),
                ],
                2,
            ).view_as(g)
            g_g = _norm_back(gn_g, g, gm, gr, w.core_norm, only_input)[0].to(kind)
            un_g = _ops.silu_backward((g_g @ core_in).float(), un)
            u_g = _norm_back(un_g, u, um, ur, w.in_norm, only_input)[0]
            h_g = (after - candidate_g.flatten(1) + _recur_back(g_g, core_rec)) * k
            z_g = (u_g.to(kind) @ stoch_w) * k
            steps.append((u_g, un_g, g_g, gn_g, hidden_g, pn_g, qn_g, p_logits, q_logits))
        back = [torch.stack(x) for x in zip(*reversed(steps), strict=True)]
        u_g, un_g, g_g, gn_g, hidden_g, pn_g, qn_g, p_logits, q_logits = back
        names = zip(*kept, strict=True)
        (
            z0, h0, u, _un, um, ur, s, g, gm, gr, _reset, _into, _update, _candidate, h,
            p, _pn, pm, pr, ps, q, _qn, qm, qr, qs, *_rest,
        ) = (torch.stack(x) for x in names)  # fmt: skip
        weights = (
            _product(u_g.to(kind), z0).float(),
            *_norm_back(un_g, u, um, ur, w.in_norm, only_weights)[1:],
            _product(g_g, s).float(),
            _recur_product(g_g, h0.to(kind), core_rec).float(),
            *_norm_back(gn_g, g, gm, gr, w.core_norm, only_weights)[1:],
            *_head(hidden_g.chunk(2, -1)[0], h.to(kind), pn_g, (p, pm, pr), w.prior_norm, p_logits, ps),
            *_head(hidden_g.chunk(2, -1)[1], h.to(kind), qn_g, (q, qm, qr), w.post_norm, q_logits, qs),
        )
        embed_g = hidden_g.chunk(2, -1)[1].transpose(0, 1).to(embed_kind)
        return None, None, u_g.transpose(0, 1).to(action_kind), embed_g, None, None, None, None, *weights


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

"""Which tokens of a text receive most attention from the text itself: what Memory3 keeps of a reference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Score = Literal["softmax", "unnormalised"]
_EQUAL = 1e-4


def attention_received(
    queries: Tensor, keys: Tensor, scaling: float, score: Score = "softmax", valid: Tensor | None = None
) -> Tensor:
    """Attention that each token receives from all tokens of its text (Memory3, arXiv 2407.01178 section 3.3).

    ``w_j = sum_i softmax_j(q_i . k_j * scaling)``, without causal mask and without positions, summed over the query
    heads that share a KV head (the paper leaves this open). ``score="unnormalised"`` is the shortcut that the authors
    shipped, ``sum_i exp(q_i . k_j * scaling)``, up to a factor that all tokens of a KV head share.

    Args:
        queries: (..., heads, tokens, head_dim), un-rotated.
        keys: (..., kv_heads, tokens, head_dim), un-rotated.
        scaling: factor of the logits.
        score: see above.
        valid: (..., tokens), False for padding, which neither gives nor receives; None: all are valid.

    Returns:
        (..., kv_heads, tokens), float32 or wider; -inf for padding.
    """
    *batch, heads, tokens, dim = queries.shape
    kv_heads = keys.shape[-3]
    wide = torch.promote_types(queries.dtype, torch.float32)
    rows = queries.to(wide).reshape(*batch, kv_heads, heads // kv_heads * tokens, dim)
    logits = (rows @ keys.to(wide).transpose(-1, -2)) * scaling
    if valid is not None:
        giving = valid[..., None, None, :].expand(*batch, kv_heads, heads // kv_heads, tokens).flatten(-2)
        receiving = valid[..., None, None, :]
        logits = logits.masked_fill(~receiving, float("-inf"))
    peak = logits.amax((-1, -2), keepdim=True)
    weights = logits.softmax(-1) if score == "softmax" else (logits - peak).exp()
    if valid is None:
        return weights.sum(-2)
    received = weights.masked_fill(~giving[..., None], 0.0).sum(-2)
    return received.masked_fill(~valid[..., None, :], float("-inf"))


def top_tokens(received: Tensor, keep: int) -> Tensor:
    """Numbers of the ``keep`` tokens (all, if there are fewer) that receive most, ascending: (..., kv_heads, kept).

    Of equals the first ones: before any position is applied, equal tokens receive the same in the first layer, and
    rounding must not decide. Scores that differ by less than one part in 10,000 count as equal.
    """
    tokens = received.shape[-1]
    earlier_first = 1.0 - _EQUAL * torch.arange(tokens, device=received.device) / tokens
    return (received * earlier_first).topk(min(keep, tokens), -1).indices.sort(-1).values

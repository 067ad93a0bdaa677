"""One softmax over segments laid end to end, in one fused kernel that has gradients: attention for training.

The merge by log-sum-exp (softmax.py) never copies the context, but no fused kernel differentiates its log-sum-exp, and
plain attention in its place costs several times as much. Where nobody asks for the segments' shares, the segments can
be copied side by side instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from agentmem.model.softmax import Segment


def can_join(segments: Sequence[Segment]) -> bool:
    """Whether all segments are read by the layer's own query with the same scaling, and none reports masses."""
    return all(
        segment.query is None and segment.temperature == 1.0 and segment.scale == 1.0 and not segment.mass
        for segment in segments
    )


def join(query: Tensor, segments: Sequence[Segment], scaling: float) -> Tensor:
    """Attend with ``query`` (B, heads, Q, head_dim) to all segments -> (B, heads, Q, value_dim)."""
    batch, _, n_queries, _ = query.shape
    keys = torch.cat([segment.keys.expand(batch, -1, -1, -1).to(query.dtype) for segment in segments], 2)
    values = torch.cat([segment.values.expand(batch, -1, -1, -1).to(query.dtype) for segment in segments], 2)
    mask = None
    causal = len(segments) == 1 and segments[0].causal and segments[0].mask is None
    if not causal and any(segment.causal or segment.mask is not None for segment in segments):
        masks = [_mask(segment, n_queries).expand(batch, -1, -1, -1) for segment in segments]
        heads = max(one.shape[1] for one in masks)
        mask = torch.cat([one.expand(-1, heads, n_queries, -1) for one in masks], 3).to(query.dtype)
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=keys.shape[1] < query.shape[1]
    )


def _mask(segment: Segment, n_queries: int) -> Tensor:
    """What is added to the segment's logits: (B or 1, heads or 1, Q or 1, S). Hidden keys get a finite floor."""
    mask, keys = segment.mask, segment.keys
    if mask is None:
        mask = torch.ones(1, 1, n_queries, keys.shape[2], dtype=torch.bool, device=keys.device)
        mask = mask.tril() if segment.causal else mask
    mask = mask.view((1,) * (4 - mask.dim()) + tuple(mask.shape))
    if mask.dtype != torch.bool:
        return mask.expand(-1, -1, -1, keys.shape[2])
    floor = torch.finfo(keys.dtype).min
    added = torch.zeros(mask.shape, dtype=keys.dtype, device=keys.device).masked_fill(~mask, floor)
    return added.expand(-1, -1, -1, keys.shape[2])

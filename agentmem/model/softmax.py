"""One softmax over several segments of keys, by merging each segment's output with its log-sum-exp.

Attention over [memory ; context] is the mean of both segments' outputs, weighted by their softmax denominators. So the
context is never copied to stand next to the memory, and each segment has its own mask, temperature, scale and query.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.model.joined import can_join, join


@dataclass(frozen=True, eq=False, slots=True)
class Segment:
    """Keys that one softmax reads. ``B`` is the batch; a segment of batch 1 is shared by all rows.

    ``keys`` (B or 1, kv_heads, S, head_dim), rotated to where they are read; ``values`` likewise, of value_dim.
    ``mask`` broadcasts to (B, heads, Q, S): bool (True = visible) or a float that is added to the logits.
    ``causal`` hides key ``j`` from query ``i`` when ``j > i`` (only for S == Q, without a mask).
    ``query`` (B, heads, Q, head_dim) stands in for the layer's own query where the keys need another rotation.
    ``temperature`` divides the logits; ``scale`` multiplies the segment's log-sum-exp (APE, arXiv 2502.05431).
    ``mass`` asks for the softmax mass that each key receives (``Mixed.masses``); it needs plain attention. With it,
    each row may have a temperature (B, 1, 1, 1) and a scale (B, 1, 1) of its own.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None = None
    causal: bool = False
    query: Tensor | None = None
    temperature: float | Tensor = 1.0
    scale: float | Tensor = 1.0
    mass: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Mixed:
    """Result of one softmax: ``output`` (B, heads, Q, value_dim) in the query's dtype; the rest is float32 or wider.

    ``parts[i]`` (B, heads, Q) is segment ``i``'s log-sum-exp after its scale; ``total`` (B, heads, Q) is that of all of
    them and the attention sinks. So ``exp(parts[i] - total)`` is the share of the softmax mass that segment ``i`` got.
    ``masses[i]`` (B, heads, S) is what each of its keys got, summed over the queries; None where nobody asked.
    """

    output: Tensor
    parts: tuple[Tensor, ...]
    total: Tensor
    masses: tuple[Tensor | None, ...] = ()


def mix(
    query: Tensor,
    segments: Sequence[Segment],
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    needs_parts: bool = True,
) -> Mixed:
    """Attend with ``query`` (B, heads, Q, head_dim) to all segments under one softmax.

    ``softcap`` bounds every logit by ``cap * tanh(logit / cap)`` (Gemma 2), before the temperature. ``sinks`` (heads,)
    are extra logits that take mass and give nothing (gpt-oss). Without ``needs_parts`` only the output is promised,
    which is faster where gradients are wanted.
    """
    if not needs_parts and softcap is None and sinks is None and torch.is_grad_enabled() and can_join(segments):
        return Mixed(join(query, segments, scaling), (), query.new_zeros(0))
    outputs, parts, within = [], [], []
    for segment in segments:
        q = query if segment.query is None else segment.query
        attend = _weighed if segment.mass else _fused if _can_fuse(q, segment, softcap) else _eager
        output, lse, probabilities = attend(q, segment, scaling, softcap)
        outputs.append(output)
        scaled = isinstance(segment.scale, Tensor) or segment.scale != 1.0
        parts.append(lse * segment.scale if scaled else lse)
        within.append(probabilities if segment.mass else None)
    if len(segments) == 1 and sinks is None:
        return Mixed(outputs[0].to(query.dtype), tuple(parts), parts[0], _masses(within, parts, parts[0]))
    weights = [*parts] if sinks is None else [*parts, sinks.to(parts[0].dtype).view(1, -1, 1).expand_as(parts[0])]
    total = torch.logsumexp(torch.stack(weights), 0)
    mixed = outputs[0].to(total.dtype) * (parts[0] - total).exp()[..., None]
    for output, lse in zip(outputs[1:], parts[1:], strict=True):
        mixed = mixed + output.to(total.dtype) * (lse - total).exp()[..., None]
    return Mixed(mixed.to(query.dtype), tuple(parts), total, _masses(within, parts, total))


def _masses(within: Sequence[Tensor | None], parts: Sequence[Tensor], total: Tensor) -> tuple[Tensor | None, ...]:
    """Probabilities inside a segment -> the mass of each key under the one softmax, summed over the queries."""
    return tuple(
        None if p is None else ((part - total).exp().to(p.dtype)[..., None, :] @ p)[..., 0, :]
        for p, part in zip(within, parts, strict=True)
    )


def repeat_heads(tensor: Tensor, times: int) -> Tensor:
    """(B, kv_heads, S, D) -> (B, kv_heads * times, S, D), each head repeated for the query heads that share it."""
    if times == 1:
        return tensor
    batch, heads, tokens, dim = tensor.shape
    return tensor[:, :, None].expand(batch, heads, times, tokens, dim).reshape(batch, heads * times, tokens, dim)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _weighed(query: Tensor, segment: Segment, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention that keeps its weights, for inference -> (output, log-sum-exp, weights).

    The same as ``_eager`` in half the time: one fused softmax, whose log-sum-exp is read off its largest weight.
    """
    batch, heads, n_queries, dim = query.shape
    kv_heads = segment.keys.shape[1]
    rows = (query * (scaling / segment.temperature)).reshape(batch, kv_heads, -1, dim)
    logits = (rows @ segment.keys.transpose(2, 3)).view(batch, heads, n_queries, -1).to(_wide(query.dtype))
    if softcap is not None:
        logits = torch.tanh(logits.mul_(segment.temperature / softcap)).mul_(softcap / segment.temperature)
    mask = segment.mask
    if segment.causal and mask is None:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        hidden = mask if mask.dtype != torch.bool else _float_mask(mask, logits.dtype)
        # Half the floor: a logit below zero added to the whole of it would be -inf.
        logits += hidden.to(logits.dtype).clamp(min=torch.finfo(logits.dtype).min / 2)
    peak = logits.amax(-1)
    weights = logits.softmax(-1)
    output = weights.to(segment.values.dtype).view(batch, kv_heads, -1, logits.shape[-1]) @ segment.values
    return output.view(batch, heads, n_queries, -1), peak - weights.amax(-1).log(), weights


def _eager(query: Tensor, segment: Segment, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention over one segment: differentiable, any head dims, softcap -> (output, log-sum-exp, weights)."""
    batch, heads, n_queries, dim = query.shape
    group = heads // segment.keys.shape[1]
    # The query heads that share a KV head are rows of one product: the keys need no copy for each of them.
    rows = query.reshape(batch, heads // group, group * n_queries, dim)
    logits = (rows @ segment.keys.transpose(2, 3)).view(batch, heads, n_queries, -1).to(_wide(query.dtype)) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if segment.temperature != 1.0:
        logits = logits / segment.temperature
    mask = segment.mask
    if segment.causal and mask is None:
        mask = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
    if mask is not None:
        # A finite floor, not -inf: a padded row that sees nothing must not become NaN and leak into other rows' values.
        floor = torch.finfo(logits.dtype).min
        logits = logits.masked_fill(~mask, floor) if mask.dtype == torch.bool else (logits + mask).clamp(min=floor)
    # amax and sum, not torch.logsumexp: inductor (CPU, torch 2.13) miscompiles logsumexp + exp over several segments.
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp()
    norm = weights.sum(-1, keepdim=True)
    weights = weights / norm
    packed = weights.to(segment.values.dtype).view(batch, heads // group, group * n_queries, -1) @ segment.values
    return packed.view(batch, heads, n_queries, -1), (peak + norm.log())[..., 0], weights


def _can_fuse(query: Tensor, segment: Segment, softcap: float | None) -> bool:
    """True when a fused kernel computes the same. Fused kernels do not differentiate their log-sum-exp."""
    if softcap is not None or segment.mass or query.shape[-1] != segment.values.shape[-1]:
        return False
    if not query.dtype == segment.keys.dtype == segment.values.dtype:
        return False  # under autocast
    if torch.is_grad_enabled() and (query.requires_grad or segment.keys.requires_grad or segment.values.requires_grad):
        return False
    if query.device.type == "cpu":
        return True
    if query.device.type == "cuda" and query.shape[-1] % 8 == 0 and query.dtype != torch.float64:
        return _cuda_kernel_agrees(query.device.index or 0, query.dtype)
    return False


@functools.cache
def _cuda_kernel_agrees(device: int, dtype: torch.dtype) -> bool:
    """Whether the memory-efficient CUDA kernel gives what plain attention gives, tried once per device and dtype.

    Its log-sum-exp output is not a public API of torch; where it is missing or different, plain attention is used.
    """
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, 2, 5, 16, generator=generator).to(f"cuda:{device}", dtype) for _ in range(3))
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool, device=query.device).tril()
    for segment in (Segment(keys, values), Segment(keys, values, causal=True), Segment(keys, values, mask=mask)):
        try:
            output, lse, _ = _fused(query, segment, 0.25, None)
        except (RuntimeError, TypeError, AttributeError):
            return False
        wanted, wanted_lse, _ = _eager(query, segment, 0.25, None)
        if not (torch.allclose(output, wanted, atol=3e-2) and torch.allclose(lse, wanted_lse, atol=3e-2)):
            return False
    return True


def _fused(query: Tensor, segment: Segment, scaling: float, softcap: float | None) -> tuple[Tensor, Tensor, None]:
    """One fused kernel over one segment -> (output, log-sum-exp, None: it keeps its weights to itself)."""
    batch, heads, n_queries, dim = query.shape
    kv_heads, n_keys = segment.keys.shape[1:3]
    group = heads // kv_heads
    keys, values = segment.keys.expand(batch, -1, -1, -1), segment.values.expand(batch, -1, -1, -1)
    mask = segment.mask
    if mask is not None:
        mask = _float_mask(mask, query.dtype)
    # Decoding: the query heads that share a KV head become rows of one query, and the keys need no copy.
    packed = n_queries == 1 and group > 1 and (mask is None or mask.shape[1] == 1)
    if packed:
        query = query.reshape(batch, kv_heads, group, dim)
    else:
        keys, values = repeat_heads(keys, group), repeat_heads(values, group)
    causal = segment.causal and mask is None and n_queries > 1
    if mask is not None:
        if query.device.type == "cuda" and n_keys % 16:
            # The CUDA kernel wants rows of the bias aligned: lengthen them in memory, then hide what was added.
            mask = torch.nn.functional.pad(mask, (0, 16 - n_keys % 16))[..., :n_keys]
        mask = mask.expand(batch, query.shape[1], query.shape[2], n_keys)
    scale = scaling / segment.temperature
    if query.device.type == "cpu":
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, causal, attn_mask=mask, scale=scale
        )
    else:
        output, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, keys, values, mask, True, 0.0, causal, scale=scale
        )
        lse = lse[..., : query.shape[2]]  # the kernel pads this axis to a multiple of 32
    lse = lse.reshape(batch, heads, n_queries).to(_wide(output.dtype))
    return output.reshape(batch, heads, n_queries, -1), lse, None


def _float_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

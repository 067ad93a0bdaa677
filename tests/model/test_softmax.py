"""One softmax over segments == one softmax over their concatenation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agentmem.model.softmax import Segment, mix


def concatenated(query: Tensor, segments: list[Segment], scaling: float, softcap: float | None, sinks: Tensor | None):
    """Plain float64 softmax over everything, with scale as Z ** scale."""
    weights, values = [], []
    for s in segments:
        group = query.shape[1] // s.keys.shape[1]
        z = query.double() @ s.keys.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        w = (z / s.temperature).exp()
        if s.causal:
            w = w.tril()
        if s.mask is not None:
            w = w * s.mask
        w = w * w.sum(-1, keepdim=True) ** (s.scale - 1)
        weights.append(w)
        values.append(s.values.double().repeat_interleave(group, 1).expand(query.shape[0], -1, -1, -1))
    joined = torch.cat(weights, -1)
    total = joined.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp().view(1, -1, 1, 1)
    return (joined / total) @ torch.cat(values, 2), [w.sum(-1) / total[..., 0] for w in weights]


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 5),
    memory=st.integers(1, 7),
    value_dim=st.sampled_from([8, 4]),
    temperature=st.sampled_from([1.0, 0.7]),
    scale=st.sampled_from([1.0, 0.8]),
    softcap=st.sampled_from([None, 5.0]),
    sunk=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_merged_segments_equal_one_softmax(
    batch, kv_heads, group, queries, memory, value_dim, temperature, scale, softcap, sunk, masked, seed
) -> None:
    g = torch.Generator().manual_seed(seed)
    heads = kv_heads * group

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    mask = torch.rand(batch, 1, queries, memory, generator=g) < 0.7
    mask[..., 0] = True
    segments = [
        Segment(rand(batch, kv_heads, queries, 8), rand(batch, kv_heads, queries, value_dim), causal=True),
        Segment(
            rand(1, kv_heads, memory, 8),
            rand(1, kv_heads, memory, value_dim),
            mask=mask if masked else None,
            temperature=temperature,
            scale=scale,
        ),
    ]
    query, sinks = rand(batch, heads, queries, 8), rand(heads) if sunk else None
    got = mix(query, segments, 0.4, softcap, sinks)
    want, shares = concatenated(query, segments, 0.4, softcap, sinks)
    torch.testing.assert_close(got.output.double(), want, atol=1e-5, rtol=1e-4)
    for part, share in zip(got.parts, shares, strict=True):
        torch.testing.assert_close((part - got.total).exp().double(), share, atol=1e-5, rtol=1e-4)


def test_a_query_of_its_own_per_segment() -> None:
    g = torch.Generator().manual_seed(0)
    query, far = torch.randn(2, 1, 2, 3, 8, generator=g).unbind()
    keys, values = torch.randn(2, 1, 2, 5, 8, generator=g).unbind()
    context = Segment(keys[:, :, :3], values[:, :, :3], causal=True)
    got = mix(query, [context, Segment(keys, values, query=far)], 0.3)
    near_w = (query.double() @ keys[:, :, :3].double().transpose(2, 3) * 0.3).exp().tril()
    far_w = (far.double() @ keys.double().transpose(2, 3) * 0.3).exp()
    total = near_w.sum(-1, keepdim=True) + far_w.sum(-1, keepdim=True)
    want = (near_w @ values[:, :, :3].double() + far_w @ values.double()) / total
    torch.testing.assert_close(got.output.double(), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_that_sees_no_context_is_finite(dtype: torch.dtype) -> None:
    """Left padding: a row without any visible key must not become NaN and spread through the values of later layers."""
    query = torch.randn(1, 2, 3, 8).to(dtype)
    mask = torch.tensor([[False] * 3, [False, True, False], [False, True, True]])[None, None]
    segment = Segment(query, query, mask=mask)
    memory = Segment(query[:, :, :2], query[:, :, :2])
    for segments in ([segment], [segment, memory]):
        assert mix(query, segments, 0.3).output.isfinite().all()
    # With memory beside it, such a row reads memory alone.
    both = mix(query, [segment, memory], 0.3)
    assert (both.parts[0] - both.total).exp()[:, :, 0].max() < 1e-6


def test_it_can_be_trained_through() -> None:
    """The fused kernels do not differentiate their log-sum-exp: with gradients, the plain form must be taken."""
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, h, 3, 4, generator=g, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2, 2, 2)]

    def attend(query: Tensor, k1: Tensor, v1: Tensor, k2: Tensor, v2: Tensor) -> Tensor:
        segments = [Segment(k1, v1, causal=True), Segment(k2, v2, temperature=0.8, scale=0.9)]
        return mix(query, segments, 0.5).output

    assert torch.autograd.gradcheck(attend, inputs)

"""Segments laid end to end give what the merge by log-sum-exp gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agentmem.model.joined import can_join
from agentmem.model.softmax import Segment, mix

B, HEADS, KV_HEADS, Q, M, D = 2, 4, 2, 5, 7, 8


def tensors(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    return [
        draw(B, HEADS, Q, D), draw(B, KV_HEADS, Q, D), draw(B, KV_HEADS, Q, D), draw(B, KV_HEADS, M, D),
        draw(B, KV_HEADS, M, D),
    ]  # fmt: skip


def some_rows(n: int) -> Tensor:
    """Row 0 sees n of the keys, row 1 none."""
    mask = torch.zeros(B, 1, 1, M, dtype=torch.bool)
    mask[0, ..., :n] = True
    return mask


@pytest.mark.parametrize("memory", [None, "whole", "some", "float"])
@pytest.mark.parametrize("context", ["causal", "mask", "floats"])
def test_output_and_gradients_are_those_of_the_merge(memory: str | None, context: str) -> None:
    visible = torch.ones(Q, Q, dtype=torch.bool).tril()
    results = []
    for parts in (True, False):
        q, k, v, mk, mv = inputs = tensors()
        if context == "causal":
            segments = [Segment(k, v, causal=True)]
        elif context == "mask":
            segments = [Segment(k, v, mask=visible[None, None].expand(B, 1, Q, Q))]
        else:
            segments = [Segment(k, v, mask=torch.zeros(1, 1, Q, Q).masked_fill(~visible, -1e9))]
        if memory == "whole":
            segments.append(Segment(mk, mv))
        elif memory == "some":
            segments.append(Segment(mk, mv, mask=some_rows(4)))
        elif memory == "float":
            segments.append(Segment(mk, mv, mask=torch.linspace(-1, 1, M).double().view(1, 1, 1, M)))
        mixed = mix(q, segments, 0.3, needs_parts=parts)
        (mixed.output * torch.arange(D).double().sin()).sum().backward()
        assert bool(mixed.parts) == parts, "without parts it must be the other way that ran"
        results.append([mixed.output.detach(), *[t.grad for t in inputs if t.grad is not None]])
    merged, joined = results
    assert len(merged) == len(joined) == (4 if memory is None else 6)
    for one, other in zip(merged, joined, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)


def test_a_segment_of_batch_1_is_shared_by_all_rows() -> None:
    q, k, v, mk, mv = tensors()
    memory = Segment(mk[:1], mv[:1])
    joined = mix(q, [Segment(k, v, causal=True), memory], 0.3, needs_parts=False)
    merged = mix(q, [Segment(k, v, causal=True), memory], 0.3)
    torch.testing.assert_close(joined.output, merged.output, atol=1e-8, rtol=1e-6)


def test_what_cannot_be_joined_is_merged_all_the_same() -> None:
    q, k, v, mk, mv = tensors()
    for other in ({"temperature": 0.9}, {"scale": 0.9}, {"query": q}, {"mass": True}):
        segments = [Segment(k, v, causal=True), Segment(mk, mv, **other)]  # type: ignore[arg-type]
        assert not can_join(segments)
        assert mix(q, segments, 0.3, needs_parts=False).parts
    context = [Segment(k, v, causal=True)]
    assert mix(q, context, 0.3, softcap=5.0, needs_parts=False).parts
    assert mix(q, context, 0.3, sinks=torch.zeros(HEADS).double(), needs_parts=False).parts
    with torch.no_grad():
        assert mix(q, context, 0.3, needs_parts=False).parts, "without gradients nothing is copied"

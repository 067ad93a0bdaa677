"""Sizes of a stream's blocks in one model: found by running one token through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.model.attention import Call, Hook, attached, probe
from agentmem.model.local import LocalModel
from agentmem.model.softmax import Mixed, Segment
from agentmem.model.stream.plan import StreamPlan


@dataclass(frozen=True)
class Shape:
    """Sizes of a block in one layer."""

    kv_heads: int
    tokens: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    @property
    def head_bytes(self) -> int:
        """Bytes of K and V of one KV head."""
        return self.tokens * (self.key_dim + self.value_dim) * self.dtype.itemsize

    @property
    def layer_bytes(self) -> int:
        """Bytes of all KV heads."""
        return self.kv_heads * self.head_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of the representative key, float32."""
        return self.kv_heads * self.key_dim * 4

    def to_bytes(self, keys: Tensor, values: Tensor) -> bytes:
        """(kv_heads, tokens, key_dim) and (kv_heads, tokens, value_dim) -> the layer's part of a record."""
        flat = torch.cat((keys.flatten(1), values.flatten(1)), 1).to("cpu", self.dtype).contiguous()
        return flat.view(torch.uint8).numpy().tobytes()

    def from_bytes(self, data: bytes | bytearray) -> tuple[Tensor, Tensor]:
        """The part of one KV head -> keys (tokens, key_dim), values (tokens, value_dim)."""
        # torch warns about buffers that cannot be written, though nobody here writes.
        flat = torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data), dtype=self.dtype)
        cut = self.tokens * self.key_dim
        return flat[:cut].view(self.tokens, self.key_dim), flat[cut:].view(self.tokens, self.value_dim)


@dataclass(frozen=True)
class Layout:
    """Per layer its block's shape, and whether it reads what is beyond the window.

    A layer with a sliding window of its own that is shorter than the stream's reads nothing beyond it.
    """

    shapes: tuple[Shape, ...]
    far: tuple[bool, ...]

    @property
    def kept(self) -> dict[int, Shape]:
        """The layers whose blocks are kept."""
        return {number: shape for number, shape in enumerate(self.shapes) if self.far[number]}

    @property
    def record_bytes(self) -> int:
        """Bytes of one block: ``[layer][KV head][K | V][token][dim]``."""
        return sum(shape.layer_bytes for shape in self.kept.values())

    @property
    def index_bytes(self) -> int:
        """Bytes of one block's representative keys: ``[layer][KV head][dim]``, float32."""
        return sum(shape.index_bytes for shape in self.kept.values())


class _Sizes(Hook):
    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}

    def mixed(self, call: Call, segments: Sequence[Segment], result: Mixed) -> None:
        self.calls[call.layer] = call


def check_plan(model: LocalModel, plan: StreamPlan) -> Layout:
    """The layout of ``model``'s blocks under ``plan``.

    Raises:
        InvalidInput: the plan needs positions that the model was not trained on, or none of its layers could read a
            block.
    """
    if plan.positions is not None and plan.positions > model.max_positions:
        raise InvalidInput(
            f"n_local ({plan.n_local}) and step ({plan.step}) need {plan.positions} positions, and the model was "
            f"trained on {model.max_positions}; lower them"
        )
    sizes = _Sizes()
    with model.capturing(), attached(model.model, sizes), torch.no_grad():
        probe(model.model, 0)
    shapes, far = [], []
    calls = [call for _, call in sorted(sizes.calls.items())]
    for call in calls:
        _, heads, _, key_dim = call.keys.shape
        shapes.append(Shape(heads, plan.block_size, key_dim, call.values.shape[-1], call.keys.dtype))
        far.append(plan.n_local is not None and (call.window is None or call.window >= plan.n_local))
    if plan.keeps_blocks and not any(far):
        widest = max(call.window or 0 for call in calls)
        raise InvalidInput(
            f"every layer of {model.config.model_type!r} has a sliding window of its own, of at most {widest} tokens, "
            f"so none could read blocks beyond n_local ({plan.n_local}); lower it to {widest} or less"
        )
    return Layout(tuple(shapes), tuple(far))

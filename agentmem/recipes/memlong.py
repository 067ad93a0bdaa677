"""``memlong``: the keys and values of one layer, read by layers above it. Made for a model that was tuned to read them.

MemLong (arXiv 2408.16967): chunks of 128 tokens pass alone through the frozen lower layers, and the keys and values of
one of these, the memory layer, are kept. Retrieved chunks are read by a few layers from there on, in one softmax with
the context. ``agentmem train memlong`` tunes a model for it. Where paper and published code differ, see the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from agentmem.errors import InvalidInput
from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.records import Memory

CHUNK_TOKENS = 128
"""Tokens of a chunk."""
CONFIG_KEY = "agentmem_memlong"
"""Entry of a tuned model's config that says what it was tuned with."""
_READERS = 4
"""Layers that read memory, by default: 13, 17, 21 and 25 of 26 in the paper."""


Positions = Literal["zero", "contiguous"]


@dataclass(frozen=True)
class Layout:
    """Which layer of one model is stored, which read it, and where."""

    memory_layer: int
    retrieval_layers: tuple[int, ...]
    positions: Positions


@dataclass(frozen=True)
class MemLong:
    """One layer's KV per chunk, encoded alone after the fixed prefix; read by the retrieval layers at one distance.

    None stands for what the model was tuned with, or else for the paper's choice: ``memory_layer`` in the middle (13 of
    26), four ``retrieval_layers`` from there on, evenly spaced (13, 17, 21, 25), and ``positions`` "zero".

    With "zero" all memory is at one position, just before the context. The paper has memory at 0
    and the context from 1 on; here the context starts at 0, so memory is at -1: rotary attention sees distances only,
    and they are the same. With "contiguous" the chunks lie end to end, in the order in which they are given (oldest
    first), and end where the context begins: at -M .. -1, as the paper's second mode has them at 0 .. M-1. The
    published code rotates the keys, which all retrieval layers share, in place: the second such layer sees twice the
    positions, the third three times, which is what looked like a collapse of this mode. Here every layer rotates the
    stored keys, which have no position, into tensors of its own.

    Grouped-query attention works: KV heads are stored, and shared by their queries when read.

    Raises:
        InvalidInput: a value out of range. ``check`` says whether a model can serve it.
    """

    memory_layer: int | None = None
    retrieval_layers: tuple[int, ...] | None = None
    positions: Positions | None = None
    top_k: int = 8
    stride: int = CHUNK_TOKENS
    prompt_stride: int | None = CHUNK_TOKENS

    name = "memlong"

    def __post_init__(self) -> None:
        if self.positions not in (None, "zero", "contiguous"):
            raise InvalidInput(f"positions must be 'zero' or 'contiguous', not {self.positions!r}")
        if self.top_k < 1 or self.stride < 1:
            raise InvalidInput(f"top_k ({self.top_k}) and stride ({self.stride}) must be 1 or more")
        if self.memory_layer is not None and self.memory_layer < 0:
            raise InvalidInput(f"memory_layer is {self.memory_layer}; layers count from 0")
        if self.retrieval_layers is not None and not self.retrieval_layers:
            raise InvalidInput("retrieval_layers is empty: no layer would read memory; leave it out for the default")

    @property
    def identity(self) -> str:
        """The stored layer is all that changes what is written."""
        return f"memlong/1/{'default' if self.memory_layer is None else self.memory_layer}"

    def layout(self, model: LocalModel) -> Layout:
        """What is stored and read in this model.

        Raises:
            InvalidInput: these layers do not exist, or one would read what is only computed above it.
        """
        n = model.n_layers
        tuned: dict[str, Any] = getattr(model.model.config, CONFIG_KEY, None) or {}
        memory = tuned.get("memory_layer", n // 2) if self.memory_layer is None else self.memory_layer
        if n < 2:
            raise InvalidInput(f"memlong needs frozen layers and layers above them; this model has {n}")
        if memory >= n:
            raise InvalidInput(f"memory_layer is {memory}, but the model's layers are 0 to {n - 1}")
        retrieval = self.retrieval_layers
        if retrieval is None and memory == tuned.get("memory_layer"):
            retrieval = tuple(tuned["retrieval_layers"])
        if retrieval is None:
            retrieval = tuple(range(memory, n, -((memory - n) // _READERS)))
        if list(retrieval) != sorted(set(retrieval)) or retrieval[-1] >= n:
            raise InvalidInput(
                f"retrieval_layers {list(retrieval)} must be ascending numbers of the model's {n} layers"
            )
        if retrieval[0] < memory:
            raise InvalidInput(
                f"retrieval layer {retrieval[0]} lies below the memory layer {memory}: chunks are written without "
                "memory up to that layer, so the context must be read without it there too"
            )
        return Layout(memory, retrieval, self.positions or tuned.get("positions", "zero"))

    def check(self, model: LocalModel) -> None:
        """Refuse a model without these layers, whose layers differ in shape, or whose positions do not suffice.

        Raises:
            InvalidInput: the reason.
        """
        layout = self.layout(model)
        one = model.encode([0])
        shapes = {number: (one.keys[number].shape, one.values[number].shape) for number in layout.retrieval_layers}
        stored = (one.keys[layout.memory_layer].shape, one.values[layout.memory_layer].shape)
        if other := [number for number, shape in shapes.items() if shape != stored]:
            raise InvalidInput(
                f"layers {other} have other KV heads or head dims than the memory layer {layout.memory_layer}, whose "
                "keys they would read; choose retrieval_layers of its kind"
            )
        if layout.positions == "contiguous" and self.top_k * CHUNK_TOKENS >= model.max_positions:
            raise InvalidInput(
                f"positions='contiguous' puts {self.top_k} chunks of {CHUNK_TOKENS} tokens before the context, but the "
                f"model has {model.max_positions} positions; lower top_k or use positions='zero'"
            )

    def encode(self, model: LocalModel, memories: Sequence[Memory]) -> list[KV]:
        """KV of the memory layer of each text after the fixed prefix, whose own KV is dropped (no false sinks)."""
        ids = [model.chat.encode(memory.text) for memory in memories]
        return model.encode_batch(ids, model.chat.prefix_ids, (self.layout(model).memory_layer,))

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        """All at -1, or end to end before the context in the order given; read by the retrieval layers."""
        layout = self.layout(model)
        if layout.positions == "zero":
            return model.place(kvs, [-1] * len(kvs), read_by=layout.retrieval_layers, spaced=False)
        ends = torch.tensor([kv.n_tokens for kv in kvs]).cumsum(0)
        starts = [int(end - ends[-1]) - kv.n_tokens for end, kv in zip(ends, kvs, strict=True)]
        return model.place(kvs, starts, read_by=layout.retrieval_layers)

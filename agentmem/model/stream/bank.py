"""Where a stream's blocks are: a few in the hot cache, more in RAM, all of them in ``Blocks``.

A block is one record of bytes, ``[layer][KV head][K | V][token][dim]``, so that one KV head of one layer is one read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from agentmem.model.stream.layout import Shape


class Blocks(Protocol):
    """Where the records are kept. Append-only; what is written never changes."""

    def append(self, record: bytes, index: bytes) -> None:
        """Keep one more record, and its index entry."""

    def read(self, number: int, offset: int, length: int) -> bytes | bytearray:
        """A slice of record ``number``."""


class BlocksInRam:
    """Records in RAM, for a stream that need not outlive the process."""

    def __init__(self) -> None:
        self._records: list[bytes] = []

    def append(self, record: bytes, index: bytes) -> None:
        """Keep one more record. The index entries are the bank's own affair here."""
        self._records.append(record)

    def read(self, number: int, offset: int, length: int) -> bytes:
        """A slice of record ``number``."""
        return self._records[number][offset : offset + length]


class _Slots:
    """The hot cache of one KV head of one layer: ``size`` blocks on the model's device, scored by use."""

    def __init__(self, shape: Shape, size: int, device: torch.device, decay: float | None) -> None:
        self.keys = torch.zeros(size, shape.tokens, shape.key_dim, dtype=shape.dtype, device=device)
        self.values = torch.zeros(size, shape.tokens, shape.value_dim, dtype=shape.dtype, device=device)
        self.slot_of: dict[int, int] = {}
        self.scores: dict[int, float] = {}
        self._decay = decay
        self._clock = 0

    def room(self, needed: set[int]) -> int:
        """A slot for a new block: a free one, or that of the lowest score among those that are not needed now."""
        if len(self.slot_of) < len(self.keys):
            return len(self.slot_of)
        # Equal scores: the oldest block goes. dict order would depend on history that a restart forgets.
        loser = min((b for b in self.slot_of if b not in needed), key=lambda b: (self.scores[b], b))
        del self.scores[loser]
        return self.slot_of.pop(loser)

    def put(self, block: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Fill a slot."""
        self.keys[slot].copy_(keys)
        self.values[slot].copy_(values)
        self.slot_of[block] = slot
        self.scores[block] = 0.0

    def used(self, blocks: Sequence[int], masses: Sequence[float] | None) -> None:
        """Score one step: s = d * s + attention mass (InfLLM appendix A), or the time of use."""
        self._clock += 1
        if self._decay is None or masses is None:
            self.scores.update((block, float(self._clock)) for block in blocks)
            return
        for block in self.scores:
            self.scores[block] *= self._decay
        for block, mass in zip(blocks, masses, strict=True):
            self.scores[block] += mass


class Bank:
    """Blocks of one stream: hot cache per layer and KV head, then RAM (bounded), then ``Blocks``.

    Args:
        shapes: per layer that retrieves, its block's shape.
        blocks: where records are kept.
        cached_blocks: slots of the hot cache per layer and KV head.
        decay: factor of the decayed score; None for least recently used.
        ram_bytes: bound of the second tier; 0 turns it off.
        device: where the hot cache is.
    """

    def __init__(
        self,
        shapes: dict[int, Shape],
        blocks: Blocks,
        *,
        cached_blocks: int,
        decay: float | None,
        ram_bytes: int,
        device: torch.device,
    ) -> None:
        self.shapes, self._blocks, self._ram_bytes = shapes, blocks, ram_bytes
        self._slots = {
            (layer, head): _Slots(shape, cached_blocks, device, decay)
            for layer, shape in shapes.items()
            for head in range(shape.kv_heads)
        }
        self._offsets, offset = {}, 0
        for layer, shape in shapes.items():
            self._offsets[layer] = offset
            offset += shape.layer_bytes
        self.record_bytes = offset
        self._ram: OrderedDict[tuple[int, int, int], bytes | bytearray] = OrderedDict()
        self.ram_used = 0
        self.loads = {"hot": 0, "ram": 0, "blocks": 0}
        """How often a block of one layer and KV head was found in each tier."""

    def append(self, layers: dict[int, tuple[Tensor, Tensor]], index: bytes) -> None:
        """Keep a block: per layer un-rotated keys (kv_heads, tokens, key_dim) and values, and its index entry."""
        self._blocks.append(b"".join(shape.to_bytes(*layers[n]) for n, shape in self.shapes.items()), index)

    def gather(self, layer: int, numbers: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Blocks ``numbers[head]`` of a layer: keys (kv_heads, blocks * tokens, key_dim) and values, on the device."""
        keys, values = [], []
        for head, wanted in enumerate(numbers):
            slots = self._slots[layer, head]
            needed = set(wanted)
            for number in wanted:
                if number in slots.slot_of:
                    self.loads["hot"] += 1
                else:
                    slots.put(number, slots.room(needed), *self._load(layer, head, number))
            where = torch.tensor([slots.slot_of[number] for number in wanted], device=slots.keys.device)
            keys.append(slots.keys.index_select(0, where).flatten(0, 1))
            values.append(slots.values.index_select(0, where).flatten(0, 1))
        return torch.stack(keys), torch.stack(values)

    def used(self, layer: int, numbers: Sequence[Sequence[int]], masses: Tensor | None) -> None:
        """Score a step's blocks; ``masses`` (kv_heads, blocks) is the attention mass that each received."""
        for head, wanted in enumerate(numbers):
            self._slots[layer, head].used(wanted, None if masses is None else masses[head].tolist())

    def _load(self, layer: int, head: int, number: int) -> tuple[Tensor, Tensor]:
        shape, key = self.shapes[layer], (layer, head, number)
        if (data := self._ram.get(key)) is not None:
            self._ram.move_to_end(key)
            self.loads["ram"] += 1
            return shape.from_bytes(data)
        self.loads["blocks"] += 1
        data = self._blocks.read(number, self._offsets[layer] + head * shape.head_bytes, shape.head_bytes)
        if len(data) <= self._ram_bytes:
            self._ram[key] = data
            self.ram_used += len(data)
            while self.ram_used > self._ram_bytes:
                self.ram_used -= len(self._ram.popitem(last=False)[1])
        return shape.from_bytes(data)

"""KV on its way from bytes to attention: the first layers at once, the others while the prompt goes through these.

The bytes of every memory were read and checked before; what is left is to decode them, to move them to the model's
device and to place them, which takes longer than reading does where they are quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor

from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.packing import Packed
from agentmem.recipes import Recipe

BLOCKS = 4
"""Runs of layers that are decoded one after another. More would hide more, and cost small models more."""


LEAST_BYTES = 4 * 2**20
"""Packed bytes below which all layers come at once: handing them over would cost more than it hides."""


class Arriving(Sequence["Tensor | None"]):
    """The keys, or the values, of every layer. Asking for a layer waits until it is there."""

    def __init__(self, blocks: Sequence[Future[Placed]], layers: Sequence[int], side: Callable[[Placed], Side]):
        self._blocks, self._layers, self._side = blocks, layers, side

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, at: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Tensor | None]: ...
    def __getitem__(self, at: int | slice) -> Tensor | Sequence[Tensor | None] | None:
        if isinstance(at, slice):
            return [self[layer] for layer in range(*at.indices(len(self)))]
        return self._side(self._blocks[self._layers[at]].result())[at]


Side = Sequence[Tensor | None]


class Prefetcher:
    """One thread that decodes and places later layers while the model computes earlier ones."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "agentmem-prefetch", initializer=_compute_alone)
        usual = torch.get_num_threads()
        self._thread.submit(int).result()
        torch.set_num_threads(usual)  # of all threads to come, which that changed as well

    def place(
        self,
        recipe: Recipe,
        model: LocalModel,
        sources: Sequence[KV | Packed],
        arrived: Callable[[int, KV], None] = lambda at, kv: None,
    ) -> Placed:
        """What ``recipe.place`` makes of these memories; layers of it may still be on their way.

        ``arrived`` is called with the index and the KV of each memory that was packed, when all of it is decoded.
        """
        numbers = sources[0].layers
        runs = _runs(len(numbers)) if _can_arrive(sources) else [(0, len(numbers))]
        parts: list[list[KV]] = []

        def block(run: tuple[int, int]) -> Placed:
            with torch.no_grad():
                parts.append([_part(source, run, model) for source in sources])
                placed = recipe.place(model, parts[-1])
                if len(parts) == len(runs):
                    for at, source in enumerate(sources):
                        if not isinstance(source, KV):
                            arrived(at, _whole([part[at] for part in parts], numbers))
                return placed

        first: Future[Placed] = Future()
        first.set_result(block(runs[0]))
        if len(runs) == 1:
            return first.result()
        blocks = [first, *(self._thread.submit(block, run) for run in runs[1:])]
        of = [0] * model.n_layers
        for number, (start, stop) in enumerate(runs):
            for layer in numbers[start:stop]:
                of[layer] = number
        return replace(
            first.result(),
            keys=Arriving(blocks, of, lambda placed: placed.keys),
            values=Arriving(blocks, of, lambda placed: placed.values),
        )

    def close(self) -> None:
        """Wait for what is on its way."""
        self._thread.shutdown()


def _compute_alone() -> None:
    """No helpers for this thread's tensor operations: those of the model would wait at barriers for their cores."""
    torch.get_num_threads()  # sets up what the next line changes, and would change it back later
    torch.set_num_threads(1)


def _can_arrive(sources: Sequence[KV | Packed]) -> bool:
    """Whether there is much to decode, layer by layer. KV of picked tokens is small, and placed as a whole."""
    return sum(one.nbytes for one in sources if not isinstance(one, KV)) >= LEAST_BYTES and all(
        one.offsets is None and len(one.layers) >= BLOCKS for one in sources
    )


def _runs(layers: int) -> list[tuple[int, int]]:
    edges = [layers * number // BLOCKS for number in range(BLOCKS + 1)]
    return list(pairwise(edges))


def _part(source: KV | Packed, run: tuple[int, int], model: LocalModel) -> KV:
    kv = source.only(source.layers[slice(*run)]) if isinstance(source, KV) else source.read(*run)
    return kv.to(model.device, model.dtype)


def _whole(parts: Sequence[KV], layers: Sequence[int]) -> KV:
    """Runs of layers as one block (the same tensors)."""
    if len(parts) == 1:
        return parts[0]
    return KV(
        tuple(key for part in parts for key in part.keys),
        tuple(value for part in parts for value in part.values),
        tuple(layers),
    )

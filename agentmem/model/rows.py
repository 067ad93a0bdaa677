"""A batch whose rows read different memories: for training and for measuring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.model.attention import Call, Hook, Placed
from agentmem.model.softmax import Segment


class RowsReader(Hook):
    """Lets every row of a batch read a memory of its own, or none. Queries get gradients, the memory has none.

    Raises:
        InvalidInput: memories placed for windows, or with different temperatures or scales.
    """

    needs_parts = False

    def __init__(self, rows: Sequence[Placed | None]) -> None:
        self._layers: dict[int, Segment] = {}
        placed = [row for row in rows if row is not None]
        if not placed:
            return
        if len({(row.temperature, row.scale, row.windowed) for row in placed}) > 1 or placed[0].windowed:
            raise InvalidInput("the rows of a batch need one temperature and scale, and windowed=False")
        for layer, some in enumerate(placed[0].keys):
            if some is not None:
                keys, mask = _stacked([None if row is None else row.keys[layer] for row in rows])
                values, _ = _stacked([None if row is None else row.values[layer] for row in rows])
                self._layers[layer] = Segment(
                    keys, values, mask=mask, temperature=placed[0].temperature, scale=placed[0].scale
                )

    def segments(self, call: Call) -> Sequence[Segment]:
        """Each row's memory in this layer."""
        return (self._layers[call.layer],) if call.layer in self._layers else ()


def _stacked(rows: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """(heads, tokens, dim) of each row -> (rows, heads, most, dim), zeros elsewhere; and a mask of it."""
    some = next(row for row in rows if row is not None)
    most = max(row.shape[1] for row in rows if row is not None)
    out = some.new_zeros(len(rows), some.shape[0], most, some.shape[2])
    mask = torch.zeros(len(rows), 1, 1, most, dtype=torch.bool, device=some.device)
    for at, row in enumerate(rows):
        if row is not None:
            out[at, :, : row.shape[1]] = row
            mask[at, ..., : row.shape[1]] = True
    return out, mask

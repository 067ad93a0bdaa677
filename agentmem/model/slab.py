"""Keys and values of several rows in one tensor: what a batched decode step attends to."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 64
"""Tokens that a slab has room for at first."""


class Slab:
    """Room for the KV of several rows of one layer, of different lengths; it grows by doubling.

    ``keys`` (rows, kv_heads, tokens, head_dim) and ``values`` likewise, of value_dim. What a row does not use is hidden
    by a mask, but it must be finite: a weight of zero times NaN is NaN. So it is zero.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Empty, for KV like this one: (kv_heads, tokens, dim)."""
        self.keys = keys.new_zeros(0, keys.shape[0], _LEAST, keys.shape[2])
        self.values = values.new_zeros(0, values.shape[0], _LEAST, values.shape[2])

    def put(self, row: int, start: int, keys: Tensor, values: Tensor) -> None:
        """A row anew: KV (kv_heads, tokens, dim) at ``start``, zeros everywhere else."""
        end = start + keys.shape[1]
        self.reserve(row + 1, end)
        for slab, new in ((self.keys, keys), (self.values, values)):
            slab[row].zero_()
            slab[row, :, start:end] = new

    def clear(self, row: int) -> None:
        """A row without anything."""
        self.reserve(row + 1, 0)
        self.keys[row].zero_()
        self.values[row].zero_()

    def append(self, lengths: Tensor, keys: Tensor, values: Tensor) -> None:
        """One token (rows, kv_heads, 1, dim) behind each row's ``lengths`` (rows,). Room for it was reserved."""
        rows = torch.arange(len(lengths), device=lengths.device)
        self.keys[rows, :, lengths] = keys[:, :, 0]
        self.values[rows, :, lengths] = values[:, :, 0]

    def move(self, source: int, target: int) -> None:
        """Copy a row into another one's place."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room."""
        have_rows, _, have_tokens, _ = self.keys.shape
        if rows <= have_rows and tokens <= have_tokens:
            return
        rows = have_rows if rows <= have_rows else max(rows, 2 * have_rows)
        while have_tokens < tokens:
            have_tokens *= 2
        self.keys, self.values = (_grown(old, rows, have_tokens) for old in (self.keys, self.values))


def _grown(old: Tensor, rows: int, tokens: int) -> Tensor:
    new = old.new_zeros(rows, old.shape[1], tokens, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new

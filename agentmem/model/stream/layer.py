"""What one layer of a stream remembers: sinks, the window's tokens, and a representative key per block."""

from __future__ import annotations

import torch
from torch import Tensor

from agentmem.model.stream.layout import Shape


class LayerState:
    """One layer. Tokens are counted from the window's first one; ``Stream`` knows where in the stream that is.

    ``raw`` and ``values`` (kv_heads, capacity, dim) hold the window's un-rotated keys and values, ``rotated`` the keys
    at their places; ``mass`` (kv_heads, capacity), float32, what each token received so far; ``sink_keys`` un-rotated
    and ``sink_values`` (kv_heads, n_init, dim); ``representatives`` (kv_heads, capacity, dim), float32.
    ``far`` is False for a layer with a window of its own, which sees nothing beyond it.
    """

    def __init__(self, shape: Shape, n_init: int, capacity: int, far: bool, device: torch.device) -> None:
        def empty(tokens: int, dim: int) -> Tensor:
            return torch.zeros(shape.kv_heads, tokens, dim, dtype=shape.dtype, device=device)

        self.far = far
        self.raw, self.rotated = empty(capacity, shape.key_dim), empty(capacity, shape.key_dim)
        self.values = empty(capacity, shape.value_dim)
        self.mass = torch.zeros(shape.kv_heads, capacity, dtype=torch.float32, device=device)
        self.sink_keys, self.sink_values = empty(n_init, shape.key_dim), empty(n_init, shape.value_dim)
        self.representatives = torch.zeros(
            shape.kv_heads, 64 if far else 0, shape.key_dim, dtype=torch.float32, device=device
        )

    @property
    def kv_heads(self) -> int:
        """Number of KV heads."""
        return self.raw.shape[0]

    def write(self, at: int, raw: Tensor, rotated: Tensor, values: Tensor) -> None:
        """Put new tokens (kv_heads, n, dim) at place ``at`` of the window; it grows when it must."""
        end = at + raw.shape[1]
        if end > self.raw.shape[1]:
            more = max(end, 2 * self.raw.shape[1]) - self.raw.shape[1]
            for name in ("raw", "rotated", "values", "mass"):
                old = getattr(self, name)
                setattr(self, name, torch.cat((old, old.new_zeros(old.shape[0], more, *old.shape[2:])), 1))
        self.raw[:, at:end] = raw
        self.rotated[:, at:end] = rotated
        self.values[:, at:end] = values
        self.mass[:, at:end] = 0.0

    def block(self, start: int, size: int, n_repr: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values (kv_heads, size, dim) of the window's tokens from ``start``, and their representative key.

        The representative (kv_heads, dim), float32, is the mean un-rotated key of the ``n_repr`` tokens that received
        most (InfLLM section 3.2).
        """
        keys, values = self.raw[:, start : start + size], self.values[:, start : start + size]
        top = self.mass[:, start : start + size].topk(n_repr, -1).indices
        chosen = keys.gather(1, top[..., None].expand(-1, -1, keys.shape[-1]))
        return keys, values, chosen.float().mean(1)

    def add_representative(self, number: int, key: Tensor) -> None:
        """Keep block ``number``'s representative key (kv_heads, dim)."""
        if number >= self.representatives.shape[1]:
            self.representatives = torch.cat((self.representatives, torch.zeros_like(self.representatives)), 1)
        self.representatives[:, number] = key

    def set_representatives(self, entries: Tensor) -> None:
        """Take all blocks' representative keys (blocks, kv_heads * dim), float32."""
        n, room = entries.shape[0], max(64, self.representatives.shape[1])
        while room < n:
            room *= 2
        heads, _, dim = self.representatives.shape
        self.representatives = self.representatives.new_zeros(heads, room, dim)
        self.representatives[:, :n] = entries.view(n, heads, dim).transpose(0, 1)

    def shift(self, dropped: int, n: int) -> None:
        """Drop the window's first ``dropped`` tokens; ``n`` stay."""
        for tensor in (self.raw, self.rotated, self.values, self.mass):
            tensor[:, :n] = tensor[:, dropped : dropped + n].clone()

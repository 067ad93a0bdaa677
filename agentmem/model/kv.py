"""KV: an immutable block of attention keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from agentmem.errors import InvalidInput


@dataclass(frozen=True, eq=False)
class KV:
    """Attention keys and values of a run of tokens, one pair of tensors per layer.

    ``keys[i]`` is ``(kv_heads, tokens, head_dim)`` and carries no position: no rotary embedding, and the factor that
    some rotary tables multiply in (``attention_scaling``) is divided out. ``values[i]`` is
    ``(kv_heads, tokens, value_dim)``. Heads and dims may differ between layers; the number of tokens may not.

    ``layers[i]`` is the layer of the model that entry ``i`` belongs to; empty means every layer, in order.
    ``offsets[i]`` is ``(kv_heads, tokens)``, int64: the place of each token within the chunk that it was kept from,
    per head. None means 0, 1, 2, ... in every head, which is the case unless tokens were picked out.

    The tensors are shared, never copied, and must not be written to; ``intact`` tells whether someone did.

    Raises:
        InvalidInput: shapes do not fit together.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    layers: tuple[int, ...] = ()
    offsets: tuple[Tensor, ...] | None = None
    _versions: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.keys or len(self.keys) != len(self.values):
            raise InvalidInput(
                f"KV needs as many keys as values and at least one, got {len(self.keys)} and {len(self.values)}"
            )
        if not self.layers:
            object.__setattr__(self, "layers", tuple(range(len(self.keys))))
        if len(self.layers) != len(self.keys) or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InvalidInput(f"KV has {len(self.keys)} layers of tensors, which do not match layers={self.layers}")
        tokens = self.keys[0].shape[1] if self.keys[0].dim() == 3 else -1
        for layer, key, value in zip(self.layers, self.keys, self.values, strict=True):
            if key.dim() != 3 or value.dim() != 3 or key.shape[:2] != value.shape[:2] or key.shape[1] != tokens:
                raise InvalidInput(
                    f"KV of layer {layer} must be (kv_heads, {tokens}, head_dim) for keys and values alike, "
                    f"got {tuple(key.shape)} and {tuple(value.shape)}"
                )
        if self.offsets is not None:
            shapes = [tuple(offset.shape) for offset in self.offsets]
            if shapes != [tuple(key.shape[:2]) for key in self.keys]:
                raise InvalidInput(f"KV offsets must be (kv_heads, {tokens}) per layer, got {shapes}")
        if any(tensor.is_inference() for tensor in self._tensors()):
            raise InvalidInput(
                "KV needs tensors made under torch.no_grad, not torch.inference_mode: these are not tracked"
            )
        object.__setattr__(self, "_versions", tuple(tensor._version for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return (*self.keys, *self.values, *(self.offsets or ()))

    @property
    def n_layers(self) -> int:
        """Number of layers that have keys and values here."""
        return len(self.keys)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.keys[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the keys."""
        return self.keys[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the keys."""
        return self.keys[0].device

    @property
    def intact(self) -> bool:
        """False when a tensor was written to in place since this block was made."""
        return self._versions == tuple(tensor._version for tensor in self._tensors())

    def slice(self, start: int, stop: int) -> KV:
        """Tokens ``start .. stop - 1`` as a block of its own, whose tokens count from 0 again (views, no copy).

        Raises:
            InvalidInput: the range is empty or not within the block.
        """
        if not 0 <= start < stop <= self.n_tokens:
            raise InvalidInput(f"slice {start}:{stop} is not within a KV of {self.n_tokens} tokens")
        if self.offsets is not None:
            raise InvalidInput("a KV of picked tokens cannot be sliced: each head kept other tokens")
        return replace(
            self,
            keys=tuple(key[:, start:stop] for key in self.keys),
            values=tuple(value[:, start:stop] for value in self.values),
        )

    def select(self, indices: Sequence[int]) -> KV:
        """Some tokens, which keep their places within the chunk (``offsets``); the same ones in every head and layer.

        Raises:
            InvalidInput: no index, or one outside the block.
        """
        if not indices or min(indices) < 0 or max(indices) >= self.n_tokens:
            raise InvalidInput(f"token indices {list(indices)} do not pick from a KV of {self.n_tokens} tokens")
        return self.pick([torch.tensor(indices).expand(key.shape[0], -1) for key in self.keys])

    def pick(self, indices: Sequence[Tensor]) -> KV:
        """Other tokens in each layer and head: ``indices[i]`` is ``(kv_heads, kept)``, int64, into this block's tokens.

        Raises:
            InvalidInput: not one index tensor per layer with one row per head.
        """
        if [index.shape[0] for index in indices] != [key.shape[0] for key in self.keys]:
            raise InvalidInput(f"pick needs {self.n_layers} index tensors of (kv_heads, kept)")
        indices = [index.to(self.device, torch.int64) for index in indices]
        offsets = indices
        if self.offsets is not None:
            offsets = [old.gather(1, index) for old, index in zip(self.offsets, indices, strict=True)]
        return replace(
            self,
            keys=tuple(_gather(key, index) for key, index in zip(self.keys, indices, strict=True)),
            values=tuple(_gather(value, index) for value, index in zip(self.values, indices, strict=True)),
            offsets=tuple(offset.contiguous() for offset in offsets),
        )

    def only(self, layers: Sequence[int]) -> KV:
        """The same tokens in some of the layers (ascending numbers of model layers; views, no copy).

        Raises:
            InvalidInput: a layer that is not here.
        """
        if not layers or not set(layers) <= set(self.layers):
            raise InvalidInput(f"layers {list(layers)} are not all in this KV, which has {list(self.layers)}")
        at = [self.layers.index(layer) for layer in layers]
        return KV(
            tuple(self.keys[i] for i in at),
            tuple(self.values[i] for i in at),
            tuple(layers),
            None if self.offsets is None else tuple(self.offsets[i] for i in at),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> KV:
        """This block on another device or in another data type; itself when nothing changes."""
        target = torch.device(device) if device is not None else self.device
        kind = dtype or self.dtype
        if target == self.device and kind == self.dtype:
            return self
        return replace(
            self,
            keys=tuple(key.to(target, kind) for key in self.keys),
            values=tuple(value.to(target, kind) for value in self.values),
            offsets=None if self.offsets is None else tuple(offset.to(target) for offset in self.offsets),
        )

    @classmethod
    def join(cls, kvs: Sequence[KV]) -> KV:
        """Blocks end to end along the tokens, as one block (a copy).

        Raises:
            InvalidInput: nothing to join, different layers, or a block of picked tokens (place those one by one).
        """
        if not kvs:
            raise InvalidInput("nothing to join: give at least one KV")
        if any(kv.layers != kvs[0].layers for kv in kvs):
            raise InvalidInput(f"cannot join KVs of different layers: {sorted({kv.layers for kv in kvs})}")
        if any(kv.offsets is not None for kv in kvs):
            raise InvalidInput("a KV of picked tokens cannot be joined: place each one on its own")
        columns = range(kvs[0].n_layers)
        return cls(
            tuple(torch.cat([kv.keys[i] for kv in kvs], 1) for i in columns),
            tuple(torch.cat([kv.values[i] for kv in kvs], 1) for i in columns),
            kvs[0].layers,
        )


def _gather(tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of ``tensor`` (heads, tokens, dim) at ``index`` (heads, kept)."""
    return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[2]))

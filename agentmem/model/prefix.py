"""The beginning of a prompt that was read before: its KV need not be computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from agentmem.model.attention import attention_layers


@dataclass(frozen=True)
class Prefix:
    """Tokens at positions 0 .. n - 1 that read no memory, and their KV: per layer (1, kv_heads, n, head_dim).

    A pure function of the weights and the tokens, whoever reads it. The tensors are not changed.
    """

    ids: tuple[int, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, ids: Sequence[int], cache: DynamicCache, model: PreTrainedModel) -> Prefix | None:
        """The first ``len(ids)`` tokens of a context; None where its layers do not keep them one by one."""
        n, layers = len(ids), cache.layers
        if not n or len(layers) != len(attention_layers(model)):
            return None
        if any(type(layer) is not DynamicLayer or layer.keys.shape[2] < n for layer in layers):  # a sliding window
            return None
        keys = tuple(layer.keys[:, :, :n] for layer in layers)
        return cls(tuple(ids), keys, tuple(layer.values[:, :, :n] for layer in layers))

    @property
    def nbytes(self) -> int:
        """Bytes that are held: those of the tensors that these are the beginnings of."""
        return sum(tensor.untyped_storage().nbytes() for tensor in (*self.keys, *self.values))

    def begin(self, cache: DynamicCache, ids: Sequence[int]) -> int:
        """Put what both begin with into an empty cache. Returns how many tokens that is."""
        n = 0
        for known, wanted in zip(self.ids, ids, strict=False):
            if known != wanted:
                break
            n += 1
        if n:
            for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
                cache.update(keys[:, :, :n], values[:, :, :n], layer)
        return n

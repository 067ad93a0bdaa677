"""The chunks of one history that can be recalled: their KV, embeddings, and how often each was recalled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agentmem.model.kv import KV
from agentmem.store.eviction import counter_update


@dataclass
class Entry:
    """One chunk: its number in the history, its KV and embedding (dim,), float32, and its count of recalls."""

    number: int
    kv: KV
    vector: NDArray[np.float32]
    uses: int = 0


class Bank:
    """Chunks in the order of writing, at most ``capacity`` of them: past that, MemLong's counter-based update."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.entries: list[Entry] = []

    def add(self, number: int, kv: KV, vector: NDArray[np.float32]) -> None:
        """Append a chunk; when there are too many, less recalled ones leave, KV and embedding alike."""
        self.entries.append(Entry(number, kv, vector))
        if len(self.entries) > self.capacity:
            gone = set(counter_update([entry.uses for entry in self.entries]))
            self.entries = [entry for at, entry in enumerate(self.entries) if at not in gone]

    def recall(self, query: NDArray[np.float32], hidden: int, top_k: int) -> list[KV]:
        """The KV of the ``top_k`` nearest of the first ``hidden`` chunks of the history, in the order of writing."""
        known = [entry for entry in self.entries if entry.number < hidden]
        if not known:
            return []
        scores = np.stack([entry.vector for entry in known]) @ query
        best = np.sort(np.argsort(-scores, kind="stable")[:top_k])
        for at in best:
            known[at].uses += 1
        return [known[at].kv for at in best]

    def clear(self) -> None:
        """Forget everything: a new history begins."""
        self.entries.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors, for a checkpoint."""
        if not self.entries:
            return {}
        joined = KV.join([entry.kv for entry in self.entries])
        named = {
            "vectors": torch.from_numpy(np.stack([entry.vector for entry in self.entries])),
            "counts": torch.tensor([[entry.number, entry.kv.n_tokens, entry.uses] for entry in self.entries]),
            "layers": torch.tensor(joined.layers),
        }
        for column, (key, value) in enumerate(zip(joined.keys, joined.values, strict=True)):
            named |= {f"keys.{column}": key, f"values.{column}": value}
        return named

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the entries back that ``tensors`` gave."""
        self.clear()
        if not tensors:
            return
        layers = tuple(tensors["layers"].tolist())
        columns = range(len(layers))
        joined = KV(
            tuple(tensors[f"keys.{i}"] for i in columns), tuple(tensors[f"values.{i}"] for i in columns), layers
        )
        start = 0
        for (number, n_tokens, uses), vector in zip(tensors["counts"].tolist(), tensors["vectors"], strict=True):
            self.entries.append(Entry(number, joined.slice(start, start + n_tokens), vector.numpy(), uses))
            start += n_tokens

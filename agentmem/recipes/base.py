"""What a recipe is: how memory is written (encode) and how it is read (place). One published system per file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.records import Memory


class Recipe(Protocol):
    """A frozen dataclass with the paper's defaults. It owns no state."""

    @property
    def name(self) -> str:
        """The name by which ``MemoryLLM(recipe=...)`` chooses it."""

    @property
    def identity(self) -> str:
        """Everything in the recipe that changes the KV it writes. Part of a KV payload's fingerprint (design law 1)."""

    def encode(self, model: LocalModel, memories: Sequence[Memory]) -> list[KV]:
        """The KV of each memory: a pure function of weights, fixed prefix, header and text (design law 12)."""

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        """The memories' KV at the positions at which a context that starts at 0 reads them."""

"""What a recipe is: how memory is written (encode) and how it is read (place). One published system per file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.stream import StreamPlan
from agentmem.records import Memory


class Recipe(Protocol):
    """A frozen dataclass with the paper's defaults. It owns no state."""

    @property
    def name(self) -> str:
        """The name by which ``MemoryLLM(recipe=...)`` chooses it."""

    @property
    def identity(self) -> str:
        """Everything in the recipe that changes the KV it writes. Part of a KV payload's fingerprint (design law 1)."""

    @property
    def top_k(self) -> int:
        """Memories read at once, unless ``MemoryLLM(top_k=...)`` says otherwise."""

    @property
    def stride(self) -> int:
        """Generated tokens between two recalls (design law 7)."""

    @property
    def prompt_stride(self) -> int | None:
        """Tokens of the prompt that recall for themselves; None: one recall for all of it."""

    def check(self, model: LocalModel) -> None:
        """Raise ``UnsupportedModel`` or ``InvalidInput``, with the reason, when this model cannot serve the recipe."""

    def encode(self, model: LocalModel, memories: Sequence[Memory]) -> list[KV]:
        """The KV of each memory: a pure function of weights, fixed prefix, header and text (design law 12)."""

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        """The memories' KV at the positions at which a context that starts at 0 reads them."""


@runtime_checkable
class StreamRecipe(Protocol):
    """A recipe that keeps a session's whole context as one stream, instead of memories that are read across sessions.

    A frozen dataclass, like ``Recipe``.
    """

    @property
    def name(self) -> str:
        """The name by which ``MemoryLLM(recipe=...)`` chooses it."""

    @property
    def identity(self) -> str:
        """Everything in the recipe that changes what a stream's tokens attend to."""

    def check(self, model: LocalModel) -> None:
        """Raise ``UnsupportedModel`` or ``InvalidInput``, with the reason, when this model cannot serve the recipe."""

    def plan(self, model: LocalModel) -> StreamPlan:
        """What the tokens of a stream of this model attend to."""

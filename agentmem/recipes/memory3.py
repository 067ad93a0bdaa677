"""``memory3``: explicit memories. References encoded alone, sparse in layers and tokens, read at shared positions.

Memory3 (arXiv 2407.01178): sections 3.1 to 3.3 say what is stored, 3.4 and 3.5 how it is retrieved and read. Made for a
model that was trained to read them (``agentmem train memory3``); others read full KV (``keep=None``) better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.selection import Score, attention_received, top_tokens
from agentmem.records import Memory

HEADER = "Reference:"
"""Stands between the beginning of sequence and every reference: the prefix that all of them share (section 3.5)."""


@dataclass(frozen=True)
class Memory3:
    """A few tokens per KV head of the first half of the layers; five references read at a time.

    A reference runs alone behind the shared prefix, and only as far as the last layer that is kept. In each of these,
    each KV head keeps the ``keep`` tokens that receive most attention from the whole reference, without causal mask
    and without positions (``attention_received``; the prefix neither gives nor receives). Each kept token remembers
    its place.

    When read, all references lie in one interval of ``interval`` positions, every token at its own place in it, and the
    interval ends where the context begins, at position 0: the paper's p0 and the context behind it, shifted as a whole.
    The prefix is read once, right before the interval, by every head of every layer. It is the constant sink that each
    reference had when it was encoded, and it is reported as no memory.

    Args:
        layers: model layers that are written and read, ascending; None for the first half of them.
        keep: tokens kept per KV head; None keeps all.
        score: ``softmax`` as the paper defines it, or ``unnormalised`` for the shortcut that its authors shipped.
        interval: positions that the references share; one that has more tokens makes it longer.
        top_k: references read at once (section 3.4).
        stride: generated tokens between two recalls.
        prompt_stride: tokens of the prompt that recall for themselves.

    Raises:
        InvalidInput: a value out of range. ``check`` says whether a model can serve it.
    """

    layers: tuple[int, ...] | None = None
    keep: int | None = 8
    score: Score = "softmax"
    interval: int = 128
    top_k: int = 5
    stride: int = 64
    prompt_stride: int | None = 64

    name = "memory3"

    def __post_init__(self) -> None:
        if self.layers is not None and (
            not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0
        ):
            raise InvalidInput(f"layers must be ascending numbers from 0, not {self.layers}; leave it out for the half")
        if self.score not in ("softmax", "unnormalised"):
            raise InvalidInput(f"score must be 'softmax' or 'unnormalised', not {self.score!r}")
        for name in ("interval", "top_k", "stride"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.prompt_stride is not None and self.prompt_stride < 1:
            raise InvalidInput(f"prompt_stride must be 1 or more, or None, not {self.prompt_stride}")
        if self.keep is not None and not 1 <= self.keep <= self.interval:
            raise InvalidInput(
                f"keep is {self.keep}, but a reference has at most {self.interval} tokens (interval); use None for all"
            )

    @property
    def identity(self) -> str:
        """Layers, number of tokens and score decide what is written."""
        layers = "half" if self.layers is None else "+".join(map(str, self.layers))
        return f"memory3/1/{layers}/{self.keep or 'all'}/{self.score}"

    def check(self, model: LocalModel) -> None:
        """Refuse a model without these layers, or with too few positions for the interval and a context.

        Raises:
            InvalidInput: the reason.
        """
        if self.layers is None and model.n_layers < 2:
            raise InvalidInput(f"memory3 stores the first half of the layers, and this model has {model.n_layers}")
        if self.layers is not None and self.layers[-1] >= model.n_layers:
            raise InvalidInput(f"layers {list(self.layers)}: the model's layers are 0 to {model.n_layers - 1}")
        needed = len(self.prefix(model)) + self.interval
        if needed >= model.max_positions:
            raise InvalidInput(
                f"prefix and interval take {needed} positions before the context, but the model has "
                f"{model.max_positions}; lower interval or use another model"
            )

    def memory_layers(self, model: LocalModel) -> tuple[int, ...]:
        """The layers that are written and read."""
        return tuple(range(model.n_layers // 2)) if self.layers is None else self.layers

    def prefix(self, model: LocalModel) -> tuple[int, ...]:
        """Token ids of the shared prefix: what the model begins every text with, and "Reference:"."""
        return (*model.chat.prefix_ids, *model.chat.encode(HEADER))

    def encode(self, model: LocalModel, memories: Sequence[Memory]) -> list[KV]:
        """Sparse KV of each text behind the prefix, whose own KV is dropped: it is read once, for all of them."""
        ids = [model.chat.encode(f" {memory.text}") for memory in memories]
        pick = None if self.keep is None else partial(_pick, keep=self.keep, score=self.score)
        return model.encode_batch(ids, self.prefix(model), self.memory_layers(model), pick)

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        """Prefix, then one interval for all references, then position 0 of the context."""
        start = -max(self.interval, *(_length(kv) for kv in kvs))
        prefix = self.prefix(model)
        return model.precede(model.place(kvs, [start] * len(kvs)), model.prefix_kv(prefix), start - len(prefix))


def _pick(queries: Tensor, keys: Tensor, scaling: float, *, keep: int, score: Score) -> Tensor:
    return top_tokens(attention_received(queries, keys, scaling, score), keep)


def _length(kv: KV) -> int:
    """Positions that a reference's kept tokens span, from its first one on."""
    return kv.n_tokens if kv.offsets is None else max(int(offset.max()) for offset in kv.offsets) + 1

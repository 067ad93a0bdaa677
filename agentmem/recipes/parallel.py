"""``parallel``: every chunk encoded alone, all read at the same positions. Needs no training.

Memory3's parallel positions (arXiv 2407.01178 section 3.1) with APE's shared prefix, temperature and scale
(arXiv 2502.05431 section 3), on keys that are stored without position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.model.attention import Placed
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.records import Memory


def header(memory: Memory) -> str:
    """Speaker and date, in front of the chunk's text when it is encoded."""
    return f"[{memory.role} {memory.created_at:%Y-%m-%d}] "


@dataclass(frozen=True)
class Parallel:
    """Chunks encoded alone, after one shared prefix and a header; read in one interval that ends at the context.

    The interval is as long as the longest chunk that is read, and every chunk starts at its start, at negative
    positions: [-longest, 0). The context keeps the positions it would have without memory, so memory can be swapped in
    the middle of an answer, and content, not position, is what tells memories apart.

    ``temperature`` divides the memory logits and ``scale`` multiplies the memory's log-sum-exp (APE, section 3.2).
    Both are 1 for a model trained to read memory; for one that was not, APE suggests 0.9 and 0.9.
    """

    temperature: float = 1.0
    scale: float = 1.0

    name = "parallel"
    identity = "parallel/1"
    top_k = 8
    stride = 64
    prompt_stride = None

    def check(self, model: LocalModel) -> None:
        """Any model whose keys can be moved will do, and ``LocalModel`` refuses the others."""

    def text(self, memory: Memory) -> str:
        """What is encoded: header, text, line end."""
        return f"{header(memory)}{memory.text}\n"

    def encode(self, model: LocalModel, memories: Sequence[Memory]) -> list[KV]:
        """KV of header and text, after the shared prefix (whose own KV is dropped: it is every chunk's sink)."""
        return model.encode_batch([model.chat.encode(self.text(m)) for m in memories], prefix=model.chat.prefix_ids)

    def place(self, model: LocalModel, kvs: Sequence[KV]) -> Placed:
        """All chunks at the start of one interval that ends at position 0 of the context."""
        longest = max(kv.n_tokens for kv in kvs)
        return model.place(kvs, [-longest] * len(kvs), temperature=self.temperature, scale=self.scale)

"""Dialogues -> tensors, in exactly the layout that the ``parallel`` recipe has at inference.

One row is [prefix | chunk 1 | chunk 2 | ... | context]. A chunk sees the prefix and itself; the context sees every
chunk and itself, not the prefix. The chunks share one interval of positions, which ends where the context begins.
RoPE is relative, so this equals chunks that were encoded alone, un-rotated and placed there (design law 12).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agentmem.training.dialogues import Dialogue

IGNORE = -100
CHUNK_WEIGHT, USER_WEIGHT = 0.2, 0.05
"""Loss weights of the tokens of chunks and of what users and tools say; an answer's is 1."""
CONTEXT = 1_000
"""Segment number of the context; 0 is the prefix, 1.. are the chunks, -1 is padding."""


@dataclass(frozen=True)
class Batch:
    """All (rows, tokens): ids, positions, segments, labels int64; weights float32, the loss weight of each label."""

    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    weights: Tensor

    def mask(self) -> Tensor:
        """Boolean (rows, 1, tokens, tokens): True where a query (dim 2) may look at a key (dim 3)."""
        n = self.ids.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).tril()
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        same = query == key
        chunk_reads_prefix = (key == 0) & (query > 0) & (query < CONTEXT)
        context_reads_chunk = (query == CONTEXT) & (key > 0)
        return (causal & (same | chunk_reads_prefix | context_reads_chunk))[:, None]


class Row:
    """Token columns of one row as plain lists."""

    def __init__(self) -> None:
        self.columns: list[tuple[int, int, int, int, float]] = []

    def put(self, ids: list[int], start: int, segment: int, weights: list[float]) -> None:
        """Append tokens at positions from ``start``; the weight of a token is the loss of predicting it."""
        for i, (token, weight) in enumerate(zip(ids, weights, strict=True)):
            self.columns.append((token, start + i, segment, token if weight else IGNORE, weight))


class Packer:
    """Turns dialogues into batches with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.bos = tokenizer.bos_token_id

    def text(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def row(self, dialogue: Dialogue, rng: random.Random, *, spread: int) -> Row:
        """Lay one dialogue out. Turns are up to ``spread`` positions apart, so that distance carries no meaning."""
        row = Row()
        chunks = [self.text(f"[{chunk.role} {chunk.day}] {chunk.text}\n") for chunk in dialogue.chunks]
        interval = max((len(ids) for ids in chunks), default=0) + rng.choice([0, 0, rng.randint(0, 24)])
        row.put([self.bos], -interval - 1, 0, [0.0])
        for number, ids in enumerate(chunks, 1):
            row.put(ids, -interval, number, [0.0] + [CHUNK_WEIGHT] * (len(ids) - 1))
        row.put([self.bos], 0, CONTEXT, [0.0])
        at = 1
        for role, said in dialogue.turns:
            ids = self.text(f"<|{role}|> {said}<|end|>")
            weight = 1.0 if role == "assistant" else USER_WEIGHT
            if role != "assistant" and rng.random() < 0.3:
                at += rng.randint(0, spread)
            row.put(ids, at, CONTEXT, [0.0] + [weight] * (len(ids) - 1))
            at += len(ids)
        return row

    def batch(self, dialogues: list[Dialogue], rng: random.Random, *, spread: int = 120) -> Batch:
        """Pad the dialogues' rows to one length."""
        return collate([self.row(dialogue, rng, spread=spread) for dialogue in dialogues])


def collate(rows: list[Row]) -> Batch:
    """Right-pad rows (padding: segment -1, weight 0, and it looks at itself so that no softmax is empty)."""
    n = max(len(row.columns) for row in rows)
    padded = [row.columns + [(0, 0, -1, IGNORE, 0.0)] * (n - len(row.columns)) for row in rows]
    ids, positions, segments, labels, weights = (
        torch.tensor([[c[i] for c in row] for row in padded]) for i in range(5)
    )
    return Batch(ids, positions, segments, labels, weights.float())


def repeated_strings(rng: random.Random, vocabulary: range, rows: int, length: int = 14, times: int = 3) -> Batch:
    """Random token strings repeated at random offsets: they form induction heads before anything else is learned."""
    out = []
    for _ in range(rows):
        row = Row()
        string = [rng.choice(vocabulary) for _ in range(length)]
        start = rng.randint(0, 300)
        for repeat in range(times):
            row.put(string, start + repeat * length, CONTEXT, [1.0 if repeat else 0.0] * length)
        out.append(row)
    return collate(out)

"""What a reply read: each memory's attention share, over the whole answer and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from agentmem.model.generation import Generation
from agentmem.reader import Recalled
from agentmem.records import MemoryRead, TokenRead


def attention_by_token(recalls: Sequence[Recalled], generation: Generation) -> list[dict[str, float]]:
    """The attention share of every memory that was read, by id, for each token of the answer."""
    by_placed = {id(recalled.placed): recalled for recalled in recalls}
    stretches = [(by_placed[id(placed)].ids, shares.tolist()) for placed, shares in generation.shares]
    attention: list[dict[str, float]] = []
    for token in generation.tokens:
        if token.read is None:
            attention.append({})
        else:
            ids, rows = stretches[token.read[0]]
            attention.append(dict(zip(ids, rows[token.read[1]], strict=True)))
    return attention


def memories_read(recalls: Sequence[Recalled], attention: Sequence[dict[str, float]]) -> list[MemoryRead]:
    """Every memory that was read, with its attention share as the mean over all answer tokens; most read first."""
    total: dict[str, float] = {}
    for shares in attention:
        for memory_id, share in shares.items():
            total[memory_id] = total.get(memory_id, 0.0) + share / len(attention)
    hits = {hit.memory.id: (hit, recalled) for recalled in reversed(recalls) for hit in recalled.hits}
    return [
        MemoryRead(memory=hit.memory, score=hit.score, attention=total.get(id, 0.0), rebuilt=id in recalled.rebuilt)
        for id, (hit, recalled) in sorted(hits.items(), key=lambda item: -total.get(item[0], 0.0))
    ]


def tokens_read(attention: Sequence[dict[str, float]], generation: Generation, text: str) -> tuple[TokenRead, ...]:
    """The record of each token, by its characters in ``text``: the words of the answer, without what surrounds them.

    Empty where they are not one piece of it (words on both sides of a tool's call).
    """
    raw = generation.text
    at = len(raw) - len(raw.lstrip())
    if not raw.startswith(text, at):
        return ()
    ends = [0, *(token.end for token in generation.tokens)]
    ends[-1] = len(raw)  # also what was held back until the end
    places = [min(max(end - at, 0), len(text)) for end in ends]
    return tuple(
        TokenRead(start=start, end=end, attention=shares)
        for (start, end), shares in zip(pairwise(places), attention, strict=True)
    )

"""Turns -> chunks: at most 128 tokens each, cut at sentence boundaries where it can be."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from agentmem.errors import InvalidInput
from agentmem.text import check_text

MAX_TOKENS = 128
"""Longest chunk, in tokens of the language model's tokenizer (as in Memory3 section 3.3 and InfLLM section 4.2)."""

Spans = Callable[[str], list[tuple[int, int]]]
"""Tokenizes a text and gives each token's (start, end) in characters, without special tokens."""

_SENTENCE_END = re.compile(r"[.!?…。！？][\"')\]]*\s+|\n+")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Chunk:
    """A piece of a turn's text and its length in tokens."""

    text: str
    n_tokens: int


def chunk_text(text: str, spans: Spans, max_tokens: int = MAX_TOKENS) -> list[Chunk]:
    """Cut a turn's text into chunks of at most ``max_tokens`` tokens.

    The chunks in order are the text, character for character, but for stretches of white space so long that they
    would fill a chunk of their own. A cut falls after a sentence if one ends in the last two thirds of the chunk,
    else after white space, else between two characters.

    Raises InvalidInput for text that ``check_text`` refuses and for ``max_tokens`` below 8.
    """
    if max_tokens < 8:
        raise InvalidInput(f"max_tokens is {max_tokens}; a chunk needs room for at least 8 tokens")
    check_text(text)
    starts = [start for start, _ in spans(text)]
    cuts = ([m.end() for m in _SENTENCE_END.finditer(text)], [m.end() for m in _SPACE.finditer(text)])
    chunks: list[Chunk] = []
    begin = 0
    while begin < len(text):
        first = bisect_left(starts, begin)
        budget = max_tokens
        while True:
            end = len(text) if first + budget >= len(starts) else _cut(cuts, begin, starts[first + budget])
            n_tokens = len(spans(text[begin:end]))
            if n_tokens <= max_tokens or end == begin + 1:
                break
            budget -= max(1, n_tokens - max_tokens)  # a piece may tokenize a little longer than it did in the whole
        if text[begin:end].strip():
            chunks.append(Chunk(text[begin:end], n_tokens))
        begin = end
    return chunks


def _cut(cuts: tuple[list[int], list[int]], begin: int, limit: int) -> int:
    """The best place to cut in (begin, limit]."""
    limit = max(limit, begin + 1)
    for candidates, earliest in zip(cuts, (begin + (limit - begin) // 3, begin), strict=True):
        at = bisect_right(candidates, limit) - 1
        if at >= 0 and candidates[at] > earliest:
            return candidates[at]
    return limit

"""Pass keys hidden in filler: the task that shows whether a stream finds one sentence among very many.

After Mohtashami and Jaggi (arXiv 2305.16300 section 4.2) and InfLLM (arXiv 2402.04617 section 4.5, appendix B), in
words of our own. With two keys, worded the same, the question asks for the first or the second one: only the order in
which they were read tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from agentmem.training.batches import CONTEXT, Packer, Row
from agentmem.training.values import Split, is_heldout

NOISE = (
    "The river runs past the old mill.",
    "A grey cat sleeps on the wall.",
    "Clouds drift over the quiet town.",
    "The baker opens his door at six.",
    "Leaves fall on the empty road.",
    "Somebody hums a slow tune.",
    "The train is late again.",
    "Rain taps on the tin roof.",
    "Two boys kick a ball about.",
    "The clock in the hall strikes nine.",
    "Smoke rises from the far hills.",
    "A ship waits outside the harbour.",
)
"""Sentences without any news in them; the filler repeats them."""

_TEXT_WEIGHT = 0.02
"""Loss weight of the text's tokens; an answer's is 1."""

_TWO_KEYS = 0.8
"""Share of rows with two keys: which of them came first is the harder lesson."""


def draw_key(rng: random.Random, split: Split = "train") -> str:
    """A number of five digits of the split."""
    while True:
        key = str(rng.randrange(10_000, 100_000))
        if is_heldout(key) == (split == "heldout"):
            return key


def _practised(rng: random.Random) -> str:
    """A key for training: half of them say a digit twice in a row, which is easily miscopied."""
    repeats = rng.random() < 0.5
    while True:
        key = draw_key(rng)
        if not repeats or any(a == b for a, b in pairwise(key)):
            return key


def needle(key: str) -> str:
    """The sentence that is hidden."""
    return f" The pass key is {key}. Remember it: {key} is the pass key. "


def question(rng: random.Random, keys: Sequence[str]) -> tuple[str, str, str]:
    """Question, whole answer, and the key that is right."""
    if len(keys) == 1:
        return "What is the pass key?", f"The pass key is {keys[0]}.", keys[0]
    which = rng.randrange(2)
    name = ("first", "second")[which]
    return f"What is the {name} pass key?", f"The {name} pass key is {keys[which]}.", keys[which]


def noise(rng: random.Random, sentences: int) -> str:
    """Filler of that many sentences: a few of ``NOISE``, said over and over in the same order."""
    cycle = rng.sample(NOISE, rng.randint(4, len(NOISE)))
    return " ".join(cycle[i % len(cycle)] for i in range(sentences))


@dataclass(frozen=True)
class Hidden:
    """One training row: the text ends at ``text_end``; each of ``needles`` is a range of tokens."""

    row: Row
    needles: tuple[tuple[int, int], ...]
    text_end: int


class Passkeys:
    """Draws rows of about ``n`` tokens; ``books`` are texts to hide keys in, besides ``NOISE`` and ``remarks``."""

    def __init__(self, packer: Packer, books: Sequence[str], remarks: Sequence[str]) -> None:
        self._packer, self._books, self._remarks = packer, books, remarks

    def row(self, rng: random.Random, n: int) -> Hidden:
        """A text with one or two keys as a user's turn, the question in the same turn or the next, and the answer."""
        text = self._packer.text
        keys = [_practised(rng) for _ in range(2 if rng.random() < _TWO_KEYS else 1)]
        said = [text(needle(key)) for key in keys]
        asked, answer, _ = question(rng, keys)
        filler = self._filler(rng, n)[: max(0, n - sum(map(len, said)) - 40)]
        ids, needles, at = text("<|user|>"), [], 0
        for cut, one in zip(sorted(rng.randint(0, len(filler)) for _ in keys), said, strict=True):
            ids += filler[at:cut]
            needles.append((1 + len(ids), 1 + len(ids) + len(one)))
            ids += one
            at = cut
        ids += filler[at:]
        end = 1 + len(ids)
        if rng.random() < 0.5:
            ids += text(f" {asked}<|end|>")
        else:
            ids += text("<|end|>" + ("<|assistant|> I see.<|end|>" if rng.random() < 0.5 else ""))
            ids += text(f"<|user|> {asked}<|end|>")
        row = Row()
        row.put([self._packer.bos], 0, CONTEXT, [0.0])
        row.put(ids, 1, CONTEXT, [0.0] + [_TEXT_WEIGHT] * (len(ids) - 1))
        reply = text(f"<|assistant|> {answer}<|end|>")
        row.put(reply, 1 + len(ids), CONTEXT, [0.0] + [1.0] * (len(reply) - 1))
        return Hidden(row, tuple(needles), end)

    def _filler(self, rng: random.Random, n: int) -> list[int]:
        kind = rng.random()
        if kind < 0.5 or not (self._books or self._remarks):
            return self._packer.text(noise(rng, n // 8 + 2))
        if self._books and (kind < 0.85 or not self._remarks):
            book = rng.choice(self._books)
            start = rng.randrange(max(1, len(book) - 6 * n))
            return self._packer.text(book[start : start + 6 * n])
        return self._packer.text(" ".join(rng.choice(self._remarks) for _ in range(n // 6 + 1)))

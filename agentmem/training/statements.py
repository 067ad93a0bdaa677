"""Made-up statements, far apart in long texts: what only a memory can complete when they are restated."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from agentmem.training.texts import Document
from agentmem.training.values import Split, value

_KINDS = ("password", "horse", "ship", "village", "banker", "cousin", "favourite word", "lawyer")

STATED = 0.5
"""Share of the paragraphs that a statement follows."""


@dataclass(frozen=True)
class Statement:
    """``asked`` is how it begins, ``answer`` what it says: "The horse of Brilo is called" and " Skenta"."""

    asked: str
    answer: str

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.asked}{self.answer}."


def draw(rng: random.Random, split: Split = "train") -> Statement:
    """A statement whose owner and answer are made up, of the split."""
    owner, answer = value(rng, "name", split), value(rng, "name", split)
    return Statement(f"The {rng.choice(_KINDS)} of {owner} is called", f" {answer}")


def strewn(document: Document, statements: int, rng: random.Random) -> Document:
    """The document with some statements of its own, one of them after every other paragraph or so.

    As with the names of a novel, there are few, and each is made over and over, mostly long after it was made last.

    Args:
        document: the text, one paragraph per line.
        statements: how many different ones.
        rng: draws what and where.
    """
    if not statements:
        return document
    told = [draw(rng).text for _ in range(statements)]
    lines: list[str] = []
    for paragraph in document.text.split("\n"):
        lines += [paragraph, *([rng.choice(told)] if rng.random() < STATED else [])]
    return replace(document, text="\n".join(lines))

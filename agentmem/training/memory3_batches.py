"""Contexts and the references that they read, for the two stages of Memory3's training.

A context is cut into steps of 64 tokens. Each retrieves one reference and reads those of the four before it too
(Memory3, arXiv 2407.01178 section 3.7), so a question is about one of the references that its whole exchange can see.
A context is thought of as cut from the middle of a document: its first step has four steps before it. Several contexts
share one set of references, in an order of their own: encoding these is most of the work.
In the first stage the same references stand in the context instead.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from agentmem.training.references import AFFAIRS, TownFact, reference, town, town_facts
from agentmem.training.values import Split, value

STEP = 64
"""Context tokens that share their memories."""
SHARED = 4
"""References of so many steps before are read too."""
USER_WEIGHT, TEXT_WEIGHT = 0.05, 0.1
"""Loss weights of questions, and of references that stand in the context; an answer's is 1."""
HEADER = "Reference:"


@dataclass(frozen=True)
class Sample:
    """``context`` ids and ``weights`` (loss weight of predicting each).

    Step i reads the references ``order[i] .. order[i + 4]``, of which it retrieved the last one itself.
    """

    context: list[int]
    weights: list[float]
    order: list[int]


@dataclass(frozen=True)
class ContextBatch:
    """``ids`` (rows, n) int64 and ``weights`` (rows, n) float32, padded with weight 0.

    ``references``: token ids per set; rows / sets neighbouring rows share one. ``visible`` (rows, n, references), bool,
    tells which of its set each token reads. Both are empty in the first stage.
    """

    ids: Tensor
    weights: Tensor
    references: list[list[list[int]]]
    visible: Tensor

    @property
    def asking(self) -> Tensor:
        """(rows, n), bool: tokens from which a token of an answer is predicted."""
        return torch.nn.functional.pad(self.weights[:, 1:] == 1.0, (0, 1))


class Writer:
    """Writes samples with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self.prefix = [tokenizer.bos_token_id, *self.ids(HEADER)]

    def ids(self, text: str) -> list[int]:
        """Token ids of plain text."""
        out: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return out

    def count(self, text: str) -> int:
        """Tokens that a reference of this text has."""
        return len(self.ids(f" {text}"))

    def exchange(self, fact: TownFact, rng: random.Random, known: bool) -> tuple[list[int], list[float]]:
        """Ids and weights of a question and its answer."""
        asked = self.ids(f"<|user|> {fact.asked(rng)}<|end|>")
        answered = self.ids(f"<|assistant|> {fact.answered() if known else fact.unknown()}<|end|>")
        weights = [0.0] + [USER_WEIGHT] * (len(asked) - 1) + [0.0] + [1.0] * (len(answered) - 1)
        return asked + answered, weights

    def group(
        self, rng: random.Random, steps: int, rows: int, *, unknown: float = 0.12, split: Split = "train"
    ) -> tuple[list[list[int]], list[Sample]]:
        """steps + 4 references, and ``rows`` contexts of at most ``steps`` * 64 tokens that ask about them."""
        facts = _facts(rng, steps + SHARED, split)
        told = [self.ids(f" {reference(rng, fact, self.count)}") for fact in facts]
        samples = [self.sample(rng, facts, steps, unknown) for _ in range(rows)]
        if any(overlaps(one, sample.context) for one in told for sample in samples):
            return self.group(rng, steps, rows, unknown=unknown, split=split)
        return told, samples

    def sample(self, rng: random.Random, facts: Sequence[TownFact], steps: int, unknown: float) -> Sample:
        """One context that asks about facts which it can read where it asks."""
        order = rng.sample(range(len(facts)), len(facts))
        context, weights, asked = [self.prefix[0]], [0.0], Counter[int]()
        while True:
            step = len(context) // STEP
            # The answer may reach into the next step, which reads one more reference and not the oldest of these.
            readable = order[step + 1 : step + 1 + SHARED]
            fact, known = _question(rng, facts, readable, asked, unknown)
            ids, loss = self.exchange(fact, rng, known)
            if len(context) + len(ids) > steps * STEP:
                return Sample(context, weights, order)
            context += ids
            weights += loss

    def inline(self, rng: random.Random, steps: int) -> Sample:
        """The first stage: no memory; the references stand in the context, and questions follow each of them."""
        facts = _facts(rng, steps, "train")
        context, weights, asked = [self.prefix[0]], [0.0], Counter[int]()
        for number, fact in enumerate(facts):
            text = self.ids(f"{HEADER} {reference(rng, fact, self.count, most=72, least=36)}")
            ids, loss = list(text), [0.0] + [TEXT_WEIGHT] * (len(text) - 1)
            for _ in range(2):
                one, known = _question(rng, facts[: number + 1], range(number + 1), asked, 0.15)
                more, more_loss = self.exchange(one, rng, known)
                ids += more
                loss += more_loss
            if len(context) + len(ids) > steps * STEP:
                break
            context += ids
            weights += loss
        return Sample(context, weights, [])


def _facts(rng: random.Random, n: int, split: Split) -> list[TownFact]:
    """n facts of two or three towns, most of them of one: that is what a search for its name finds.

    Some affairs are those of another town, too: nothing but the whole question tells them apart.
    """
    main, *others = (town(rng, split) for _ in range(rng.choice((2, 3))))
    facts = town_facts(rng, main, max(1, n * rng.choice((4, 5, 6)) // 8), split)
    affairs = [fact.affair for fact in facts]
    while len(facts) < n:
        name = rng.choice(others)
        affair = rng.choice(affairs if rng.random() < 0.5 else AFFAIRS)
        if not any((fact.town, fact.affair) == (name, affair) for fact in facts):
            facts.append(TownFact(name, affair, value(rng, affair.kind, split)))
    return rng.sample(facts, n)


def _question(
    rng: random.Random, facts: Sequence[TownFact], readable: Sequence[int], asked: Counter[int], unknown: float
) -> tuple[TownFact, bool]:
    """The fact to ask about, and whether it can be known: of those that can, one that was asked about least."""
    if rng.random() < unknown:
        near = facts[rng.choice(readable)]
        told = {fact.affair.noun for fact in facts if fact.town == near.town}
        affair = rng.choice([affair for affair in AFFAIRS if affair.noun not in told])
        return TownFact(near.town, affair, "?"), False
    number = min(readable, key=lambda i: (asked[i], rng.random()))
    asked[number] += 1
    return facts[number], True


def overlaps(one: Sequence[int], sample: Sequence[int], share: float = 0.9) -> bool:
    """Whether more than ``share`` of a reference is in the sample, in order (longest common subsequence).

    Memory3's guard against reading what is to be predicted (section 3.7).
    """
    common = sum((Counter(one) & Counter(sample)).values())
    if common <= share * len(one):  # no common subsequence is longer than what the two have in common at all
        return False
    row = [0] * (len(one) + 1)
    for token in sample:
        above = 0
        for i, other in enumerate(one, 1):
            above, row[i] = row[i], above + 1 if token == other else max(row[i], row[i - 1])
    return row[-1] > share * len(one)


def collate(groups: Sequence[tuple[list[list[int]], list[Sample]]], pad: int = 0) -> ContextBatch:
    """Rows of one length, with what each of their tokens reads."""
    samples = [sample for _, some in groups for sample in some]
    n = max(len(sample.context) for sample in samples)
    ids = torch.tensor([sample.context + [pad] * (n - len(sample.context)) for sample in samples])
    weights = torch.tensor([sample.weights + [0.0] * (n - len(sample.weights)) for sample in samples])
    orders = torch.tensor([sample.order for sample in samples])
    step, place = torch.arange(n)[:, None] // STEP, torch.arange(orders.shape[1])[None]
    by_place = ((place >= step) & (place <= step + SHARED)).expand(len(samples), -1, -1)
    visible = torch.zeros_like(by_place).scatter(2, orders[:, None].expand(-1, n, -1), by_place)
    return ContextBatch(ids, weights, [told for told, _ in groups if told], visible)

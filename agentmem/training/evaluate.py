"""Held-out accuracy during training: does the model give the one right answer, word for word?"""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedModel

from agentmem.training.batches import CONTEXT, Packer
from agentmem.training.dialogues import Dialogue, Mix, draw

QUESTIONS = ("recall", "corrected", "unknown")


def question(rng: random.Random, kind: str, n_facts: int) -> tuple[Dialogue, str]:
    """A held-out dialogue of one question, with n_facts facts in memory, and its right answer."""
    mix = Mix(
        min_facts=n_facts,
        max_facts=n_facts,
        max_chunks=99,
        max_questions=1,
        corrected=1.0 if kind == "corrected" else 0.0,
        unknown=1.0 if kind == "unknown" else 0.0,
        noise=0.0,
        told_in_context=0.0,
    )
    while True:
        dialogue = draw(rng, mix, [], "heldout")
        answers = [text for role, text in dialogue.turns if role == "assistant"]
        if len(answers) == 1 and answers[0].endswith("You have not told me.") == (kind == "unknown"):
            return dialogue, answers[0]


@torch.no_grad()
def exact(model: PreTrainedModel, packer: Packer, kind: str, n_facts: int, *, n: int = 64, seed: int = 7) -> float:
    """Share of n held-out questions whose every answer token is the most likely one (what greedy decoding needs)."""
    rng = random.Random(seed)
    right = 0
    for _ in range(0, n, 16):
        dialogues = [question(rng, kind, n_facts)[0] for _ in range(16)]
        batch = packer.batch(dialogues, rng, spread=0)
        logits = model(
            input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask(), use_cache=False
        ).logits
        answer = (batch.weights[:, 1:] == 1.0) & (batch.segments[:, 1:] == CONTEXT)
        right += int(((logits[:, :-1].argmax(-1) == batch.labels[:, 1:]) | ~answer).all(1).sum())
    return right / n

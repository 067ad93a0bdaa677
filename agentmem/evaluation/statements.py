"""Recall of statements: something was said far back, and has to be completed now."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import wilson
from agentmem.evaluation.perplexity import Contender, Past, as_memory, load
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.result import Plot, Result, Row
from agentmem.model.attention import Placed, attached
from agentmem.model.local import LocalModel
from agentmem.model.rows import RowsReader
from agentmem.retrieval import Embedder, get_embedder
from agentmem.training.histories import History, Window, cut
from agentmem.training.memlong import IGNORE, batch
from agentmem.training.statements import Statement, draw
from agentmem.training.texts import Document

CHOICES = 10
"""Answers that one is chosen from."""


@dataclass(frozen=True)
class Question:
    """``statement`` was made before chunk ``told``, as a chunk of its own; it is restated before chunk ``number``.

    The history begins with chunk ``start``. ``others`` are answers that nobody gave.
    """

    statement: Statement
    others: tuple[str, ...]
    start: int
    told: int
    number: int


def questions(history: History, length: int, window: int, samples: int, seed: int) -> list[Question]:
    """Held-out statements at random depths of random stretches of ``length`` tokens, always out of the window's sight.

    Raises:
        InvalidInput: the history is too short.
    """
    chunks = length // 100
    if len(history.chunks) < chunks + 2 or length <= 2 * window:
        raise InvalidInput(f"{length:,} tokens of history and a window of {window} do not fit {history.n_tokens:,}")
    rng = random.Random(seed)
    found = []
    for _ in range(samples):
        number = rng.randrange(chunks, len(history.chunks))
        hidden = history.window(number, window).hidden
        start = number - chunks
        others = tuple(draw(rng, "heldout").answer for _ in range(CHOICES - 1))
        found.append(Question(draw(rng, "heldout"), others, start, rng.randrange(start, hidden), number))
    return found


def statements(
    contenders: Sequence[Contender],
    document: Document,
    lengths: Sequence[int],
    *,
    samples: int = 100,
    window: int = 512,
    embedder: str | None = None,
    device: str | None = None,
    seed: int = 0,
    advance: Advance = silent,
) -> Result:
    """Share of statements that each contender knows when they are begun again, by length of history.

    Recall is by the beginning of the restated sentence, as a chat recalls by the newest message. Rows: ``length``,
    ``contender``, ``accuracy`` (the right one of ten answers is the likeliest, per token; chance is 10 %) and
    ``word_for_word`` (greedy decoding gives it), both with 95 % Wilson intervals, ``recalled`` (share of questions
    whose statement was among what was read) and ``samples``.

    Args:
        contenders: models, with or without a recipe.
        document: the text around the statements.
        lengths: tokens of history, each more than twice the window.
        samples: questions per length.
        window: tokens in context, the restated sentence included.
        embedder: see ``perplexity``.
        device: as torch names it.
        seed: draws statements and depths.
        advance: told how far it is.

    Raises:
        InvalidInput: no contender, or a document that is too short.
        ModelLoadError, UnsupportedModel: a model cannot be used.
    """
    if not contenders or not lengths:
        raise InvalidInput("give at least one contender and one length")
    rows: list[Row] = []
    for contender in contenders:
        model = load(contender, device)
        (history,) = cut([document], model)
        asked = {length: questions(history, length, window, samples, seed) for length in lengths}
        past, embedding = None, get_embedder(embedder, model)
        if contender.recipe is not None:
            past = Past(model, contender.recipe, embedding, history, silent)
        for length in lengths:
            chosen = exact = recalled = 0
            for done, question in enumerate(asked[length], 1):
                read = None if past is None else _recalled(past, embedding, history, question, window)
                likeliest, greedy = _answers(model, history, question, read and read[0], window)
                chosen, exact = chosen + likeliest, exact + greedy
                recalled += read is not None and read[1]
                advance(f"{contender.name}: {length:,}", done, samples)
            row: Row = {"length": length, "contender": contender.name}
            for name, hits in (("accuracy", chosen), ("word_for_word", exact)):
                low, high = wilson(hits, samples)
                row |= {name: hits / samples, f"{name}_low": low, f"{name}_high": high}
            rows.append({**row, "recalled": None if past is None else recalled / samples, "samples": samples})
    settings = {
        "document": document.name,
        "window": window,
        "embedder": embedder or "hidden states",
        "seed": seed,
        "contenders": [f"{c.name}: {c.recipe!r}" for c in contenders],
    }
    plot = Plot("length", "accuracy", "contender", "Statements recalled", log2=True, percent=True)
    return Result("statements", settings, sorted(rows, key=lambda row: lengths.index(row["length"])), plot)


def _recalled(
    past: Past, embedder: Embedder, history: History, question: Question, window: int
) -> tuple[Placed, bool] | None:
    """What is read to answer, and whether the statement is in it."""
    hidden = history.window(question.number, window).hidden
    bank = past.bank(question.start, question.told)
    (told,) = past.recipe.encode(past.model, [as_memory(f"{question.statement.text}\n")])
    vectors = embedder.embed([question.statement.text, question.statement.asked])
    bank.add(question.told, told, vectors[0])
    for entry in past.bank(question.told, hidden).entries:
        bank.add(entry.number, entry.kv, entry.vector)
    kvs = bank.recall(vectors[1], hidden, past.recipe.top_k)
    return past.recipe.place(past.model, kvs), any(kv is told for kv in kvs)


def _answers(
    model: LocalModel, history: History, question: Question, placed: Placed | None, window: int
) -> tuple[bool, bool]:
    """Whether the right answer is the likeliest per token, and whether each of its tokens is the likeliest one."""
    begun = model.chat.encode(f"\n{question.statement.asked}")
    answers = [model.chat.encode(answer) for answer in (question.statement.answer, *question.others)]
    room = window - len(begun) - max(map(len, answers))
    before = history.window(question.number, room)
    context = (*[*before.context, *before.scored][-room:], *begun)
    ids, labels = (
        tensor.to(model.device)
        for tensor in batch([Window(context, tuple(a), before.hidden) for a in answers], model.chat.prefix_ids)
    )
    with attached(model.model, RowsReader([placed] * len(answers))), torch.no_grad():
        logits = model.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    scored = labels[:, 1:] != IGNORE
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )
    likeliest = int((loss.sum(1) / scored.sum(1)).argmin())
    return likeliest == 0, bool((logits[0].argmax(-1) == labels[0, 1:])[scored[0]].all())

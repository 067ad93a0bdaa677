"""Recall of statements: something was said far back, and has to be completed now."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import wilson
from agentmem.evaluation.perplexity import BATCH, Contender, Past, as_memory, load
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


@dataclass(frozen=True)
class Question:
    """``statement`` was made before chunk ``told``, as a chunk of its own; it is restated before chunk ``number``.

    The history begins with chunk ``start``.
    """

    statement: Statement
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
        found.append(Question(draw(rng, "heldout"), start, rng.randrange(start, hidden), number))
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
    """Share of statements that each contender completes word for word (greedily), by length of history.

    Recall is by the beginning of the restated sentence, as a chat recalls by the newest message. Rows: ``length``,
    ``contender``, ``accuracy`` with its 95 % Wilson interval, ``recalled`` (share of questions whose statement was
    among what was read) and ``samples``.

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
            right = recalled = 0
            for at in range(0, samples, BATCH):
                some = asked[length][at : at + BATCH]
                reads = [None if past is None else _recalled(past, embedding, history, q, window) for q in some]
                right += sum(_completes(model, history, some, [r and r[0] for r in reads], window))
                recalled += sum(read is not None and read[1] for read in reads)
                advance(f"{contender.name}: {length:,}", at + len(some), samples)
            low, high = wilson(right, samples)
            rows.append(
                {
                    "length": length,
                    "contender": contender.name,
                    "accuracy": right / samples,
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "recalled": None if past is None else recalled / samples,
                    "samples": samples,
                }
            )
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


def _completes(
    model: LocalModel, history: History, asked: Sequence[Question], rows: Sequence[Placed | None], window: int
) -> list[bool]:
    """Whether every token of each answer is the most likely one."""
    windows = []
    for question in asked:
        begun = model.chat.encode(f"\n{question.statement.asked}")
        answer = model.chat.encode(question.statement.answer)
        before = history.window(question.number, window - len(begun) - len(answer))
        seen = [*before.context, *before.scored][-(window - len(begun) - len(answer)) :]
        windows.append(Window((*seen, *begun), tuple(answer), before.hidden))
    ids, labels = (tensor.to(model.device) for tensor in batch(windows, model.chat.prefix_ids))
    with attached(model.model, RowsReader(rows)), torch.no_grad():
        best = model.model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
    return [bool(done) for done in ((best == labels[:, 1:]) | (labels[:, 1:] == IGNORE)).all(1)]

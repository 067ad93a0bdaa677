"""Perplexity of long texts, like for like: the same positions and the same local window for every contender."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agentmem.errors import InvalidInput
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.result import Plot, Result, Row
from agentmem.llm import bundled_model
from agentmem.model.attention import Placed, attached
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.rows import RowsReader
from agentmem.recipes import Recipe
from agentmem.records import Memory, Role, Scope
from agentmem.retrieval import Embedder, get_embedder
from agentmem.training.bank import Bank
from agentmem.training.histories import History, Window, cut
from agentmem.training.memlong import IGNORE, batch
from agentmem.training.texts import Document

BATCH = 8
"""Windows in one forward pass."""


@dataclass(frozen=True)
class Contender:
    """A model (hub id or folder) and how it reads memory; None: not at all."""

    name: str
    model: str | Path | None
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Scored:
    """Losses of some chunks, in nats: ``nll`` is the sum over a chunk's tokens, ``tokens`` their number, float64."""

    nll: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.nll.sum() / self.tokens.sum())

    def less(self, other: Scored) -> tuple[float, float]:
        """Nats per token that this is above ``other`` on the same chunks, and the standard error of that difference.

        Chunks are the units: tokens of one chunk are not independent.
        """
        difference = self.nll - other.nll
        mean = difference.sum() / self.tokens.sum()
        rest = difference - mean * self.tokens
        n = len(rest)
        error = math.sqrt((rest**2).sum() * n / max(1, n - 1)) / self.tokens.sum()
        return float(mean), float(error)


class Past:
    """All chunks of a history as one contender remembers them: encoded and embedded once, recalled by number."""

    def __init__(self, model: LocalModel, recipe: Recipe, embedder: Embedder, history: History, advance: Advance):
        self.model, self.recipe = model, recipe
        self._kvs: list[KV] = []
        vectors = []
        for start in range(0, len(history.texts), 16):
            texts = history.texts[start : start + 16]
            self._kvs += recipe.encode(model, [as_memory(text) for text in texts])
            vectors.append(embedder.embed(texts))
            advance("remembering", min(start + 16, len(history.texts)), len(history.texts))
        self._vectors = np.concatenate(vectors)

    def bank(self, start: int, hidden: int) -> Bank:
        """Chunks ``start .. hidden - 1``."""
        bank = Bank(capacity=len(self._kvs) + 1)
        for at in range(start, hidden):
            bank.add(at, self._kvs[at], self._vectors[at])
        return bank

    def recalled(self, start: int, hidden: int, number: int) -> Placed | None:
        """What chunk ``number - 1`` recalls of chunks ``start .. hidden - 1``, placed for reading."""
        kvs = self.bank(start, hidden).recall(self._vectors[number - 1], hidden, self.recipe.top_k)
        return self.recipe.place(self.model, kvs) if kvs else None

    @property
    def kv_bytes(self) -> int:
        """Bytes of all KV."""
        return sum(kv.nbytes for kv in self._kvs)


def spans(history: History, length: int) -> list[tuple[int, int, int]]:
    """(start, first scored, stop) chunk numbers of consecutive pieces of ``length`` tokens; the second half is scored.

    So every scored chunk has at least half of ``length`` tokens of history. What is left at the end is left out.
    """
    found, start, used, half = [], 0, 0, 0
    for number, chunk in enumerate(history.chunks):
        if used + len(chunk) > length:
            found.append((start, half, number))
            start, half, used = number, number, 0
        used += len(chunk)
        if used * 2 <= length:
            half = number + 1
    return found


def losses(model: LocalModel, windows: Sequence[Window], rows: Sequence[Placed | None]) -> list[float]:
    """Sum of the losses (nats) of each window's scored tokens, while each reads a memory of its own."""
    ids, labels = (tensor.to(model.device) for tensor in batch(windows, model.chat.prefix_ids))
    with attached(model.model, RowsReader(rows)), torch.no_grad():
        logits = model.model(input_ids=ids, use_cache=False).logits
    each = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )
    return each.double().sum(1).tolist()


def score(
    model: LocalModel,
    history: History,
    pieces: Sequence[tuple[int, int, int]],
    window: int,
    past: Past | None = None,
    advance: Advance = silent,
    known: dict[int, float] | None = None,
) -> Scored:
    """Losses of the scored chunks of some pieces, in their order.

    Each chunk is predicted from the last ``window`` tokens, itself included, and from what the chunk before it recalls
    of its own piece (never what it recalls itself). Memory begins empty with every piece. ``known`` keeps the losses of
    chunks between calls: without memory, they do not depend on the piece.
    """
    wanted = [(start, number) for start, half, stop in pieces for number in range(half, stop)]
    known = {} if known is None or past is not None else known
    jobs = [job for job in wanted if job[1] not in known]
    for at in range(0, len(jobs), BATCH):
        some = jobs[at : at + BATCH]
        windows = [history.window(number, window) for _, number in some]
        rows = [
            None if past is None else past.recalled(start, seen.hidden, number)
            for (start, number), seen in zip(some, windows, strict=True)
        ]
        known |= zip((number for _, number in some), losses(model, windows, rows), strict=True)
        advance("scoring", at + len(some), len(jobs))
    tokens = [float(len(history.chunks[number])) for _, number in wanted]
    return Scored(np.array([known[number] for _, number in wanted]), np.array(tokens))


def perplexity(
    contenders: Sequence[Contender],
    document: Document,
    lengths: Sequence[int],
    *,
    window: int = 512,
    embedder: str | None = None,
    device: str | None = None,
    advance: Advance = silent,
) -> Result:
    """Perplexity per contender and length of history, and how much lower than the first contender's it is.

    The document is cut into pieces of each length, and the second half of every piece is scored. All contenders must
    share one tokenizer; all see the same local window. Rows: ``length``, ``contender``, ``perplexity``, ``nats``,
    ``saved`` (nats per token below the first contender, with its 95 % interval, paired by chunk), ``tokens`` scored,
    ``pieces``, and ``kv_bytes`` per token of history.

    Args:
        contenders: the first is what the others are compared with.
        document: a text that none of them was trained on.
        lengths: tokens of a piece, each more than twice the window.
        window: tokens in context, the predicted chunk included.
        embedder: None for each model's own hidden states, or the name of a sentence-transformers model.
        device: as torch names it.
        advance: told how far it is.

    Raises:
        InvalidInput: no contender, a length that the document does not have, or different tokenizers.
        ModelLoadError, UnsupportedModel: a model cannot be used.
    """
    if not contenders or not lengths or min(lengths) <= 2 * window:
        raise InvalidInput(f"give contenders, and lengths of more than twice the window of {window} tokens")
    found: dict[str, dict[int, Scored]] = {}
    bytes_per_token: dict[str, float] = {}
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    history: History | None = None
    for contender in contenders:
        model = load(contender, device)
        (mine,) = cut([document], model)
        if history is not None and mine.chunks != history.chunks:
            raise InvalidInput(f"{contender.name!r} has another tokenizer: perplexities per token cannot be compared")
        history = mine
        pieces = {length: spans(history, length) for length in lengths}
        if short := [length for length in lengths if not pieces[length]]:
            raise InvalidInput(f"the document has {history.n_tokens:,} tokens, too few for a history of {short[0]:,}")
        named = _named(advance, contender.name)
        past = None
        if contender.recipe is not None:
            past = Past(model, contender.recipe, get_embedder(embedder, model), history, named)
            bytes_per_token[contender.name] = past.kv_bytes / history.n_tokens
        known: dict[int, float] = {}
        found[contender.name] = {
            length: score(model, history, pieces[length], window, past, named, known) for length in lengths
        }
    first = found[contenders[0].name]
    rows = list(_rows(found, first, pieces, bytes_per_token))
    settings = {
        "document": document.name,
        "window": window,
        "embedder": embedder or "hidden states",
        "contenders": [f"{c.name}: {c.recipe!r}" for c in contenders],
    }
    return Result("perplexity", settings, rows, Plot("length", "perplexity", "contender", "Perplexity", log2=True))


def _rows(
    found: dict[str, dict[int, Scored]],
    first: dict[int, Scored],
    pieces: dict[int, list[tuple[int, int, int]]],
    bytes_per_token: dict[str, float],
) -> Iterator[Row]:
    for length in pieces:
        for name, scored in ((name, by_length[length]) for name, by_length in found.items()):
            saved, error = first[length].less(scored)
            compared = scored is not first[length]
            yield {
                "length": length,
                "contender": name,
                "perplexity": math.exp(scored.mean),
                "nats": scored.mean,
                "saved": saved if compared else None,
                "saved_low": saved - 1.96 * error if compared else None,
                "saved_high": saved + 1.96 * error if compared else None,
                "tokens": int(scored.tokens.sum()),
                "pieces": len(pieces[length]),
                "kv_bytes_per_token": bytes_per_token.get(name),
            }


def _named(advance: Advance, name: str) -> Advance:
    return lambda what, done, total: advance(f"{name}: {what}", done, total)


def as_memory(text: str) -> Memory:
    """A chunk of a document as a memory; when it was written does not matter here."""
    return Memory(
        id="chunk",
        scope=Scope(user="document"),
        text=text,
        role=Role.USER,
        turn="document",
        chunk_no=0,
        n_tokens=1,
        created_at=datetime(2000, 1, 1, tzinfo=UTC),
    )


def load(contender: Contender, device: str | None) -> LocalModel:
    """The contender's model.

    Raises:
        InvalidInput: it cannot serve the recipe.
        ModelLoadError, UnsupportedModel: it cannot be used.
    """
    model = LocalModel.load(contender.model or bundled_model(), device=device)
    if contender.recipe is not None:
        contender.recipe.check(model)
    return model

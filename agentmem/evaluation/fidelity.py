"""``agentmem eval fidelity``: how much an answer changes when KV is stored, and when it is read as a recipe does.

Design law 4. A few facts are stored as memories, a question is asked about one of them, and the logits at every token
of the right answer are compared.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from agentmem.errors import InvalidInput
from agentmem.evaluation.figures import wilson
from agentmem.evaluation.progress import Advance, silent
from agentmem.evaluation.result import Plot, Result, Row
from agentmem.llm import BUNDLED, bundled_model
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.stream import Stream, check_plan
from agentmem.reader import Reader
from agentmem.recipes import Recipe, StreamRecipe, get_recipe
from agentmem.records import Message, Role, Scope
from agentmem.retrieval import ModelEmbedder
from agentmem.store import EmbedderId, HotTier, ScopedMemories, Store
from agentmem.store.codec import CODECS, pack, unpack
from agentmem.training.facts import draw_relations, tell
from agentmem.writer import Turn, Writer

IN_PLACE = "in place"
"""Not a recipe: everything before the answer, read back at its own positions. It shows what storing alone changes."""


EXACT = "as computed"
"""Codec of a stream, whose blocks are kept in the dtype that they were computed in."""


@dataclass(frozen=True)
class Sample:
    """Facts to remember, a question about one of them, and its right answer."""

    facts: tuple[str, ...]
    question: str
    answer: str


@dataclass
class Difference:
    """How far logits are from those they should be, over many tokens."""

    largest: float = 0.0
    kl: list[float] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)

    def add(self, got: Tensor, want: Tensor) -> None:
        """Logits (tokens, vocab) of one sample."""
        got, want = got.double(), want.double()
        self.largest = max(self.largest, float((got - want).abs().max()))
        p, q = want.log_softmax(-1), got.log_softmax(-1)
        self.kl += (p.exp() * (p - q)).sum(-1).clamp(min=0.0).tolist()
        self.same += (got.argmax(-1) == want.argmax(-1)).tolist()

    def row(self, suffix: str = "") -> Row:
        """The mean KL divergence (nats), and the share of tokens whose likeliest successor is the same."""
        low, high = wilson(sum(self.same), len(self.same))
        share = sum(self.same) / len(self.same)
        names = (f"kl{suffix}", f"top_1{suffix}", f"top_1{suffix}_low", f"top_1{suffix}_high")
        return dict(zip(names, (sum(self.kl) / len(self.kl), share, low, high), strict=True))


def fidelity(
    model: str | Path | None = None,
    *,
    recipes: Sequence[str | Recipe | StreamRecipe] = ("parallel",),
    codecs: Sequence[str] = CODECS,
    samples: int = 16,
    memories: int = 4,
    seed: int = 0,
    advance: Advance = silent,
) -> Result:
    """Read memories from a store, and compare with the same KV never stored, and with the text in the context.

    ``logit_difference`` (the largest), ``kl`` and ``top_1`` compare KV read from disk with KV just encoded, read by the
    same recipe: what the codec costs. ``kl_to_text`` and ``top_1_to_text`` compare it with the memories' text in the
    prompt: what the recipe costs. A recipe of streams is stopped before the answer, reopened from the store, and
    compared with one that never stopped.

    Args:
        model: Folder or hub id; None is the bundled model.
        recipes: Names or instances.
        codecs: How KV is stored.
        samples: Questions asked.
        memories: Memories stored, and read, for each question.
        seed: Draws the facts.
        advance: Told how far it is.

    Raises:
        InvalidInput: an unknown codec or recipe, a number out of range, or a recipe that the model cannot serve.
        ModelLoadError, UnsupportedModel: see ``LocalModel.load``.
    """
    if samples < 1 or memories < 1:
        raise InvalidInput(f"samples ({samples}) and memories ({memories}) must be 1 or more")
    if unknown := [codec for codec in codecs if codec not in CODECS]:
        raise InvalidInput(f"unknown codecs {unknown}; choose from {', '.join(CODECS)}")
    chosen = [get_recipe(recipe) for recipe in recipes]
    local = LocalModel.load(bundled_model() if model is None or model == BUNDLED else model)
    for recipe in chosen:
        recipe.check(local)
    drawn = draw(samples, memories, seed)
    named = "bundled" if model is None else Path(model).name
    rows: list[Row] = []
    streams = sum(isinstance(recipe, StreamRecipe) for recipe in chosen)
    total = ((len(chosen) - streams + 1) * len(codecs) + streams) * samples
    contexts = [_in_context(local, sample) for sample in drawn]
    for codec in codecs:
        stored = Difference()
        for number, (sample, want) in enumerate(zip(drawn, contexts, strict=True), 1):
            stored.add(_in_place(local, sample, codec), want)
            advance("questions", len(rows) * samples + number, total)
        rows.append({"recipe": IN_PLACE, "codec": codec, "logit_difference": stored.largest, **stored.row()})
    for recipe in chosen:
        if isinstance(recipe, StreamRecipe):
            rows.append({"recipe": recipe.name, "codec": EXACT, **_measure_stream(local, recipe, drawn, contexts)})
            advance("questions", len(rows) * samples, total)
            continue
        for codec in codecs:
            rows.append({"recipe": recipe.name, "codec": codec, **_measure(local, recipe, codec, drawn, contexts)})
            advance("questions", len(rows) * samples, total)
    return Result(
        task="fidelity",
        settings={"model": named, "samples": samples, "memories": memories, "seed": seed},
        rows=rows,
        plot=Plot("codec", "kl", series="recipe", title="Divergence from the same KV, never stored (nats)"),
    )


def draw(samples: int, memories: int, seed: int) -> list[Sample]:
    """Facts with values held out of training, several to a memory, and a question about one."""
    rng = random.Random(f"fidelity {seed}")
    made = []
    for _ in range(samples):
        facts = tell(rng, draw_relations(rng, 3 * memories), "heldout")
        asked = rng.choice(facts)
        said = [fact.told(rng) for fact in facts]
        chunks = tuple(" ".join(said[start : start + 3]) for start in range(0, len(said), 3))
        made.append(Sample(chunks, asked.asked(rng), asked.answered()))
    return made


def _measure(
    model: LocalModel, recipe: Recipe, codec: str, samples: Sequence[Sample], contexts: Sequence[Tensor]
) -> Row:
    """One recipe and codec over all samples, through a store that was closed and opened again."""
    stored, text = Difference(), Difference()
    nbytes = tokens = 0
    with tempfile.TemporaryDirectory(prefix="agentmem-fidelity-") as folder:
        path = Path(folder) / "memory.db"
        with _writing(model, recipe, codec, path) as (store, writer):
            for number, sample in enumerate(samples):
                turns = [Turn(Role.USER, fact, None) for fact in sample.facts]
                writer.write(_memories(store, number), turns)
        with _writing(model, recipe, codec, path) as (store, writer):
            reader = Reader(writer, HotTier(0), top_k=len(samples[0].facts), threshold=None)
            for number, (sample, in_context) in enumerate(zip(samples, contexts, strict=True)):
                recalled = reader.recall(_memories(store, number), sample.question, exclude=())
                assert not recalled.rebuilt, "the KV was stored, and must come from there"
                found = [hit.memory for hit in recalled.hits]
                fresh = recipe.place(model, recipe.encode(model, found))
                ids, answer = _prompt(model, sample)
                from_disk = model.logits(ids, recalled.placed)[-answer:]
                stored.add(from_disk, model.logits(ids, fresh)[-answer:])
                text.add(from_disk, in_context)
                nbytes += sum(memory.kv_bytes for memory in found)
                tokens += sum(memory.n_tokens for memory in found)
    difference: Row = {"bytes_per_token": nbytes / tokens, "logit_difference": stored.largest}
    return {**difference, **stored.row(), **text.row("_to_text")}


def _measure_stream(
    model: LocalModel, recipe: StreamRecipe, samples: Sequence[Sample], contexts: Sequence[Tensor]
) -> Row:
    """A stream over all samples, each stored before the answer and gone on with."""
    stored, text = Difference(), Difference()
    nbytes = tokens = 0
    plan = recipe.plan(model)
    layout = check_plan(model, plan)
    sizes = {"record_bytes": max(1, layout.record_bytes), "index_bytes": layout.index_bytes}
    with tempfile.TemporaryDirectory(prefix="agentmem-fidelity-") as folder, Store.open(Path(folder) / "s.db") as store:
        for number, (sample, in_context) in enumerate(zip(samples, contexts, strict=True)):
            ids, answer = _prompt(model, sample, "\n".join(sample.facts))
            handle, before = _memories(store, number), Stream(model, plan, layout=layout)
            before.feed(ids[:-answer])
            with handle.open_stream("stream", fingerprint=recipe.identity, **sizes) as kept:
                stopped = Stream(model, plan, kept, layout=layout)
                stopped.feed(ids[:-answer])
                kept.commit(tail := stopped.tail(), stopped.n_tokens, {})
                nbytes += kept.n_records * layout.record_bytes + len(tail)
                tokens += stopped.n_tokens
            with handle.open_stream("stream", fingerprint=recipe.identity, **sizes) as kept:
                opened = Stream(model, plan, kept, layout=layout)
                opened.restore(bytes(kept.tail() or b""), bytes(kept.index()))
                from_disk = opened.feed(ids[-answer:], all_logits=True)
            stored.add(from_disk, before.feed(ids[-answer:], all_logits=True))
            text.add(from_disk, in_context)
    difference: Row = {"bytes_per_token": nbytes / tokens, "logit_difference": stored.largest}
    return {**difference, **stored.row(), **text.row("_to_text")}


@contextmanager
def _writing(model: LocalModel, recipe: Recipe, codec: str, path: Path) -> Iterator[tuple[Store, Writer]]:
    embedder = ModelEmbedder(model)
    with Store.open(path, embedder=EmbedderId(embedder.name, embedder.dim, embedder.noise)) as store:
        writer = Writer(model, recipe, embedder, codec)
        yield store, writer
        writer.flush()
        writer.close(60.0)


def _memories(store: Store, number: int) -> ScopedMemories:
    return store.scope(Scope(user=f"sample-{number}"))


def _prompt(model: LocalModel, sample: Sample, told: str = "") -> tuple[list[int], int]:
    """Ids of the dialogue up to the answer's last token but one, and how many of them predict the answer."""
    messages = [Message(role=Role.SYSTEM, content=told)] if told else []
    answer = model.chat.encode(sample.answer)
    ids = model.chat.render([*messages, Message(role=Role.USER, content=sample.question)]) + answer
    return ids[:-1], len(answer)


def _in_context(model: LocalModel, sample: Sample) -> Tensor:
    """Logits of the answer with the memories' text in the prompt."""
    ids, answer = _prompt(model, sample, "\n".join(sample.facts))
    return model.logits(ids)[-answer:]


def _in_place(model: LocalModel, sample: Sample, codec: str) -> Tensor:
    """The same, with everything up to the answer read back from its stored bytes, at its own positions."""
    ids, answer = _prompt(model, sample, "\n".join(sample.facts))
    before = model.encode(ids[:-answer])
    read = KV(*unpack(pack(before.keys, before.values, codec, layers=before.layers, offsets=before.offsets)))
    return model.logits(ids[-answer:], model.place([read], [-read.n_tokens], windowed=True))

"""Memories of every recipe and family: written to real stores by one process, read from them by another.

``python matrix_world.py FOLDER`` is the other one: it opens the stores that ``write`` filled, recalls, and
leaves the logits and the order of what it read in ``FOLDER``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import FAMILIES, local, some_ids

from agentmem.model.local import LocalModel
from agentmem.model.stream import Stream
from agentmem.model.stream.layout import check_plan
from agentmem.reader import Reader
from agentmem.recipes import InfLLM, LMInfinite, MemLong, Memory3, Parallel, Recipe, StreamingLLM, StreamRecipe
from agentmem.records import Role, Scope
from agentmem.retrieval import ModelEmbedder
from agentmem.store import EmbedderId, HotTier, ScopedMemories, Store, StoredStream
from agentmem.writer import Turn, Writer

CASES: dict[str, Recipe] = {
    "parallel": Parallel(),
    "parallel-ape": Parallel(temperature=0.9, scale=0.8),
    "memlong": MemLong(),
    "memlong-contiguous": MemLong(memory_layer=1, retrieval_layers=(1, 3), positions="contiguous", top_k=3),
    "memory3": Memory3(),
    "memory3-shortcut": Memory3(layers=(1, 2), keep=5, score="unnormalised", interval=32),
    "memory3-dense": Memory3(keep=None),
}
"""Recipes with the settings that a model of four layers and 128 positions can show."""
TEXTS = ("Mydog:Biscut,3kR!", "Ilve@OsN0-byth,a?", "Train:48=ghost/mbedk")
"""No character twice: in the lowest layer, and without positions, equal tokens have equal keys, and which of them
memory3 keeps would be a matter of rounding."""
SMALL = {"n_init": 4, "n_local": 40, "step": 12}
BLOCKS = {**SMALL, "block_size": 8, "top_k": 3, "n_repr": 2}
STREAMS: dict[str, StreamRecipe] = {
    "infllm": InfLLM(**BLOCKS),
    "infllm-paper": InfLLM(**BLOCKS, representatives="product", selection="all_heads", cache_policy="lru"),
    "streaming-llm": StreamingLLM(**SMALL),
    "lm-infinite": LMInfinite(**SMALL),
}
"""A window of 40 tokens, so that a text of 130 has ten blocks behind it."""
STREAM_CASES = [(case, family) for case in STREAMS for family in FAMILIES if family != "mistral"]
"""All but the family whose layers all have a window of their own, of 16 tokens: no stream can show them more."""
STREAM, CUT = tuple(some_ids(130, 7)), 65
"""Tokens of a stream, and how many of them the first process reads."""
QUESTION = "Which dog?"
DAY = datetime(2026, 5, 4, tzinfo=UTC)


@contextmanager
def _writers(folder: Path, case: str) -> Iterator[Iterator[tuple[str, LocalModel, Writer, ScopedMemories]]]:
    """For each family, what writes and reads its memories: all in one store, each in a scope of its own."""
    embedder = ModelEmbedder(local("llama"))
    identity = EmbedderId(embedder.name, embedder.dim, embedder.noise)
    with Store.open(folder / "memory.db", embedder=identity) as store:

        def each() -> Iterator[tuple[str, LocalModel, Writer, ScopedMemories]]:
            for family in FAMILIES:
                writer = Writer(local(family), CASES[case], embedder, "fp32")
                yield family, writer.model, writer, store.scope(Scope(user=family, agent=case))
                assert writer.close(60.0) == 0

        yield each()


def write(folder: Path, case: str) -> None:
    """The texts as memories of each family, with their KV on disk."""
    with _writers(folder, case) as writers:
        for family, _, writer, memories in writers:
            turns = [
                Turn(
                    Role.USER, text, "told", id=f"{case}-{family}-{number}", created_at=DAY + timedelta(minutes=number)
                )
                for number, text in enumerate(TEXTS)
            ]
            writer.write(memories, turns)


def read(folder: Path, case: str) -> None:
    """Recall everything from disk, and answer."""
    logits: dict[str, torch.Tensor] = {}
    read: dict[str, list[str]] = {}
    with _writers(folder, case) as writers:
        for family, model, writer, memories in writers:
            reader = Reader(writer, HotTier(2**20), top_k=len(TEXTS), threshold=None)
            recalled = reader.recall(memories, QUESTION, exclude=())
            assert not recalled.rebuilt, f"{case}, {family}: KV was not on disk"
            logits[family] = model.logits(model.chat.encode(QUESTION), recalled.placed)
            read[family] = [hit.memory.text for hit in recalled.hits]
    save_file(logits, folder / f"{case}.safetensors")
    (folder / f"{case}.json").write_text(json.dumps(read), encoding="utf-8")


@contextmanager
def _stream(store: Store, case: str, family: str) -> Iterator[tuple[Stream, StoredStream]]:
    """The stream that is stored for this case and family, restored, or a new one."""
    model, recipe = local(family), STREAMS[case]
    plan = recipe.plan(model)
    layout = check_plan(model, plan)
    kept = store.scope(Scope(user=family)).open_stream(
        case,
        fingerprint=model.kv_fingerprint(recipe.identity),
        record_bytes=max(1, layout.record_bytes),
        index_bytes=layout.index_bytes,
    )
    with kept:
        stream = Stream(model, plan, kept)
        if (tail := kept.tail()) is not None:
            stream.restore(tail, kept.index())
        yield stream, kept


def write_streams(folder: Path) -> None:
    """The beginning of every stream, committed."""
    with Store.open(folder / "streams.db") as store:
        for case, family in STREAM_CASES:
            with _stream(store, case, family) as (stream, kept):
                stream.feed(STREAM[:CUT])
                kept.commit(stream.tail(), stream.n_tokens, {})


def read_streams(folder: Path) -> None:
    """The rest of every stream, by a process that has only the store."""
    logits = {}
    with Store.open(folder / "streams.db") as store:
        for case, family in STREAM_CASES:
            with _stream(store, case, family) as (stream, kept):
                assert (kept.why_empty, stream.n_tokens) == (None, CUT)
                logits[f"{case}.{family}"] = stream.feed(STREAM[CUT:], all_logits=True)
    save_file(logits, folder / "streams.safetensors")


if __name__ == "__main__":
    for name in CASES:
        read(Path(sys.argv[1]), name)
    read_streams(Path(sys.argv[1]))

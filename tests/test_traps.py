"""The fourteen traps that the public code of MemLong, InfLLM, Memory3 and their kin fell into: one test for each.

Most of them are the subject of files of their own; here each is shown directly, on real parts, for every recipe where
it concerns the recipe. In brackets, whose trap it was.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from agentmem import EvictionPolicy, InvalidInput, MemLong, Memory, MemoryLLM, Message, Role, Scope, StoreOpenError
from agentmem.chunking import chunk_text
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.model.softmax import Segment, mix
from agentmem.recipes import RECIPES, STREAM_RECIPES, InfLLM, Memory3, memory_recipe
from agentmem.store import EmbedderId, NewKV, NewMemory, ScopedMemories, Store, text_digest
from agentmem.store.codec import pack, unpack
from tests.model import tiny_models

TOLD = ("The boat is blue.", "The house by the sea is old.", "The road to the north is long.", "The night is cold.")
ASKED = "Tell me about the boat."
ADA = Scope(user="ada")


def memories(texts: tuple[str, ...] = TOLD) -> list[Memory]:
    """Memories as a store would hand them out."""
    at = datetime(2026, 5, 4, tzinfo=UTC)
    return [
        Memory(
            id=str(n), scope=ADA, text=text, role=Role.USER, turn=str(n), chunk_no=0, n_tokens=len(text), created_at=at
        )
        for n, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with grouped queries: four heads, two of keys and values."""
    path = tmp_path_factory.mktemp("qwen3")
    tiny_models.build("qwen3").save_pretrained(path)
    tiny_models.tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def model() -> LocalModel:
    return tiny_models.local("qwen3")


@pytest.fixture(params=sorted(RECIPES))
def name(request: pytest.FixtureRequest) -> str:
    """Every recipe's name."""
    return request.param


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Iterator[Callable[..., MemoryLLM]]:
    """Opens the tiny model, which talks to its limit, with a store; closes it in the end."""
    made: list[MemoryLLM] = []

    def open_(**options: Any) -> MemoryLLM:
        llm = MemoryLLM(**{"model": folder, "store": tmp_path / "memory.db", "threshold": None, **options})
        llm.model.chat.stop_ids = frozenset()
        made.append(llm)
        return llm

    yield open_
    for llm in made:
        llm.close()


def tell(llm: MemoryLLM, texts: tuple[str, ...] = TOLD) -> None:
    """Memories with their KV on disk."""
    ada = llm.conversation(user="ada")
    for text in texts:
        ada.memories.add(text)
    assert llm.flush(60)


# 1 --------------------------------------------------------------------------------- in-place mutation (MemLong, MemOS)


def test_1_reading_and_generating_never_write_to_stored_tensors(model: LocalModel, name: str) -> None:
    recipe = memory_recipe(name)
    kvs = recipe.encode(model, memories())
    before = [tensor.clone() for kv in kvs for tensor in (*kv.keys, *kv.values)]
    for _ in range(2):  # a rotation in place would show at the second reading at the latest
        placed = recipe.place(model, kvs)
        assert model.generate(model.chat.encode(ASKED), placed=placed, max_new_tokens=8).text
    assert all(kv.intact for kv in kvs)
    after = [tensor for kv in kvs for tensor in (*kv.keys, *kv.values)]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_1_every_reading_layer_of_memlong_sees_the_same_positions(model: LocalModel) -> None:
    """The published code rotates one shared tensor again for each layer: 1, 2, 3 times the angle."""
    recipe = MemLong(memory_layer=1, retrieval_layers=(1, 2, 3), positions="contiguous", top_k=3)
    placed = recipe.place(model, recipe.encode(model, memories(TOLD[:3])))
    first, second, third = (placed.keys[layer] for layer in (1, 2, 3))
    assert first is not None
    assert second is not None
    assert third is not None
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(third, first)


# 2 ---------------------------------------------------------------- merging caches: new positions, and a length (MemOS)


def test_2_merged_memories_are_rotated_anew_and_all_of_them_are_read(model: LocalModel) -> None:
    one, two = tiny_models.some_ids(9, 1), tiny_models.some_ids(7, 2)
    kvs = model.encode_batch([one, two])
    placed = model.place([KV.join(kvs)], [-16])
    assert placed.n_tokens == 16
    for layer, key in enumerate(placed.keys):
        assert key is not None
        own = model.rotary.rotate(layer, kvs[1].keys[layer], torch.arange(-7, 0))
        torch.testing.assert_close(key[:, 9:], own)
        stale = model.rotary.rotate(layer, kvs[1].keys[layer], torch.arange(7))
        assert (key[:, 9:] - stale).abs().max() > 0.1
    with model.reading(model.place(kvs, [-16, -7])) as reader:
        model.model(input_ids=torch.tensor([tiny_models.some_ids(5)]), use_cache=False)
    ((_, shares),) = reader.shares
    assert (shares > 0).all(), "a merged cache whose length was not counted gives its second part no attention"


# 3 --------------------------------------------------------------------- a fingerprint on every record (MemOS, Memory3)


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.k_proj.weight"][0, 0] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _other_rope(folder: Path) -> None:
    config = (folder / "config.json").read_text(encoding="utf-8")
    assert '"rope_theta": 10000.0' in config
    (folder / "config.json").write_text(
        config.replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'), encoding="utf-8"
    )


def _other_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "\n", encoding="utf-8")


@pytest.mark.parametrize("change", [_other_weights, _other_rope, _other_template, "recipe"])
def test_3_kv_of_another_model_or_recipe_is_never_read(
    opened: Callable[..., MemoryLLM], folder: Path, tmp_path: Path, change: Callable[[Path], None] | str
) -> None:
    tell(opened(recipe="parallel"))
    if isinstance(change, str):
        llm = opened(recipe=Memory3(keep=None, layers=(0, 1, 2, 3)))  # the same shapes, another prefix
    else:
        other = tmp_path / "other"
        other.mkdir()
        for file in folder.iterdir():
            (other / file.name).write_bytes(file.read_bytes())
        change(other)
        llm = opened(model=other, recipe="parallel")
    reply = llm.conversation(user="ada").chat(ASKED, max_new_tokens=2)
    assert len(reply.memories) == len(TOLD)
    assert all(read.rebuilt for read in reply.memories)
    assert any("another model or recipe" in note for note in reply.notes)


# 4 --------------------------------------------------------------- no pickle, and no error that empties a store (MemOS)


def test_4_a_store_that_cannot_be_read_is_an_error_and_is_left_alone(
    opened: Callable[..., MemoryLLM], tmp_path: Path
) -> None:
    path = tmp_path / "memory.db"
    llm = opened()
    tell(llm)
    llm.close()
    broken = bytearray(path.read_bytes())
    broken[:16] = b"\x80\x04not a database"[:16].ljust(16, b".")
    path.write_bytes(bytes(broken))
    with pytest.raises(StoreOpenError):
        opened()
    assert path.read_bytes() == bytes(broken)


def test_4_a_payload_is_tensors_and_json(model: LocalModel, name: str) -> None:
    (kv,) = memory_recipe(name).encode(model, memories(TOLD[:1]))
    data = pack(kv.keys, kv.values, "bf16", layers=kv.layers, offsets=kv.offsets)
    assert data[8:9] == b"{"  # safetensors: a length, then JSON, then the tensors' bytes
    assert KV(*unpack(data)).layers == kv.layers


# 5 ------------------------------------------------------------------------- the index on disk is found again (LMCache)

_WRITE_AND_DIE = """
import os, signal, sys
from agentmem import MemoryLLM
for recipe in sys.argv[3].split(","):
    llm = MemoryLLM(sys.argv[1], store=f"{sys.argv[2]}/{recipe}.db", recipe=recipe)
    ada = llm.conversation(user="ada")
    for text in sys.argv[4:]:
        ada.memories.add(text)
    assert llm.flush(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for each recipe, open when their process was killed."""
    path = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", _WRITE_AND_DIE, str(folder), str(path), ",".join(RECIPES), *TOLD]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    return path


def test_5_what_a_killed_process_had_stored_is_found_and_read_from_disk(
    opened: Callable[..., MemoryLLM], killed: Path, name: str
) -> None:
    llm = opened(recipe=name, store=killed / f"{name}.db")
    reply = llm.conversation(user="ada").chat(ASKED, max_new_tokens=2)
    assert {read.memory.text for read in reply.memories} == set(TOLD)
    assert not any(read.rebuilt for read in reply.memories)


def test_5_a_lost_index_is_found_out_and_rebuilt_from_the_tables(
    opened: Callable[..., MemoryLLM], tmp_path: Path
) -> None:
    llm = opened()
    tell(llm)
    with closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
        connection.execute("DELETE FROM fts_memory_1")
        connection.commit()
    report = llm.store.verify(repair=True)
    assert {problem.kind for problem in report.problems} == {"text_index"}
    assert report.ok
    hits = llm.store.scope(ADA).search("boat", None, top_k=1, threshold=None)
    assert [hit.memory.text for hit in hits] == [TOLD[0]]


# 6 ---------------------------------------------------------------------------------- grouped queries (MemLong, InfLLM)


def test_6_kv_heads_are_stored_and_their_queries_share_them(model: LocalModel, name: str) -> None:
    recipe = memory_recipe(name)
    kvs = recipe.encode(model, memories())
    assert {key.shape[0] for kv in kvs for key in (*kv.keys, *kv.values)} == {model.config.num_key_value_heads}
    assert model.config.num_attention_heads == 2 * model.config.num_key_value_heads
    ids = model.chat.encode(ASKED)
    read = model.logits(ids, recipe.place(model, kvs))
    assert torch.isfinite(read).all()
    assert (read - model.logits(ids)).abs().max() > 0.01


# 7 ---------------------------------------------------------------------------- the model's own rotary scaling (InfLLM)


@pytest.mark.parametrize("family", ["llama_llama3", "llama_yarn", "phi3_longrope"])
def test_7_keys_are_moved_with_the_models_own_rotary_scaling(family: str) -> None:
    model = tiny_models.local(family)
    kv = model.encode(tiny_models.some_ids(12))
    placed = model.place([kv], [30])
    rotary, positions = model.model.base_model.rotary_emb, torch.arange(30, 42)[None]
    cos, sin = (table[0] for table in rotary(torch.zeros(1), positions))
    private = torch.outer(torch.arange(30.0, 42.0), 10000.0 ** -(torch.arange(8) / 8)).repeat(1, 2)
    for key, bare in zip(placed.keys, kv.keys, strict=True):
        assert key is not None
        torch.testing.assert_close(key, _turned(bare, cos, sin), atol=1e-5, rtol=1e-4)
        assert (key - _turned(bare, private.cos(), private.sin())).abs().max() > 0.1


def _turned(keys: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = keys.chunk(2, -1)
    return keys * cos + torch.cat((-second, first), -1) * sin


# 8 ------------------------------------------------------- merging by log-sum-exp is one softmax (MemLong's flash path)


@given(seed=st.integers(0, 2**31), memory=st.integers(1, 9), context=st.integers(1, 9), softcap=st.booleans())
def test_8_merged_segments_are_one_softmax(seed: int, memory: int, context: int, softcap: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, 3, 8, generator=generator)
    keys, values = (torch.randn(1, 2, memory + context, 8, generator=generator) for _ in range(2))
    cap = 5.0 if softcap else None
    parts = [Segment(keys[:, :, :memory], values[:, :, :memory]), Segment(keys[:, :, memory:], values[:, :, memory:])]
    got = mix(query, parts, 0.5, cap).output
    logits = query.double() @ keys.double().repeat_interleave(2, 1).transpose(2, 3) * 0.5
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    whole = values.double().repeat_interleave(2, 1)
    torch.testing.assert_close(got.double(), logits.softmax(-1) @ whole, atol=1e-5, rtol=1e-4)
    apart = sum(logits[..., part].softmax(-1) @ whole[:, :, part] for part in (slice(memory), slice(memory, None)))
    assert (got.double() - apart).abs().max() > 1e-3, (
        "two softmaxes added, as the published code does, are another thing"
    )


# 9 ----------------------------------------------------------------- no sink inside a memory (Memory3, Block-Attention)


def test_9_what_stands_before_every_memory_is_in_none_of_them(model: LocalModel, name: str) -> None:
    recipe = memory_recipe(name)
    texts = {"parallel": "[user 2026-05-04] {}\n", "memlong": "{}", "memory3": " {}"}
    prefixes = {"memory3": (*model.chat.prefix_ids, *model.chat.encode("Reference:"))}
    prefix = prefixes.get(name, model.chat.prefix_ids)
    for memory, kv in zip(memories(), recipe.encode(model, memories()), strict=True):
        ids = model.chat.encode(texts[name].format(memory.text))
        whole = model.encode([*prefix, *ids]).slice(len(prefix), len(prefix) + len(ids)).only(kv.layers)
        if kv.offsets is not None:
            whole = whole.pick(kv.offsets)
        else:
            assert kv.n_tokens == len(ids)
        for got, want in zip((*kv.keys, *kv.values), (*whole.keys, *whole.values), strict=True):
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# 10 ------------------------------------------------------------------------------------- recall has a stride (MemLong)


def test_10_recall_runs_once_a_stride_and_not_for_every_token(
    opened: Callable[..., MemoryLLM], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = opened(recipe=name)
    tell(llm)
    asked: list[str] = []
    search = ScopedMemories.search

    def counted(self: ScopedMemories, text: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(text)
        return search(self, text, *args, **kwargs)

    monkeypatch.setattr(ScopedMemories, "search", counted)
    new = 130
    reply = llm.conversation(user="ada").chat(ASKED, max_new_tokens=new)
    assert reply.usage.completion_tokens == new
    prompt = 1 if llm.recipe.prompt_stride is None else -(-reply.usage.prompt_tokens // llm.recipe.prompt_stride)
    assert len(asked) == prompt + (new - 1) // llm.recipe.stride


# 11 ------------------------------------------------------------ eviction keeps text, vectors and KV together (MemLong)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=12, max_size=18), seed=st.integers(0, 99))
def test_11_after_an_eviction_every_text_still_has_its_own_vector_and_kv(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(lengths), 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    policy = EvictionPolicy(order="memlong", space_memories=10)
    at = datetime(2026, 5, 4, tzinfo=UTC)
    with Store.open(":memory:", embedder=EmbedderId("test", 8), eviction=policy) as store:
        handle = store.scope(ADA)
        for number, length in enumerate(lengths):  # a token's key holds the number of its chunk
            (memory,) = handle.add(
                [
                    NewMemory(
                        text=f"word{number} " * length,
                        role=Role.USER,
                        turn=str(number),
                        n_tokens=length,
                        embedding=vectors[number],
                        created_at=at + timedelta(minutes=number),
                        id=str(number),
                    )
                ]
            )
            tensors = [torch.full((2, length, 4), float(number))]
            handle.attach_kv_many(
                [NewKV(memory.id, pack(tensors, tensors, "fp32"), "fp32", text_digest(memory.text))],
                fingerprint="model",
            )
            left = handle.list(limit=100)
            handle.record_uses([(left[rng.integers(len(left))].id, 0.5)], turn=str(number))
        left = handle.list(limit=100)
        assert 0 < len(left) <= 10
        loaded = handle.load_kv([memory.id for memory in left], fingerprint="model").payloads
        for memory in left:
            number, kv = int(memory.id), KV(*unpack(loaded[memory.id].data))
            assert memory.text.split() == [f"word{number}"] * lengths[number]
            assert kv.n_tokens == memory.n_tokens == lengths[number]
            assert (kv.keys[0] == number).all()
            (hit,) = handle.search("", vectors[number], top_k=1, threshold=None)
            assert hit.memory.id == memory.id
        assert store.verify().problems == ()


# 12 ------------------------------------------------------------------------------- nothing is cut in silence (MemLong)


@given(st.text(alphabet="ab .\n", min_size=1, max_size=2000).filter(str.strip))
def test_12_chunks_hold_all_of_a_long_text(text: str) -> None:
    chunks = chunk_text(text, lambda piece: [(n, n + 1) for n in range(len(piece))])
    assert "".join("".join(chunk.text for chunk in chunks).split()) == "".join(text.split())


def test_12_what_the_window_cannot_hold_is_memory_and_what_is_cut_is_said(
    opened: Callable[..., MemoryLLM], name: str
) -> None:
    llm = opened(recipe=name, window_tokens=160)
    said = [
        Message(role=role, content=f"{number}: {text}")
        for number, text in enumerate(TOLD)
        for role in (Role.USER, Role.ASSISTANT)
    ]
    talk = llm.conversation(user="ada")
    reply = talk.chat([*said, Message(role=Role.USER, content=ASKED)], max_new_tokens=2)
    assert reply.usage.prompt_tokens <= 160
    assert {message.content for message in said} <= {memory.text for memory in talk.memories.list()}

    long = " ".join(f"The boat number {number} is blue." for number in range(20))
    alone = llm.conversation(user="bob")
    reply = alone.chat(long, max_new_tokens=2)
    assert any("longer than the window" in note for note in reply.notes)
    kept = "".join(memory.text for memory in alone.memories.list(role=Role.USER, sort="created_at"))
    assert kept.split() == long.split()


def test_12_what_the_model_cannot_take_is_refused(model: LocalModel) -> None:
    too_long = tiny_models.some_ids(model.max_positions + 1)
    with pytest.raises(InvalidInput, match="513 tokens"):
        model.encode(too_long)
    with pytest.raises(InvalidInput, match="positions"):
        model.generate(too_long[:-8], max_new_tokens=64)


# 13 ------------------------------------------------------- more blocks than cache slots (InfLLM's 12k configuration)


def test_13_more_blocks_than_the_hot_cache_has_slots_are_refused_when_the_model_is_opened(
    folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "memory.db"
    with pytest.raises(InvalidInput, match=r"top_k \(64\) exceeds cached_blocks \(32\)"):
        MemoryLLM(folder, store=path, recipe=InfLLM(top_k=64, cached_blocks=32))
    assert not path.exists()
    assert InfLLM(top_k=64).plan(tiny_models.local("qwen3")).cached_blocks == 128  # by default twice as many


# 14 ------------------------------------------------------------------------------------ an empty store changes nothing


@pytest.mark.parametrize("name", sorted([*RECIPES, *STREAM_RECIPES]))
def test_14_with_an_empty_store_every_recipe_is_the_plain_model_bit_for_bit(
    opened: Callable[..., MemoryLLM], name: str
) -> None:
    llm = opened(recipe=name)
    ids = llm.model.chat.render([Message(role=Role.USER, content=ASKED)])
    plain = llm.model.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    with torch.no_grad():
        want = llm.model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    reply = llm.conversation(user="nobody").chat(ASKED, max_new_tokens=24)
    assert reply.memories == ()
    assert reply.text == llm.model.tokenizer.decode(plain, skip_special_tokens=True).strip()
    assert torch.equal(llm.model.logits(ids), want)
    with llm.model.reading(None), torch.no_grad():
        assert torch.equal(llm.model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0], want)

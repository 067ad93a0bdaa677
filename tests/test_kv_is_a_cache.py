"""Law 1 end to end: KV that is missing, damaged or another model's is rebuilt from text, and the reply says so."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agentmem import EvictionPolicy, MemoryLLM, Reply, Tier
from agentmem.llm import bundled_model


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store in which Ada told one fact, closed."""
    path = tmp_path / "memory.db"
    with MemoryLLM(store=path) as llm:
        llm.conversation(user="ada").chat("My dog is called Biscuit.")
    return path


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    """The bundled model with slightly other weights: another model, that still answers."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bundled_model().iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * (1 + 1e-4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def ask(path: Path, **options: object) -> Reply:
    with MemoryLLM(store=path, **options) as llm:  # type: ignore[arg-type]
        return llm.conversation(user="ada").chat("What is my dog called?")


def payloads(path: Path) -> list[tuple[bytes, bytes]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT sha256, data FROM kv_payload ORDER BY memory_id").fetchall()


def test_kv_from_disk_is_used_as_it_is(store: Path) -> None:
    before = payloads(store)
    reply = ask(store)
    assert reply.text == "Your dog is called Biscuit."
    assert not any(read.rebuilt for read in reply.memories)
    assert reply.notes == ()
    assert payloads(store)[: len(before)] == before  # reading and generating changed nothing


def test_a_flipped_bit_is_found_and_made_good(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        ((rowid, data),) = connection.execute("SELECT rowid, data FROM kv_payload ORDER BY rowid LIMIT 1")
        broken = bytearray(data)
        broken[len(broken) // 2] ^= 1
        connection.execute("UPDATE kv_payload SET data = ? WHERE rowid = ?", (bytes(broken), rowid))
        connection.commit()
    with MemoryLLM(store=store) as llm:
        problems = llm.conversation(user="ada").memories.verify().problems
        assert [problem.kind for problem in problems] == ["payload"]
        reply = llm.conversation(user="ada").chat("What is my dog called?")
        assert reply.text == "Your dog is called Biscuit."
        assert sum(read.rebuilt for read in reply.memories) == 1
        assert any("checksum" in note for note in reply.notes)
        assert llm.flush(60)
        assert llm.conversation(user="ada").memories.verify().problems == ()


def test_a_truncated_payload_is_made_good(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("UPDATE kv_payload SET data = substr(data, 1, length(data) / 2)")
        connection.commit()
    reply = ask(store)
    assert reply.text == "Your dog is called Biscuit."
    assert all(read.rebuilt for read in reply.memories)


def test_a_store_written_by_another_model_works_and_says_so(store: Path, other_model: Path) -> None:
    reply = ask(store, model=other_model)
    assert reply.text == "Your dog is called Biscuit."
    assert all(read.rebuilt for read in reply.memories)
    assert any("another model" in note for note in reply.notes)
    again = ask(store, model=other_model)
    old = {read.memory.id for read in reply.memories}
    assert not any(read.rebuilt for read in again.memories if read.memory.id in old)


def test_both_models_keep_their_own_kv(store: Path, other_model: Path) -> None:
    ask(store, model=other_model)
    reply = ask(store)
    assert reply.text == "Your dog is called Biscuit."
    told = [read for read in reply.memories if "Biscuit" in read.memory.text]
    assert any(not read.rebuilt for read in told)


def test_evicted_kv_is_encoded_again_at_the_next_recall(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    policy = EvictionPolicy(space_kv_bytes=1, grace=timedelta(0))
    with MemoryLLM(store=path, eviction=policy) as llm:
        ada = llm.conversation(user="ada")
        ada.chat("My dog is called Biscuit.")
        llm.flush(60)
        assert {memory.tier for memory in ada.memories.list()} == {Tier.COLD}
        reply = llm.conversation(user="ada").chat("What is my dog called?")
        assert reply.text == "Your dog is called Biscuit."
        assert all(read.rebuilt for read in reply.memories)


@pytest.fixture(params=["fp32", "fp16", "bf16", "int8"])
def codec(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_codec_answers_from_disk(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "memory.db"
    with MemoryLLM(store=path, codec=codec) as llm:
        llm.conversation(user="ada").chat("My wifi password is K7-402.")
    with MemoryLLM(store=path, codec=codec) as llm:
        reply = llm.conversation(user="ada").chat("What is my wifi password?")
    assert reply.text == "Your wifi password is K7-402."
    assert not any(read.rebuilt for read in reply.memories)


def test_fp32_kv_from_disk_gives_the_logits_of_fresh_kv(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "memory.db", codec="fp32") as llm:
        ada = llm.conversation(user="ada")
        (memory,) = ada.memories.add("My dog is called Biscuit.")
        assert llm.flush(60)
        stored = llm.reader.recall(llm.store.scope(ada.memories.scope), "dog", ())
        fresh = llm.recipe.place(llm.model, llm.recipe.encode(llm.model, [memory]))
        prompt = llm.model.chat.encode("What is my dog called?")
        assert not stored.rebuilt
        assert torch.equal(llm.model.logits(prompt, stored.placed), llm.model.logits(prompt, fresh))


def test_kv_that_cannot_be_encoded_leaves_a_cold_memory_that_is_still_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "memory.db"

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, MemoryLLM(store=path) as llm:
        patch.setattr(type(llm.recipe), "encode", fail)
        ada = llm.conversation(user="ada")
        ada.memories.add("My dog is called Biscuit.")
        assert llm.flush(60)
        assert [memory.tier for memory in ada.memories.list()] == [Tier.COLD]
    assert "KV of 1 memories was not stored: out of memory" in caplog.text
    reply = ask(path)
    assert reply.text == "Your dog is called Biscuit."
    assert [read.rebuilt for read in reply.memories] == [True]

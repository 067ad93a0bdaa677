"""Exports with their KV: byte-identical after a round trip through either engine; what is damaged is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import servers
from safetensors.numpy import load_file
from store_world import ADA, BOB, EMBEDDER, Where, attach, new

from agentmem.errors import InvalidInput
from agentmem.store import ScopedMemories, Store
from agentmem.store.payloads import INLINE_MAX, PayloadFiles

LARGE = bytes(range(256)) * (INLINE_MAX // 256 + 1)


def fill(handle: ScopedMemories) -> None:
    memories = handle.add([new(f"apple {n}", id=str(n), session="s", tags=("é",), meta={"n": [n]}) for n in range(5)])
    attach(handle, memories[0], b"small")
    attach(handle, memories[1], LARGE)
    attach(handle, memories[1], b"of another model", "model-b")
    handle.record_uses([("2", 0.7)], turn="t")
    handle.pin("3")


def loaded(handle: ScopedMemories, fingerprint: str = "model-a") -> dict[str, bytes]:
    found = handle.load_kv([str(n) for n in range(5)], fingerprint=fingerprint).payloads
    return {id: bytes(payload.data) for id, payload in found.items()}


def test_what_went_through_another_store_is_exported_byte_for_byte(
    store: Store, ada: ScopedMemories, tmp_path: Path, backend: str
) -> None:
    fill(ada)
    assert ada.export(tmp_path / "one.jsonl", kv=True) == 5
    other: Where = servers.empty_database() if backend == "sqlite" else tmp_path / "other.db"
    with Store.open(other, embedder=EMBEDDER) as second:
        bob = second.scope(BOB)
        assert bob.load(tmp_path / "one.jsonl") == 5
        assert loaded(bob) == {"0": b"small", "1": LARGE}
        assert loaded(bob, "model-b") == {"1": b"of another model"}
        assert bob.load(tmp_path / "one.jsonl") == 0
        assert second.verify().ok
        bob.export(tmp_path / "two.jsonl", kv=True)
    for suffix in (".jsonl", ".safetensors"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


def test_the_kv_is_a_safetensors_file(ada: ScopedMemories, tmp_path: Path) -> None:
    fill(ada)
    ada.export(tmp_path / "x.jsonl", kv=True)
    tensors = load_file(tmp_path / "x.safetensors")
    assert [tensors[str(n)].tobytes() for n in range(3)] == [b"small", LARGE, b"of another model"]


def test_kv_goes_to_memories_of_the_same_text_only(ada: ScopedMemories, store: Store, tmp_path: Path) -> None:
    fill(ada)
    ada.export(tmp_path / "x.jsonl", kv=True)
    ada.update("1", text="pear", n_tokens=1)
    ada.delete("0")
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    head = json.loads(lines[0]) | {"memories": 1}
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(head)}\n{lines[5]}\n", encoding="utf-8")
    assert ada.load(tmp_path / "x.jsonl") == 0
    assert loaded(ada) == {}


@pytest.mark.payloads
def test_damaged_kv_is_left_out_at_both_ends(store: Store, ada: ScopedMemories, tmp_path: Path) -> None:
    fill(ada)
    assert store.payloads is not None
    (uri,) = store.payloads.walk()
    store.payloads.unlink(uri)
    ada.export(tmp_path / "x.jsonl", kv=True)
    bob = store.scope(BOB)
    assert bob.load(tmp_path / "x.jsonl") == 5
    assert loaded(bob) == {"0": b"small"}
    raw = bytearray((tmp_path / "x.safetensors").read_bytes())
    raw[raw.rindex(b"of another")] ^= 1
    (tmp_path / "x.safetensors").write_bytes(raw)
    with Store.open(":memory:", embedder=EMBEDDER) as other:
        assert other.scope(ADA).load(tmp_path / "x.jsonl") == 5
        assert loaded(other.scope(ADA), "model-b") == {}
        assert other.verify().ok


@pytest.mark.parametrize("damage", ["cut", "foreign", "text", "version"])
def test_a_broken_kv_file_loads_nothing_and_says_which(ada: ScopedMemories, tmp_path: Path, damage: str) -> None:
    fill(ada)
    ada.export(tmp_path / "x.jsonl", kv=True)
    path = tmp_path / "x.safetensors"
    raw = path.read_bytes()
    broken = {
        "cut": raw[:-1],
        "foreign": (2).to_bytes(8, "little") + b"{}",
        "text": b"this is no such file",
        "version": raw.replace(b'"version": "1"', b'"version": "9"'),
    }
    path.write_bytes(broken[damage])
    with Store.open(":memory:", embedder=EMBEDDER) as other:
        with pytest.raises(InvalidInput, match=r"x.safetensors is no KV of an export"):
            other.scope(ADA).load(tmp_path / "x.jsonl")
        assert other.scope(ADA).count() == 0


def test_an_export_whose_kv_was_left_behind_is_text(
    ada: ScopedMemories, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(ada)
    ada.export(tmp_path / "x.jsonl", kv=True)
    (tmp_path / "x.safetensors").unlink()
    with Store.open(":memory:", embedder=EMBEDDER) as other:
        assert other.scope(ADA).load(tmp_path / "x.jsonl") == 5
        assert other.scope(ADA).stats().warm == 0
    assert "KV is made anew" in caplog.text
    with pytest.raises(InvalidInput, match="give the export another"):
        ada.export(tmp_path / "x.safetensors", kv=True)


def test_files_that_are_read_together_come_in_order_and_a_lost_one_costs_only_itself(tmp_path: Path) -> None:
    files = PayloadFiles(tmp_path)
    files.write([(f"0{n}/{n}/x.kv", bytes([n]) * 300_000) for n in range(3)])
    (tmp_path / "01/1/x.kv").unlink()
    found = list(files.read_many([f"0{n}/{n}/x.kv" for n in (2, 1, 0)]))
    assert found == [bytes([2]) * 300_000, None, bytes(300_000)]
    assert list(files.read_many([])) == []

"""``rebuild``: after a change of model or recipe all KV is encoded anew, as a fresh store would have it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentmem import EvictionPolicy, InvalidInput, MemoryLLM, Scope
from agentmem.cli import app
from agentmem.rebuild import Rebuilt
from agentmem.store import Store

TEXTS = [f"The code of door {number} is {4711 + number}." for number in range(20)]


def tell(path: Path, **options: object) -> None:
    with MemoryLLM(store=path, **options) as llm:  # type: ignore[arg-type]
        ada = llm.conversation(user="ada").memories
        for text in TEXTS:
            ada.add(text)
        llm.conversation(user="bob").memories.add("Bob lives in Oslo.")
        assert llm.flush(60)


def kv_of(llm: MemoryLLM) -> dict[str, bytes]:
    """Digest of the KV that is there for this model and recipe, by text."""
    found = {}
    for scope in llm.store.spaces():
        handle = llm.store.scope(scope)
        texts = {memory.id: memory.text for memory in handle.list(limit=100)}
        digests = handle.kv_digests(texts, fingerprint=llm.writer.fingerprint)
        found |= {texts[id]: digest for id, digest in digests.items()}
    return found


def test_a_changed_recipe_is_rebuilt_as_a_fresh_store_would_have_it(tmp_path: Path) -> None:
    tell(tmp_path / "old.db")
    tell(tmp_path / "fresh.db", recipe="memlong")
    with MemoryLLM(store=tmp_path / "fresh.db", recipe="memlong") as llm:
        fresh = kv_of(llm)
    steps: list[tuple[str, int, int]] = []
    with MemoryLLM(store=tmp_path / "old.db", recipe="memlong") as llm:
        assert kv_of(llm) == {}
        assert llm.rebuild(advance=lambda *step: steps.append(step)) == Rebuilt(21, 21, 21, 0)
        assert steps[-1] == ("encoding", 21, 21)
        assert kv_of(llm) == fresh
        assert llm.rebuild() == Rebuilt(21, 0, 0, 0)
        assert llm.store.verify().ok


def test_an_interrupted_rebuild_goes_on_where_it_stopped(tmp_path: Path) -> None:
    tell(tmp_path / "m.db")

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with MemoryLLM(store=tmp_path / "m.db", recipe="memlong") as llm:
        with pytest.raises(KeyboardInterrupt):
            llm.rebuild(user="ada", advance=stop)
        done = len(kv_of(llm))
        assert 0 < done < len(TEXTS)
        assert llm.rebuild(user="ada").encoded == len(TEXTS) - done
        assert len(kv_of(llm)) == len(TEXTS)  # Bob's was not asked for


def test_what_the_budget_has_no_room_for_stays_text_and_is_said(tmp_path: Path) -> None:
    tell(tmp_path / "m.db")
    with Store.open(tmp_path / "m.db") as store:
        handle = store.scope(Scope(user="ada"))
        used = handle.list(sort="created_at")[-1]
        handle.record_uses([(used.id, 1.0)], turn="t")
        nbytes = handle.stats().kv_bytes // len(TEXTS)
    policy = EvictionPolicy(space_kv_bytes=nbytes // 4)
    with MemoryLLM(store=tmp_path / "m.db", recipe="memlong", eviction=policy) as llm:
        done = llm.rebuild(user="ada")
        assert 0 < done.encoded < len(TEXTS)
        assert done.encoded + done.cold == len(TEXTS)
        assert used.text in kv_of(llm)  # most used first


def test_a_stream_recipe_has_nothing_to_rebuild(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "m.db", recipe="infllm") as llm, pytest.raises(InvalidInput, match="stream"):
        llm.rebuild()


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    tell(path)
    outcome = CliRunner().invoke(app, ["store", "rebuild", str(path), "--recipe", "memlong", "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout) == {"memories": 21, "encoded": 21, "replaced": 21, "cold": 0}
    outcome = CliRunner().invoke(app, ["store", "rebuild", str(path), "--recipe", "memlong", "--user", "ada"])
    assert "20 memories: 0 encoded anew" in outcome.stderr
    outcome = CliRunner().invoke(app, ["store", "rebuild", str(tmp_path / "none.db")])
    assert outcome.exit_code == 1
    assert not (tmp_path / "none.db").exists()

"""Memories whose ids are the caller's own, and the log beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmem import InvalidInput, MemoryLLM, NotFound

LONG = " ".join(f"Drawer {n} of the long cabinet holds the spare keys of house number {n}." for n in range(40))


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path / "memory.db") as opened:
        yield opened


def test_adding_the_same_text_under_an_id_changes_nothing(llm: MemoryLLM) -> None:
    ada = llm.memories(user="ada")
    (first,) = ada.add("My dog is called Biscuit.", id="dog", tags=["pets"])
    assert (first.id, first.turn) == ("dog", "dog")
    assert llm.flush(30)
    before = ada.get("dog")
    assert ada.add("My dog is called Biscuit.", id="dog") == [before]
    assert llm.flush(30)
    assert ada.get("dog") == before
    assert [event.action for event in ada.history("dog")] == ["added", "kv_attached"]
    assert len(ada) == 1


def test_an_id_is_one_texts_only(llm: MemoryLLM) -> None:
    ada = llm.memories(user="ada")
    ada.add("My dog is called Biscuit.", id="dog")
    with pytest.raises(InvalidInput, match="'dog' is taken"):
        ada.add("My dog is called Bruno.", id="dog")
    with pytest.raises(InvalidInput, match="'dog' is taken"):
        ada.add("My dog is called Biscuit.", id="dog", session="another")
    with pytest.raises(InvalidInput):
        ada.add("My cat is called Tom.", id=" cat")
    assert [memory.text for memory in ada.list()] == ["My dog is called Biscuit."]
    assert llm.memories(user="bob").add("My dog is called Bruno.", id="dog")[0].text == "My dog is called Bruno."


def test_a_long_text_has_its_id_and_numbers_behind_it(llm: MemoryLLM) -> None:
    ada = llm.memories(user="ada")
    chunks = ada.add(LONG, id="cabinet")
    assert len(chunks) > 2
    assert [chunk.id for chunk in chunks] == ["cabinet", *(f"cabinet-{n}" for n in range(1, len(chunks)))]
    assert {chunk.id for chunk in ada.list(turns=["cabinet"])} == {chunk.id for chunk in chunks}
    assert [chunk.id for chunk in ada.add(LONG, id="cabinet")] == [chunk.id for chunk in chunks]
    with pytest.raises(InvalidInput, match="a longer text"):  # its first chunk alone is another text
        ada.add(chunks[0].text, id="cabinet")
    ada.delete(chunks[1].id)
    assert len(ada.add(LONG, id="cabinet")) == len(chunks)  # what was missing is there again
    assert ada.get(chunks[1].id).text == chunks[1].text


def test_what_was_forgotten_can_be_told_again(llm: MemoryLLM) -> None:
    ada = llm.memories(user="ada")
    ada.add("My dog is called Biscuit.", id="dog")
    ada.delete("dog")
    with pytest.raises(NotFound):
        ada.get("dog")
    ada.add("My dog is called Bruno.", id="dog")
    assert ada.get("dog").text == "My dog is called Bruno."


def test_filters_reach_memories(llm: MemoryLLM) -> None:
    ada = llm.memories(user="ada")
    ada.add("The tax office wants the form in May.", tags=["work/tax"], meta={"year": 2026})
    ada.add("The tax office wanted the form in June.", tags=["work/tax"], meta={"year": 2025})
    assert [m.meta["year"] for m in ada.list(under="work", meta={"year": 2026})] == [2026]
    assert [hit.memory.meta["year"] for hit in ada.search("tax form", meta={"year": 2025})] == [2025]


def test_the_log_of_a_user_is_no_memory(llm: MemoryLLM) -> None:
    log = llm.log(user="ada")
    log.put(("session", "monday"), {"said": "My dog is called Biscuit."})
    entry = llm.log(user="ada").get(("session", "monday"))
    assert entry is not None
    assert entry.value == {"said": "My dog is called Biscuit."}
    assert llm.log(user="ada", agent="other").get(("session", "monday")) is None
    assert len(llm.memories(user="ada")) == 0
    with pytest.raises(InvalidInput, match="user is empty"):
        llm.log(user="")

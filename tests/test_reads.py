"""What each token of a reply attended to: as measured, in step with its characters, and in sum the memories' shares."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentmem import MemoryLLM, Reply
from agentmem.model.detokenise import Detokeniser
from agentmem.recipes import Memory3, Parallel

FACTS = ("My dog is called Biscuit.", "I live in Oslo.", "My sister is called Vera.")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryLLM]:
    with MemoryLLM(store=tmp_path_factory.mktemp("reads") / "memory.db", max_new_tokens=24) as llm:
        for fact in FACTS:
            llm.conversation(user="ada", session="before").chat(fact)
        yield llm


def test_the_mean_over_tokens_is_the_share_of_each_memory(llm: MemoryLLM) -> None:
    reply = llm.conversation(user="ada").chat("What is my dog called?", remember=False)
    assert len(reply.tokens) == reply.usage.completion_tokens > 3
    for token in reply.tokens:
        assert set(token.attention) == {read.memory.id for read in reply.memories}
        assert 0 < sum(token.attention.values()) <= 1
    for read in reply.memories:
        mean = sum(token.attention[read.memory.id] for token in reply.tokens) / len(reply.tokens)
        assert read.attention == pytest.approx(mean, abs=1e-9)


def test_tokens_tile_the_answer(llm: MemoryLLM) -> None:
    reply = llm.conversation(user="ada").chat("What is my dog called?", remember=False)
    assert "".join(reply.text[token.start : token.end] for token in reply.tokens) == reply.text
    assert [token.start for token in reply.tokens[1:]] == [token.end for token in reply.tokens[:-1]]


def test_the_word_that_was_remembered_looks_at_its_memory(llm: MemoryLLM) -> None:
    """The measure tells memories apart: over the name, those that hold it are looked at most by far."""
    reply = llm.conversation(user="ada").chat("What is my dog called?", remember=False)
    named = {read.memory.id for read in reply.memories if "Biscuit" in read.memory.text}
    at = reply.text.index("Biscuit")
    for token in reply.tokens:
        if at <= token.start < at + len("Biscuit"):
            held = min(token.attention[id] for id in named)
            assert held > 2 * max(share for id, share in token.attention.items() if id not in named)


def test_answers_that_are_decoded_together_keep_their_own(llm: MemoryLLM) -> None:
    questions = ["What is my dog called?", "Where do I live?", "What is my sister called?"]

    def ask(question: str) -> Reply:
        return llm.conversation(user="ada").chat(question, remember=False)

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as threads:
        together = list(threads.map(ask, questions))
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        assert [(token.start, token.end) for token in one.tokens] == [
            (token.start, token.end) for token in other.tokens
        ]
        for mine, theirs in zip(one.tokens, other.tokens, strict=True):
            assert mine.attention == pytest.approx(theirs.attention, abs=1e-4)


def test_shares_of_a_stretch_belong_to_what_was_read_then(tmp_path: Path, babbler: Path) -> None:
    """Memory3 recalls along the prompt too, and again as it speaks; only what the answer's own tokens read counts."""
    recipe = Memory3(layers=(0,), stride=4, prompt_stride=8)
    with MemoryLLM(str(babbler), store=tmp_path / "memory.db", recipe=recipe, max_new_tokens=12) as llm:
        for fact in FACTS:
            llm.conversation(user="ada", session="before").memories.add(fact)
        reply = llm.conversation(user="ada").chat("Where do I live, and what is my dog called?")
    assert len(reply.tokens) == reply.usage.completion_tokens == 12
    for read in reply.memories:
        mean = sum(token.attention.get(read.memory.id, 0.0) for token in reply.tokens) / len(reply.tokens)
        assert 0 < read.attention == pytest.approx(mean, abs=1e-9)


def test_nothing_recalled_is_nothing_read(tmp_path: Path) -> None:
    with MemoryLLM(store=tmp_path / "memory.db", recipe=Parallel(), max_new_tokens=8) as llm:
        reply = llm.conversation(user="ada").chat("Hello.")
    assert reply.memories == ()
    assert len(reply.tokens) == reply.usage.completion_tokens
    assert all(token.attention == {} for token in reply.tokens)


def test_a_stop_string_ends_the_record_too(llm: MemoryLLM) -> None:
    whole = llm.conversation(user="ada").chat("What is my dog called?", remember=False)
    cut = llm.conversation(user="ada").chat("What is my dog called?", remember=False, stop=whole.text[6:10])
    assert cut.text == whole.text[:6].strip()
    assert "".join(cut.text[token.start : token.end] for token in cut.tokens) == cut.text
    assert len(cut.tokens) == cut.usage.completion_tokens < len(whole.tokens)


def test_a_character_of_several_tokens_is_counted_with_its_last(llm: MemoryLLM) -> None:
    text = "a 🦊 b"
    detokeniser = Detokeniser(llm.model.tokenizer)
    ids = llm.model.tokenizer(text, add_special_tokens=False)["input_ids"]
    counts = []
    shown = ""
    for token in ids:
        shown += detokeniser.push(token)
        assert detokeniser.n_characters == len(shown)
        counts.append(len(shown))
    assert counts[-1] == len(text)
    assert len(set(counts)) < len(counts)  # some tokens of the fox show nothing

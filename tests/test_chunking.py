"""Chunking: lossless, bounded, at sentence ends where it can be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.chunking import MAX_TOKENS, chunk_text
from agentmem.errors import InvalidInput
from agentmem.text import check_text


def words(text: str) -> list[tuple[int, int]]:
    """A tokenizer whose tokens are words with their leading space, and single characters of long words."""
    spans, start = [], 0
    for at in range(1, len(text) + 1):
        if at == len(text) or (text[at].isspace() and not text[at - 1].isspace()) or at - start >= 12:
            spans.append((start, at))
            start = at
    return spans


def test_a_short_turn_is_one_chunk() -> None:
    (chunk,) = chunk_text("My dog is called Biscuit.", words)
    assert chunk.text == "My dog is called Biscuit."
    assert chunk.n_tokens == len(words(chunk.text))


def test_cuts_fall_after_sentences() -> None:
    text = " ".join(f"This is sentence number {i} of a long turn." for i in range(60))
    chunks = chunk_text(text, words)
    assert len(chunks) > 3
    assert all(chunk.text.rstrip().endswith(".") for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == text


def test_text_without_any_boundary_is_still_bounded() -> None:
    text = "x" * 10_000
    chunks = chunk_text(text, words)
    assert "".join(chunk.text for chunk in chunks) == text
    assert max(chunk.n_tokens for chunk in chunks) <= MAX_TOKENS


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=3000).filter(str.strip),
    st.integers(8, 200),
)
def test_chunks_are_the_text_and_never_too_long(text: str, max_tokens: int) -> None:
    chunks = chunk_text(text, words, max_tokens)
    assert all(chunk.text.strip() for chunk in chunks)
    assert all(chunk.n_tokens == len(words(chunk.text)) <= max_tokens for chunk in chunks)
    at = 0
    for chunk in chunks:  # in order, and nothing but white space between them
        found = text.index(chunk.text, at)
        assert not text[at:found].strip()
        at = found + len(chunk.text)
    assert not text[at:].strip()


def test_a_megabyte_is_cut_in_reasonable_time_and_wholly() -> None:
    text = "All work and no play makes a dull agent. " * 25_000
    chunks = chunk_text(text, words)
    assert "".join(chunk.text for chunk in chunks) == text


@pytest.mark.parametrize("bad", ["", "  \n\t", "a\x00b", "a\ud800b", None, 3, b"bytes", ["list"]])
def test_text_that_cannot_be_stored_is_refused(bad: object) -> None:
    with pytest.raises(InvalidInput):
        check_text(bad)


def test_tiny_chunks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="at least 8"):
        chunk_text("hello", words, 4)

"""Long texts: documents from files, histories through a window, made-up statements, and a model trained on them."""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tuning_world import histories, save_model, text

from agentmem import InvalidInput
from agentmem.model.local import LocalModel
from agentmem.training import prose
from agentmem.training.histories import History, cut
from agentmem.training.statements import draw, strewn
from agentmem.training.texts import Document, read_documents, unwrapped
from agentmem.training.values import is_heldout

BOOK = (
    "The Project Gutenberg EBook of Nothing\r\n\r\n*** START OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\r\n\r\n"
    "Call me\r\nnobody.  It\r\nrained.\r\n\r\n\r\nThe end.\r\n\r\n"
    "*** END OF THIS PROJECT GUTENBERG EBOOK NOTHING ***\r\n\r\nlicence"
)


def test_a_book_is_read_without_its_licence_and_its_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "book.txt.xz").write_bytes(lzma.compress(f"\ufeff{BOOK}".encode()))
    (tmp_path / "notes.md").write_text("One\ntwo.\n\nThree.")
    (tmp_path / "more.jsonl").write_text('{"text": "a b"}\n\n{"text": "c"}\n')
    documents = read_documents([tmp_path / name for name in ("book.txt.xz", "notes.md", "more.jsonl")])
    assert [(d.name, d.text) for d in documents] == [
        ("book.txt", "Call me nobody. It rained.\nThe end."),
        ("notes.md", "One two.\nThree."),
        ("more.jsonl:1", "a b"),
        ("more.jsonl:2", "c"),
    ]
    assert unwrapped("no marks\nhere") == "no marks here"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xff\xfe\x00x", "not UTF-8"),
        ("a.txt", b"  \n\n ", "no text"),
        ("a.jsonl", b"", "no document"),
        ("a.jsonl", b'{"txt": "x"}\n', "no JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "no string"),
        ("a.txt.xz", b"not compressed", "cannot read"),
    ],
)
def test_files_that_hold_no_documents_are_refused(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=reason):
        read_documents([tmp_path / name])
    with pytest.raises(InvalidInput, match="cannot read"):
        read_documents([tmp_path / "nowhere.txt"])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(9, 40), st.data())
def test_a_window_shows_the_end_of_the_past_and_hides_the_rest(
    lengths: list[int], size: int, data: st.DataObject
) -> None:
    chunks = tuple(tuple(range(100 * at, 100 * at + n)) for at, n in enumerate(lengths))
    history = History("h", tuple("" for _ in chunks), chunks)
    number = data.draw(st.integers(0, len(chunks) - 1))
    window = history.window(number, size)
    before = [token for chunk in chunks[:number] for token in chunk]
    room = size - len(chunks[number])
    assert window.scored == chunks[number]
    assert list(window.context) == (before[-room:] if room else [])
    shown = set(window.context)
    assert window.hidden == sum(not set(chunk) <= shown for chunk in chunks[:number])
    assert all(set(chunk) <= shown for chunk in chunks[window.hidden : number])


def test_histories_are_the_chunks_that_would_be_stored(tmp_path: Path) -> None:
    model = LocalModel.load(save_model(tmp_path), device="cpu")
    (history,) = histories(model, 20)
    assert "".join(history.texts) == text(0, 20)
    assert all(len(chunk) <= 128 for chunk in history.chunks)
    assert history.n_tokens == sum(len(model.chat.encode(part)) for part in history.texts)
    with pytest.raises(InvalidInput, match="one chunk long"):
        cut([Document("note", "Too short.")], model)


@given(st.integers(0, 500))
def test_statements_of_the_two_splits_share_no_names(seed: int) -> None:
    told = draw(random.Random(seed), "heldout")
    assert all(is_heldout(word) for word in told.answer.split())
    assert not any(is_heldout(word) for word in draw(random.Random(seed)).answer.split())
    assert told.text.startswith(told.asked)
    assert told.text == f"{told.asked}{told.answer}."


def test_statements_are_strewn_between_paragraphs_over_and_over() -> None:
    document = Document("book", text(1, 90))
    paragraphs = document.text.split("\n")
    lines = strewn(document, 4, random.Random(1)).text.split("\n")
    told = [line for line in lines if line not in paragraphs]
    assert [line for line in lines if line not in told] == paragraphs
    assert len(set(told)) == 4
    assert 30 < len(told) < 60
    assert strewn(document, 0, random.Random(1)) == document


def test_a_step_of_prose_is_a_pure_function_of_its_number() -> None:
    texts = [list(range(10, 700)), list(range(700, 1300))]
    for step in (0, 3, 9):
        one, two = (prose.batches_at(step, texts, 4, warm_up=3) for _ in range(2))
        assert len(one) == len(two) == 2
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.positions, b.positions)
    assert prose.batches_at(5, texts, 2, warm_up=3)[0].ids.shape == (2, prose.LENGTH)
    assert len(prose.batches_at(0, texts, 4, warm_up=3)[1].ids) > len(prose.batches_at(5, texts, 4, warm_up=3)[1].ids)


@given(st.integers(0, 10_000))
def test_only_what_a_string_has_shown_before_has_a_label(seed: int) -> None:
    batch = prose.strings(random.Random(seed), 3)
    for ids, positions, labels in zip(batch.ids, batch.positions, batch.labels, strict=True):
        known = labels != prose.IGNORE
        assert torch.equal(ids[known], labels[known])
        assert (positions.diff() >= 1).all()
        assert positions[-1] < prose.CONFIG.max_position_embeddings
        length = int(known.sum()) // 2 + 1
        assert ids[known].tolist() == ids[2 : 1 + length].tolist() * 2


def test_now_and_then_a_text_ends_with_its_beginning() -> None:
    rows = [prose.texts_row(random.Random(seed), list(range(2000)), 60) for seed in range(100)]
    assert all(len(row) == 60 for row in rows)
    recited = [row for row in rows if row[-1] < row[-16] + 15 or row[-1] != row[0] + 59]
    assert 5 < len(recited) < 40


def test_prose_training_resumes(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(text(1, 400).replace("\n", "\n\n"))
    for steps in (2, 3):
        prose.train(
            text=[tmp_path / "book.txt"],
            out=tmp_path / "out",
            steps=steps,
            rows=1,
            rate=1e-3,
            warm_up=1,
            threads=1,
            every=9,
        )
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 3]
    assert LocalModel.load(tmp_path / "out", device="cpu").n_layers == prose.CONFIG.num_hidden_layers

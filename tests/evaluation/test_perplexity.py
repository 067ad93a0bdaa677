"""Perplexity like for like, and recall of statements: what is scored, what is read, and what is compared."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem import InvalidInput, MemLong
from agentmem.evaluation.perplexity import Contender, Past, Scored, perplexity, score, spans
from agentmem.evaluation.progress import silent
from agentmem.evaluation.statements import questions, statements
from agentmem.model.local import LocalModel
from agentmem.recipes import Parallel
from agentmem.retrieval import ModelEmbedder
from agentmem.training.histories import History
from agentmem.training.texts import Document

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tuning_world import histories, save_model, text

WINDOW = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(folder: Path) -> LocalModel:
    return LocalModel.load(folder, device="cpu")


@pytest.fixture(scope="module")
def history(model: LocalModel) -> History:
    return histories(model, 60)[0]


def naive(model: LocalModel, context: list[int], scored: list[int], placed: object) -> float:
    ids = [*model.chat.prefix_ids, *context, *scored]
    logits = model.logits(ids, placed).double().log_softmax(-1)  # type: ignore[arg-type]
    return -sum(logits[at - 1, ids[at]].item() for at in range(len(ids) - len(scored), len(ids)))


@pytest.mark.parametrize("recipe", [None, MemLong(top_k=2), Parallel()])
def test_a_score_is_what_the_model_gives_one_window_at_a_time(
    model: LocalModel, history: History, recipe: MemLong | Parallel | None
) -> None:
    pieces = spans(history, 900)
    past = None if recipe is None else Past(model, recipe, ModelEmbedder(model), history, silent)
    got = score(model, history, pieces, WINDOW, past)
    wanted = []
    for start, half, stop in pieces:
        for number in range(half, stop):
            flat = [token for chunk in history.chunks[:number] for token in chunk]
            scored = list(history.chunks[number])
            placed = None
            if past is not None and recipe is not None:
                visible, hidden = WINDOW - len(scored), number
                while visible >= len(history.chunks[hidden - 1]):
                    hidden -= 1
                    visible -= len(history.chunks[hidden])
                vectors = ModelEmbedder(model).embed(history.texts[start:number])
                nearest = np.argsort(-(vectors[: hidden - start] @ vectors[-1]), kind="stable")[: recipe.top_k]
                texts = [history.texts[start + at] for at in sorted(nearest)]
                from agentmem.evaluation.perplexity import as_memory

                placed = recipe.place(model, recipe.encode(model, [as_memory(text) for text in texts]))
            wanted.append(naive(model, flat[-(WINDOW - len(scored)) :], scored, placed))
    np.testing.assert_allclose(got.nll, wanted, rtol=1e-4)
    assert got.tokens.tolist() == [len(history.chunks[n]) for _, half, stop in pieces for n in range(half, stop)]


def test_without_memory_the_length_of_the_history_changes_nothing(model: LocalModel, history: History) -> None:
    short, long = spans(history, 500), spans(history, 1500)
    one, two = score(model, history, short, WINDOW), score(model, history, long, WINDOW)
    by_number = dict(zip([n for _, half, stop in short for n in range(half, stop)], one.nll, strict=True))
    for number, nll in zip([n for _, half, stop in long for n in range(half, stop)], two.nll, strict=True):
        assert by_number.get(number, nll) == pytest.approx(nll, rel=1e-5)


def test_memory_begins_empty_with_every_piece(model: LocalModel, history: History) -> None:
    past = Past(model, MemLong(top_k=3), ModelEmbedder(model), history, silent)
    assert [entry.number for entry in past.bank(7, 11).entries] == [7, 8, 9, 10]
    assert past.recalled(7, 7, 8) is None


@given(st.lists(st.integers(1, 128), min_size=1, max_size=60), st.integers(128, 2000))
def test_the_second_half_of_every_piece_is_scored(lengths: list[int], length: int) -> None:
    history = History("h", tuple("x" for _ in lengths), tuple((0,) * n for n in lengths))
    end = 0
    for start, half, stop in spans(history, length):
        assert start == end <= half <= stop
        assert sum(lengths[start:stop]) <= length < sum(lengths[start : stop + 1])
        assert 2 * sum(lengths[start:half]) <= length or half == start
        assert 2 * sum(lengths[start : half + 1]) > length or half == stop
        end = stop


def test_differences_are_paired_by_chunk_and_per_token() -> None:
    tokens = np.array([10.0, 20.0, 30.0])
    one = Scored(np.array([20.0, 50.0, 90.0]), tokens)
    same, error = one.less(one)
    assert (same, error) == (0.0, 0.0)
    better, error = one.less(Scored(one.nll - 0.5 * tokens, tokens))
    assert better == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-12)
    noise = np.array([1.0, -1.0, 0.0])
    _, error = one.less(Scored(one.nll + noise, tokens))
    assert error == pytest.approx(math.sqrt(2 * 3 / 2) / 60)


def test_a_report_compares_with_the_first_contender(folder: Path) -> None:
    result = perplexity(
        [Contender("plain", folder), Contender("memlong", folder, MemLong(top_k=2))],
        Document("book", text(3, 60)),
        [500, 900],
        window=WINDOW,
    )
    assert [(row["length"], row["contender"]) for row in result.rows] == [
        (500, "plain"),
        (500, "memlong"),
        (900, "plain"),
        (900, "memlong"),
    ]
    plain, read = result.rows[:2]
    assert plain["saved"] is None
    assert read["saved"] == pytest.approx(plain["nats"] - read["nats"])  # type: ignore[operator]
    assert read["saved_low"] < read["saved"] < read["saved_high"]  # type: ignore[operator]
    assert plain["perplexity"] == pytest.approx(math.exp(plain["nats"]))  # type: ignore[arg-type]
    assert plain["tokens"] == read["tokens"]
    assert read["kv_bytes_per_token"] == 2 * 2 * 8 * 4, "one layer, K and V, two KV heads of 8, float32"


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    book = Document("book", text(3, 60))
    with pytest.raises(InvalidInput, match="too few"):
        perplexity([Contender("plain", folder)], book, [50_000], window=WINDOW)
    with pytest.raises(InvalidInput, match="twice the window"):
        perplexity([Contender("plain", folder)], book, [300], window=WINDOW)
    with pytest.raises(InvalidInput, match="another tokenizer"):
        perplexity([Contender("plain", folder), Contender("bundled", None)], book, [900], window=WINDOW)


def test_statements_are_told_out_of_sight_and_restated(model: LocalModel, history: History) -> None:
    for question in questions(history, 900, WINDOW, 30, seed=2):
        hidden = history.window(question.number, WINDOW).hidden
        assert question.start <= question.told < hidden <= question.number
        assert len(question.others) == 9
        assert question.statement.text == f"{question.statement.asked}{question.statement.answer}."
    with pytest.raises(InvalidInput, match="do not fit"):
        questions(history, 90_000, WINDOW, 3, seed=2)


def test_a_report_of_statements(folder: Path) -> None:
    result = statements(
        [Contender("plain", folder), Contender("memlong", folder, MemLong(top_k=8))],
        Document("book", text(3, 60)),
        [900],
        samples=6,
        window=WINDOW,
    )
    plain, read = result.rows
    assert plain["recalled"] is None
    assert plain["word_for_word"] == 0.0, "a random model knows nothing"
    assert plain["accuracy"] < 0.7  # type: ignore[operator]
    assert read["recalled"] is not None
    assert 0 < read["recalled"] <= 1  # type: ignore[operator]
    assert read["accuracy_low"] <= read["accuracy"] <= read["accuracy_high"]  # type: ignore[operator]

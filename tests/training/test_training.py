"""The training room: what is told and asked, the layout of a batch, and a run that resumes."""

from __future__ import annotations

import json
import random
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentmem import Memory, Parallel, Role, Scope
from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel
from agentmem.training import bundled
from agentmem.training.batches import CONTEXT, Packer
from agentmem.training.bundled import QUIZ, batch_at, mix_at, rate_at, train
from agentmem.training.dialogues import Chunk, Dialogue, Mix, draw
from agentmem.training.evaluate import QUESTIONS, exact, question
from agentmem.training.facts import RELATIONS, Fact, draw_relations, tell
from agentmem.training.smalltalk import load_utterances
from agentmem.training.values import is_heldout, value

SGD = Path(__file__).parents[3] / "shared" / "data" / "sgd" / "sgd_text.jsonl.gz"


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model(), device="cpu")


@given(st.integers(0, 10_000), st.sampled_from(["name", "word", "place", "code", "list"]))
def test_no_value_is_in_both_splits(seed: int, kind: str) -> None:
    rng = random.Random(seed)
    for word in value(rng, kind, "heldout").replace(",", " ").split():
        assert is_heldout(word) or word in ["and", "Street", "Road", "Lane", "Hill", "Bay", "Park", "Avenue"]
    assert not any(is_heldout(word) for word in value(rng, kind).replace(",", " ").split() if word.islower())


def test_there_are_enough_relations_in_several_phrasings() -> None:
    assert len(RELATIONS) >= 20
    assert len({relation.key for relation in RELATIONS}) == len(RELATIONS)
    assert all(len(set(r.state)) >= 3 and len(set(r.ask)) >= 4 and len(set(r.correct)) >= 2 for r in RELATIONS)


@given(st.integers(0, 10_000))
def test_facts_are_told_answered_and_corrected_with_their_values(seed: int) -> None:
    rng = random.Random(seed)
    (fact,) = tell(rng, draw_relations(rng, 1, novel=0.3))
    new = fact.corrected(rng)
    assert fact.value in fact.told(rng)
    assert fact.value in fact.acknowledged(rng)
    assert fact.value in fact.answered()
    assert fact.value not in fact.unknown()
    assert new.old == fact.value != new.value
    assert new.value in new.told(rng)
    assert not any("{" in said for said in (fact.told(rng), fact.asked(rng), fact.unknown(), new.told(rng)))


@given(st.integers(0, 3_000), st.sampled_from([mix_at(0), mix_at(1000), mix_at(2000), QUIZ, Mix()]))
def test_every_question_of_a_dialogue_has_the_answer_that_its_words_allow(seed: int, mix: Mix) -> None:
    dialogue = draw(random.Random(seed), mix, [])
    said = [chunk.text for chunk in dialogue.chunks]
    for (_, asked), (role, answer) in zip(dialogue.turns[::2], dialogue.turns[1::2], strict=True):
        assert role == "assistant"
        if asked.endswith("?") and answer.startswith("Your ") and " is " in answer:
            told = answer.rstrip(".").split(" is called ")[-1].split(" is ")[-1]
            assert any(told in text for text in said), (asked, answer)
        said.append(asked)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_held_out_questions_are_of_their_kind(kind: str) -> None:
    dialogue, answer = question(random.Random(1), kind, 3)
    assert answer.endswith("You have not told me.") == (kind == "unknown")
    assert len(dialogue.turns) == 2


def test_a_batch_is_laid_out_as_the_parallel_recipe_reads(model: LocalModel) -> None:
    """One forward with the training mask gives the context the logits that it gets from separately encoded memory."""
    chunks = [
        Chunk("user", "My dog is called Biscuit.", date(2026, 5, 4)),
        Chunk("assistant", "Got it, you live in Oslo.", date(2026, 5, 4)),
        Chunk("tool", "gate number: K7-402", date(2026, 6, 1)),
    ]
    dialogue = Dialogue(chunks, [("user", "What is my dog called?"), ("assistant", "Your dog is called Biscuit.")])
    batch = Packer(model.tokenizer).batch([dialogue], random.Random(3), spread=0)
    with torch.no_grad():
        whole = model.model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask()).logits[0]
    context = batch.segments[0] == CONTEXT
    memories = [
        Memory(
            id=str(n),
            scope=Scope(user="ada"),
            text=chunk.text,
            role=Role(chunk.role),
            turn="t",
            chunk_no=0,
            n_tokens=9,
            created_at=datetime(chunk.day.year, chunk.day.month, chunk.day.day, tzinfo=UTC),
        )
        for n, chunk in enumerate(chunks)
    ]
    kvs = Parallel().encode(model, memories)
    start = int(batch.positions[batch.segments == 1].min())
    placed = model.place(kvs, [start] * len(kvs))
    torch.testing.assert_close(model.logits(batch.ids[0, context].tolist(), placed), whole[context], atol=2e-4, rtol=0)


def test_a_step_is_a_pure_function_of_its_number(model: LocalModel) -> None:
    packer = Packer(model.tokenizer)
    for step in (0, 500, 1100, 2000):
        one, two = (batch_at(step, packer, [], 2) for _ in range(2))
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.positions, two.positions)


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    rates = [rate_at(step, 2200) for step in range(2200)]
    assert rates[0] < rates[100] == 1.0
    assert 0 < rates[-1] < 0.01
    assert rates[1450] == pytest.approx(2 / 3)


def test_training_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "exact", partial(exact, n=16))  # reports of a quarter of the questions
    for steps in (2, 3):
        train(out=tmp_path, steps=steps, rows=2, matrix_rate=3e-3, other_rate=3e-3, threads=1, utterances=None, every=9)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 3]
    assert json.loads((tmp_path / "progress.json").read_text()) == {"step": 3}
    LocalModel.load(tmp_path, device="cpu")


@pytest.mark.skipif(not SGD.exists(), reason="the Schema-Guided Dialogue text is not beside the checkout")
def test_utterances_get_a_neutral_reply() -> None:
    pairs = load_utterances(SGD, limit=500)
    assert len(pairs) == 500
    assert all(("not told me" in reply) == text.endswith("?") for text, reply in pairs)


def test_an_unknown_relation_is_never_a_fact() -> None:
    assert all(Fact(relation, "?").unknown().endswith("? You have not told me.") for relation in RELATIONS)

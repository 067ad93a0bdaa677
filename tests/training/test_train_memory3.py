"""Two-stage training of explicit memory: the data, the layout, gradients through what is kept, a run that resumes."""

from __future__ import annotations

import functools
import json
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache
from typer.testing import CliRunner

from agentmem import InvalidInput, Memory, Memory3, Role, Scope
from agentmem.cli import app
from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel
from agentmem.training.explicit import INTERVAL, encode_references
from agentmem.training.memory3 import Settings, Trainer, deepen, keep_at, rate_at, train
from agentmem.training.memory3_batches import SHARED, STEP, Writer, collate, overlaps
from agentmem.training.references import AFFAIRS, TownFact, knowledge_base, reference
from agentmem.training.values import is_heldout

TINY = Settings(steps=3, warm_up=1, sets=1, rows=2, length=3)


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model(), device="cpu")


@pytest.fixture(scope="module")
def trainer(model: LocalModel) -> Trainer:
    return Trainer(model.model, Writer(model.tokenizer), TINY)


@functools.cache
def a_writer() -> Writer:
    return Writer(LocalModel.load(bundled_model(), device="cpu").tokenizer)


# ------------------------------------------------------------------------------------------------------------ the data


def test_a_knowledge_base_is_held_out_and_says_everything_once() -> None:
    facts = knowledge_base(600, seed=1)
    assert len({(fact.town, fact.affair.noun) for fact in facts}) == 600
    assert all(is_heldout(fact.town) for fact in facts)
    assert facts == knowledge_base(600, seed=1)
    assert facts != knowledge_base(600, seed=2)
    trained = knowledge_base(600, seed=1, split="train")
    assert not {fact.town for fact in trained} & {fact.town for fact in facts}
    assert not {fact.value for fact in trained} & {fact.value for fact in facts}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_reference_states_its_fact_in_at_most_128_tokens_and_no_other(seed: int) -> None:
    rng = random.Random(seed)
    (fact,) = knowledge_base(1, seed)
    writer = a_writer()
    text = reference(rng, fact, writer.count)
    assert writer.count(text) <= 128
    assert 0 <= text.find(fact.affair.noun) < text.find(fact.value)
    assert not any(affair.noun in text for affair in AFFAIRS if affair.noun not in fact.stated(rng))


def test_questions_are_put_in_other_words() -> None:
    rng = random.Random(0)
    for affair in AFFAIRS:
        fact = TownFact("Velnor", affair, "Tarik")
        asked = {fact.asked(rng) for _ in range(60)}
        assert len(asked) >= 6
        assert any(affair.noun not in one for one in asked)
        assert not any("Tarik" in one for one in asked)
        assert fact.answered().endswith("Tarik.")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_the_leak_guard_measures_the_longest_common_subsequence(one: list[int], sample: list[int]) -> None:
    for share in (0.0, 0.5, 0.9):
        assert overlaps(one, sample[:7], share) == (_lcs(one, sample[:7]) > share * len(one))


def _lcs(one: list[int], other: list[int]) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@pytest.mark.parametrize("seed", range(6))
def test_every_question_can_be_answered_from_what_its_whole_exchange_reads(model: LocalModel, seed: int) -> None:
    writer = Writer(model.tokenizer)
    group = writer.group(random.Random(seed), 4, 2, unknown=0.0)
    batch = collate([group])
    told = [model.tokenizer.decode(ids) for ids in group[0]]
    assert len(told) == 4 + SHARED
    for row in range(2):
        answers = 0
        answer = (batch.weights[row] == 1.0).tolist()
        for i in range(1, len(answer)):
            if answer[i] and not answer[i - 1]:
                end = answer.index(False, i) if False in answer[i:] else len(answer)
                text = model.tokenizer.decode(batch.ids[row, i:end]).strip().removesuffix("<|end|>").removesuffix(".")
                town, value = text.split(" of ")[1].split(" is ", 1)
                (holder,) = (n for n, one in enumerate(told) if value in one and town in one)
                assert batch.visible[row, i:end, holder].all(), (text, i)
                answers += 1
        assert answers >= 5


def test_each_step_reads_its_reference_and_those_of_four_steps_before(model: LocalModel) -> None:
    writer = Writer(model.tokenizer)
    told, samples = writer.group(random.Random(1), 3, 2)
    batch = collate([(told, samples)])
    assert batch.visible.sum(-1).unique().tolist() == [SHARED + 1]
    for row, sample in enumerate(samples):
        for token in (0, STEP - 1, STEP, 2 * STEP + 3):
            if token < batch.ids.shape[1]:
                first = token // STEP
                seen = set(batch.visible[row, token].nonzero().flatten().tolist())
                assert seen == set(sample.order[first : first + SHARED + 1])


# ---------------------------------------------------------------------------------------------------------- the layout


@pytest.mark.parametrize("keep", [8, None])
def test_a_step_is_laid_out_as_the_memory3_recipe_reads(model: LocalModel, trainer: Trainer, keep: int | None) -> None:
    """One forward with the training masks gives the context what it gets, step by step, from stored references."""
    writer, rng = trainer.writer, random.Random(3)
    facts = knowledge_base(2 + SHARED, seed=4)
    texts = [reference(rng, fact, writer.count, most=60, least=24) for fact in facts]
    samples = [writer.sample(rng, facts, 2, 0.1) for _ in range(2)]
    batch = collate([([writer.ids(f" {text}") for text in texts], samples)])
    with torch.no_grad():
        whole = trainer.read(batch, keep)[0]
    recipe = Memory3(keep=keep)
    memories = [
        Memory(
            id=str(n),
            scope=Scope(user="ada"),
            text=text,
            role=Role.SYSTEM,
            turn="t",
            chunk_no=0,
            n_tokens=9,
            created_at=datetime(2026, 5, 4, tzinfo=UTC),
        )
        for n, text in enumerate(texts)
    ]
    kvs = recipe.encode(model, memories)
    assert recipe.interval == INTERVAL
    for row, sample in enumerate(samples):
        ids = torch.tensor([sample.context])
        cache = DynamicCache(config=model.config)
        sets = [recipe.place(model, [kvs[i] for i in sample.order[step : step + SHARED + 1]]) for step in range(2)]
        logits = []
        with model.reading(None) as reader, torch.no_grad():
            for step, placed in enumerate(sets):
                reader.swap(placed)
                piece = ids[:, step * STEP : (step + 1) * STEP]
                logits.append(model.model(input_ids=piece, past_key_values=cache, use_cache=True).logits[0])
        got = torch.cat(logits)
        torch.testing.assert_close(whole[row, : len(got)], got, atol=3e-4, rtol=0)


def test_gradients_flow_through_what_is_kept_and_into_its_choice(model: LocalModel) -> None:
    network = deepen(model.model, 4)
    trainer = Trainer(network, Writer(model.tokenizer), TINY)
    told, samples = trainer.writer.group(random.Random(5), 1, 2)
    batch = collate([(told, samples)])
    memory = encode_references(network, trainer.rotary, trainer.writer.prefix, batch.references, (0, 1), 8)
    for layer in (0, 1):
        kept = memory[layer].keys.shape[2] - len(trainer.writer.prefix)
        assert kept == 8 * len(told)
        assert memory[layer].keys.requires_grad
        assert memory[layer].bias.requires_grad
        assert float(memory[layer].bias.detach().abs().max()) == 0.0, "the straight-through term adds nothing"
    trainer.read(batch, 8)[0].logsumexp(-1).sum().backward()
    attention = network.model.layers[1].self_attn
    assert float(attention.k_proj.weight.grad.abs().max()) > 0
    assert float(network.model.layers[0].mlp.down_proj.weight.grad.abs().max()) > 0


def test_a_reference_shorter_than_the_others_is_not_read_past_its_end(model: LocalModel, trainer: Trainer) -> None:
    short, long = [40, 41, 42], list(range(50, 80))
    for keep in (8, None):
        memory = encode_references(model.model, trainer.rotary, trainer.writer.prefix, [[short, long]], (0, 1), keep)
        start = len(trainer.writer.prefix)
        width = 8 if keep else 30
        hidden = memory[0].bias[0, :, start : start + width].isneginf().sum(-1)
        assert hidden.tolist() == [width - 3] * 2
        assert not memory[0].bias[0, :, start + width :].isneginf().any()


def test_a_deeper_model_is_the_same_function(model: LocalModel) -> None:
    deeper = deepen(model.model, 6)
    ids = torch.arange(20, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(deeper(input_ids=ids).logits, model.model(input_ids=ids).logits, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------- the run


def test_fewer_tokens_are_kept_as_training_goes_on() -> None:
    run = Settings(steps=400, warm_up=40)
    kept = [keep_at(step, run) for step in range(40, 400)]
    assert set(kept[:80]) == {None}
    assert set(kept[100:130]) == {16, None}
    assert set(kept[200:]) == {8, None}
    assert kept[200:].count(8) > 90


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    run = Settings(steps=400, warm_up=40)
    rates = [rate_at(step, run) for step in range(400)]
    assert rates[0] < rates[30] == 1.0
    assert 0 < rates[-1] < 0.01


def test_a_step_is_a_pure_function_of_its_number(trainer: Trainer) -> None:
    for step in (0, 1):
        with torch.no_grad():
            assert trainer.loss(step).item() == trainer.loss(step).item()


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(whole, TINY, base=bundled_model(), every=9)
    losses = {}

    def interrupt(what: str, done: int, total: int) -> None:
        assert (what, total) == ("training", 3)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves, TINY, base=bundled_model(), every=1, advance=interrupt)
    assert json.loads((halves / "progress.json").read_text()) == {"step": 2}
    train(halves, TINY, base=bundled_model(), every=1)
    for folder in (whole, halves):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3]
        losses[folder] = [line["loss"] for line in lines]
    assert losses[whole] == pytest.approx(losses[halves], abs=2e-3)
    assert json.loads((halves / "progress.json").read_text()) == {"step": 3}
    LocalModel.load(halves, device="cpu")


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path, Settings(steps=1, warm_up=1, sets=1, rows=1, length=3), base=bundled_model())
    with pytest.raises(InvalidInput, match="holds a run with other settings"):
        train(tmp_path, TINY, base=bundled_model())


def test_the_control_has_no_first_stage_and_a_new_model(tmp_path: Path) -> None:
    command = ["train", "memory3", "--out", str(tmp_path), "--steps", "1", "--sets", "1", "--rows", "1"]
    outcome = CliRunner().invoke(app, [*command, "--from-scratch", "--hidden", "64", "--layers", "2"])
    assert outcome.exit_code == 0, outcome.output
    run = json.loads((tmp_path / "training.json").read_text())
    assert (run["warm_up"], run["strings"], run["steps"]) == (0, 0, 1)
    assert LocalModel.load(tmp_path, device="cpu").n_layers == 2
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert {"loss", "sparse", "full", "none", "unknown"} <= line.keys()

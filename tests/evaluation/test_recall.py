"""Recall and throughput from a knowledge base: small runs of the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmem import InvalidInput, Memory3
from agentmem.evaluation.recall import recall
from agentmem.evaluation.throughput import NAMES, Rows, throughput
from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel


def test_recall_compares_the_contenders_on_the_same_questions(tmp_path: Path) -> None:
    heard: list[str] = []
    result = recall(facts=24, questions=4, folder=tmp_path, advance=lambda what, done, total: heard.append(what))
    names = ["no memory", "text in the prompt", "memory, full KV", "memory, 8 tokens per head"]
    assert [row["contender"] for row in result.rows] == names
    assert set(heard) == {"ingesting", *names}
    nothing, _, full, sparse = result.rows
    assert nothing["accuracy"] == 0.0, "nobody can know what was never told"
    assert all(0.0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1.0 for row in result.rows)
    assert all(0.0 < row["found"] <= 1.0 for row in result.rows)
    # 2 of 4 layers, 8 of some 115 tokens, 2 bytes per number; dense counts 4 query heads, GQA keeps 2 KV heads
    assert 8192 < sparse["bytes_per_reference"] < 8192 + 700
    assert full["bytes_per_reference"] > 10 * sparse["bytes_per_reference"]
    assert sparse["less_than_dense"] == pytest.approx(2 * sparse["less_than_dense_kv_heads"], rel=0.02)
    assert sparse["less_than_dense"] > 40
    again = recall(facts=24, questions=4, folder=tmp_path)
    assert again.rows == result.rows
    json.dumps(result.as_json(), allow_nan=False)


def test_recall_measures_other_recipes_too() -> None:
    result = recall(recipe="parallel", facts=8, questions=2)
    # Eight references do not fit into the bundled model's context beside a question and its answer.
    assert [row["contender"] for row in result.rows] == ["no memory", "memory, parallel"]


def test_throughput_runs_every_contender_in_every_round(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []

    def advance(what: str, done: int, total: int) -> None:
        if what == "throughput":
            heard.append((done, total))

    result = throughput(facts=24, batch=2, rounds=1, folder=tmp_path, advance=advance)
    assert [row["contender"] for row in result.rows] == list(NAMES)
    assert heard == [(n, 6) for n in range(1, 7)]
    by_name = {row["contender"]: row for row in result.rows}
    assert all(row["tokens_per_second"] > 0 for row in result.rows)
    assert by_name["no memory"]["times_no_memory"] == by_name["text in the prompt"]["times_text_in_the_prompt"] == 1.0
    assert 300 < result.settings["tokens of references in the prompt"] <= 5 * 132


def test_every_row_of_a_batch_reads_its_own_memories() -> None:
    import torch

    from agentmem.model.attention import attached
    from tests.test_memory3 import MEMORIES

    model = LocalModel.load(bundled_model(), device="cpu")
    recipe = Memory3()
    kvs = recipe.encode(model, MEMORIES)
    placed = [recipe.place(model, [kvs[0], kvs[1]]), recipe.place(model, [kvs[2], kvs[1]])]
    ids = torch.tensor([model.chat.encode("Who runs the harbour of Velnor, and who does not?")])
    reader = Rows()
    reader.swap(placed)
    with attached(model.model, reader), torch.no_grad():
        together = model.model(input_ids=ids.expand(2, -1), use_cache=False).logits
    for row, one in enumerate(placed):
        torch.testing.assert_close(together[row], model.logits(ids[0].tolist(), one), atol=3e-5, rtol=0)
    with pytest.raises(InvalidInput, match="differ in length"):
        reader.swap([placed[0], recipe.place(model, kvs)])


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (recall, {"questions": 0}, "questions"),
        (recall, {"facts": 3, "questions": 4}, "questions"),
        (recall, {"recipe": "infllm"}, "choose one of"),
        (throughput, {"batch": 0}, "batch"),
        (throughput, {"rounds": 0}, "rounds"),
    ],
)
def test_settings_out_of_range_are_refused(task, options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        task(**options)

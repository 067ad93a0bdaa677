"""Pass keys for real: the bundled model, a real store, texts of several windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentmem import InvalidInput
from agentmem.evaluation.passkey import passkey
from agentmem.recipes import InfLLM, StreamingLLM

TEXT = 3000


def test_a_stream_finds_what_a_window_has_lost(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = passkey(
        recipes=[InfLLM(), StreamingLLM()],
        lengths=[TEXT],
        samples=4,
        log=tmp_path / "log.jsonl",
        advance=lambda *told: seen.append(told),
    )
    infllm, window = result.rows
    assert (infllm["recipe"], infllm["accuracy"], infllm["samples"]) == ("infllm", 1.0, 4)
    assert window["recipe"] == "streaming_llm"
    assert window["accuracy"] < 1.0  # type: ignore[operator]  # a number
    assert seen[-1] == ("streaming_llm, 3,000 tokens", 4, 4)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert len({(line["recipe"], line["seed"]) for line in lines}) == 8
    assert {line["tokens"] for line in lines} == {TEXT}


def test_an_interrupted_run_goes_on_behind_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = passkey(recipes=[InfLLM()], lengths=[900], samples=1, log=log)
    line = json.loads(log.read_text())
    assert line["right"] is True
    log.write_text(json.dumps({**line, "right": False, "answer": "what the log says"}) + "\n")
    second = passkey(recipes=[InfLLM()], lengths=[900], samples=2, log=log)
    assert first.rows[0]["accuracy"] == 1.0
    assert second.rows[0]["accuracy"] == 0.5  # the logged one was not run again
    assert len(log.read_text().splitlines()) == 2
    other = passkey(recipes=[InfLLM(top_k=2)], lengths=[900], samples=1, log=log)
    assert other.rows[0]["accuracy"] == 1.0  # another setting is another sample
    exact = passkey(recipes=[InfLLM()], lengths=[900], samples=1, log=log, dtype="float64")
    assert exact.rows[0]["accuracy"] == 1.0  # and so is another precision


def test_keys_are_hidden_in_a_text_of_ones_own(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("I walked to the station and waited for the train to come in. " * 200, encoding="utf-8")
    result = passkey(recipes=[InfLLM()], lengths=[1200], samples=1, filler=book)
    assert result.settings["filler"] == "book.txt"
    book.write_text("Too short.", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"book.txt"):
        passkey(recipes=[InfLLM()], lengths=[1200], samples=1, filler=book)


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"lengths": [0]},
        {"lengths": []},
        {"keys": 3},
        {"recipes": []},
        {"recipes": [InfLLM(n_local=1000)]},
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_runs(wrong: dict[str, object], tmp_path: Path) -> None:
    settings: dict[str, object] = {"recipes": [InfLLM()], "lengths": [900], "log": tmp_path / "log.jsonl"}
    with pytest.raises(InvalidInput):
        passkey(**{**settings, **wrong})  # type: ignore[arg-type]  # by name
    assert not (tmp_path / "log.jsonl").exists()

"""``agentmem eval``: a table on the terminal, files in a folder."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from cli_world import invoke, only_line
from rich.console import Console
from rich.progress import Progress
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agentmem.cli import measuring
from agentmem.evaluation.progress import Advance
from agentmem.evaluation.result import Result
from agentmem.llm import bundled_model

FIDELITY = ("eval", "fidelity", "--samples", "1", "--memories", "1", "--codec", "int8")


def test_it_prints_a_table_and_writes_the_files(babbler: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "results"
    result = invoke(*FIDELITY, "--recipe", "parallel:scale=0.9", "--model", str(babbler), "--out", str(folder))
    assert result.exit_code == 0, result.stderr
    assert "logit difference" in result.stdout
    assert [line.split()[:2] for line in result.stdout.splitlines()[2:]] == [["in", "place"], ["parallel", "int8"]]
    assert sorted(path.name for path in folder.iterdir()) == [
        f"fidelity.{kind}" for kind in ("json", "md", "png", "svg")
    ]
    assert str(folder / "fidelity.json") in only_line(result.stderr)


def test_json_is_what_the_file_holds(babbler: Path, tmp_path: Path) -> None:
    result = invoke(*FIDELITY, "--model", str(babbler), "--out", str(tmp_path), "--json")
    told, written = json.loads(result.stdout), json.loads((tmp_path / "fidelity.json").read_text(encoding="utf-8"))
    assert told["rows"] == written["rows"]
    assert told["settings"] == written["settings"]
    assert told["task"] == "fidelity"


def test_a_terminal_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    monkeypatch.setattr(measuring, "progress", lambda: Progress(*Progress.get_default_columns(), console=console))

    def task(advance: Advance) -> Result:
        advance("64k tokens", 3, 50)
        advance("256k tokens", 5, 50)
        advance("64k tokens", 50, 50)
        return Result("toy", {}, [{"recipe": "parallel"}])

    measuring.run(task, tmp_path, json=False)
    small, large = (line for line in shown.getvalue().splitlines()[-3:] if "tokens" in line)
    assert "64k tokens" in small
    assert "100%" in small
    assert "256k tokens" in large
    assert "10%" in large


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--recipe", "paralel", "paralel"),
        ("--recipe", "parallel:heat=1", "heat=1"),
        ("--codec", "int7", "int7"),
        ("--samples", "0", "samples"),
    ],
)
def test_what_cannot_be_measured_is_one_line_of_error(option: str, value: str, told: str, tmp_path: Path) -> None:
    result = invoke(*FIDELITY, option, value, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert told in only_line(result.stderr)
    assert result.stdout == ""


def test_without_matplotlib_it_says_so_before_it_measures(
    tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = invoke(*FIDELITY, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "agentmem-kv[eval]" in only_line(result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("It was a dark night, and the rain fell on the old mill by the river. " * 60, encoding="utf-8")
    return path


def test_perplexity_compares_models_with_and_without_memory(babbler: Path, book: Path, tmp_path: Path) -> None:
    model = tmp_path / "deeper"
    _two_layers(babbler, model)
    result = invoke(
        *("eval", "perplexity", "--text", str(book), "--length", "600", "--window", "256", "--out", str(tmp_path)),
        *("--contender", f"plain={model}", "--contender", f"memory={model}@memlong:top_k=2"),
    )
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "perplexity.json").read_text(encoding="utf-8"))["rows"]
    assert [row["contender"] for row in rows] == ["plain", "memory"]
    assert rows[1]["saved"] is not None
    assert (tmp_path / "perplexity.svg").is_file()


def test_statements_are_asked_of_every_contender(babbler: Path, book: Path, tmp_path: Path) -> None:
    result = invoke(
        *("eval", "statements", "--text", str(book), "--length", "600", "--window", "256", "--samples", "2"),
        *("--contender", f"plain={babbler}", "--out", str(tmp_path)),
    )
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads((tmp_path / "statements.json").read_text(encoding="utf-8"))["rows"]
    assert row["contender"] == "plain"
    assert row["accuracy"] == 0.0


def test_passkey_logs_every_sample_and_goes_on_behind_them(babbler: Path, tmp_path: Path) -> None:
    command = ("eval", "passkey", "--model", str(babbler), "--length", "300", "--length", "600", "--out", str(tmp_path))
    command += ("--recipe", "infllm:n_local=64,step=32,n_init=4,block_size=16,top_k=2", "--recipe", "streaming_llm")
    first = invoke(*command, "--samples", "1")
    assert first.exit_code == 0, first.stderr
    lines = (tmp_path / "passkey.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    again = invoke(*command, "--samples", "2", "--json")
    assert (tmp_path / "passkey.jsonl").read_text(encoding="utf-8").splitlines()[:4] == lines
    rows = json.loads(again.stdout)["rows"]
    assert [(row["recipe"], row["tokens"]) for row in rows] == [
        (recipe, tokens) for recipe in ("infllm", "streaming_llm") for tokens in (300, 600)
    ]
    assert (tmp_path / "passkey.svg").is_file()


def test_recall_and_throughput_of_a_small_knowledge_base(tmp_path: Path) -> None:
    model, base = tmp_path / "model", ("--facts", "4", "--out", str(tmp_path), "--json")
    _tiny(model)
    recalled = invoke("eval", "recall", "--model", str(model), "--questions", "2", *base)
    assert recalled.exit_code == 0, recalled.stderr
    assert {row["contender"] for row in json.loads(recalled.stdout)["rows"]} > {"no memory"}
    timed = invoke("eval", "throughput", "--model", str(model), "--batch", "2", "--rounds", "1", *base)
    assert timed.exit_code == 0, timed.stderr
    assert len(json.loads(timed.stdout)["rows"]) == 3


@pytest.mark.parametrize(("task", "recipe"), [("passkey", "parallel"), ("recall", "infllm"), ("throughput", "infllm")])
def test_a_recipe_of_the_other_kind_is_refused(task: str, recipe: str, tmp_path: Path) -> None:
    result = invoke("eval", task, "--recipe", recipe, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "choose one of" in only_line(result.stderr)
    assert not (tmp_path / "out").exists()


def _tiny(folder: Path) -> None:
    """The bundled model's tokenizer with a small random model of its kind."""
    config = AutoConfig.from_pretrained(bundled_model())
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 2
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 16
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(folder)


def _two_layers(babbler: Path, folder: Path) -> None:
    config = AutoConfig.from_pretrained(babbler)
    config.num_hidden_layers = 2
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(babbler).save_pretrained(folder)


@pytest.mark.parametrize("contender", ["bundled", "=bundled", "a=", "a=bundled@nothing"])
def test_a_contender_that_cannot_be_read_is_refused(contender: str, book: Path, tmp_path: Path) -> None:
    result = invoke("eval", "perplexity", "--text", str(book), "--contender", contender, "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "error:" in only_line(result.stderr)


def test_a_file_of_several_documents_is_refused(tmp_path: Path) -> None:
    lines = tmp_path / "two.jsonl"
    lines.write_text('{"text": "One."}\n{"text": "Two."}\n', encoding="utf-8")
    result = invoke("eval", "perplexity", "--text", str(lines), "--contender", "a=bundled", "--out", str(tmp_path))
    assert result.exit_code == 1
    assert "2 documents" in only_line(result.stderr)

"""Whole runs at the smallest size, with models of random weights: every process, store and figure is real."""

import json
import re

import pytest
import torch
import typer
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from agentmem.evaluation.result import Result
from agentmem.llm import MemoryLLM
from agentmem.training.tokenizer import SPECIAL, VOCABULARY, train_tokenizer
from benchmarks import recall, report, turn_latency
from benchmarks.history import CHUNK_TOKENS, USER, draw, embed, fill
from benchmarks.scripts import GROUPS, KNOWN_ASKED
from benchmarks.shapes import Shape, build


def invoke(main, *arguments):
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """A model in the bundled one's form that knows nothing."""
    folder = tmp_path_factory.mktemp("models") / "random"
    train_tokenizer([], folder, dialogues=200)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=SPECIAL.index("<s>"),
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<pad>"),
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recalled(random_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("recall") / "recall.json"
    printed = invoke(recall.main, "--dialogues", 2, "--out", out, "--model", random_model, "--seed", 5)
    return json.loads(out.read_text()), printed


def test_recall_runs_every_phase_in_a_process_of_its_own(recalled):
    result, _ = recalled
    assert list(result["processes"]) == ["session-1", "session-2", "session-3", "ask", "ask-without"]
    assert len(set(result["processes"].values())) == 5


def test_recall_asks_everyone_everything_with_memory_in_the_store(recalled):
    result, _ = recalled
    assert result["memories_per_user"]["min"] >= 40
    assert result["store"]["memories"] >= 80
    assert result["store"]["cold"] == 0
    assert result["store"]["warm"] == result["store"]["memories"]
    counts = {name: figure["n"] for name, figure in result["rates"].items()}
    assert counts["known_exact"] == counts["without_memory_contained"] == 2 * KNOWN_ASKED
    assert counts["corrected_exact"] == counts["unknown_abstained"] == 4
    assert set(result["by_group"]) == set(GROUPS)


def test_recall_reads_from_disk_and_measures_attention(recalled):
    result, _ = recalled
    assert result["top_k"] == 8
    assert result["read_from_disk"]["n"] > 0
    reads = [read for answer in result["wrong_answers"] for read in answer["read"]]
    assert reads
    assert all(0.0 <= read["share"] <= 1.0 for read in reads)
    assert 0.0 <= result["attention"]["right_memories"] <= result["attention"]["all_memories"] <= 1.0


def test_random_weights_do_not_meet_the_targets(recalled):
    result, printed = recalled
    passed = {name: verdict["passed"] for name, verdict in result["targets"].items()}
    assert passed == {
        "known_exact": False,
        "without_memory_contained": True,
        "unknown_abstained": False,
        "corrected_exact": False,
    }
    assert printed.count("FAIL") == 3
    assert printed.count("PASS") == 1


def test_recall_report_names_no_path(recalled, random_model):
    result, _ = recalled
    assert result["model"] == "random"
    assert str(random_model.parent) not in json.dumps(result)


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    out = tmp_path_factory.mktemp("latency") / "turn_latency.json"
    arguments = ("--shape", "tiny", "--histories", "17000,1000", "--repeats", 5, "--out", out)
    printed = invoke(turn_latency.main, *arguments)
    return json.loads(out.read_text()), printed


def test_latency_has_a_row_for_each_contender_and_history(timed):
    result, _ = timed
    rows = {(row["contender"], row["history"]): row for row in result["rows"]}
    assert set(rows) == {(c, h) for c in ("agentmem", "full context", "text RAG") for h in (1000, 17000)}
    assert [key for key, row in rows.items() if not row["fits"]] == [("full context", 17000)]
    for row in rows.values():
        if row["fits"]:
            spread = row["seconds_to_first_token"]
            assert len(row["seconds"]) == spread["n"] == 5
            assert 0 < spread["q1"] <= spread["median"] <= spread["q3"]
            assert 0 < row["rss_before_bytes"] <= row["rss_peak_bytes"]
    assert rows["agentmem", 1000]["ratio"] == 1.0


def test_latency_contenders_see_what_they_claim_to_see(timed):
    result, printed = timed
    rows = {(row["contender"], row["history"]): row for row in result["rows"]}
    for tokens in (1000, 17000):
        own, rag = rows["agentmem", tokens], rows["text RAG", tokens]
        assert own["prompt_tokens"] < 40
        assert own["memory_tokens"] > 4 * CHUNK_TOKENS
        assert own["rebuilt"] == 0
        assert rag["prompt_tokens"] > 4 * CHUNK_TOKENS
        assert rag["memory_tokens"] == 0
    # What agentmem's turns wrote was taken out again: text RAG pastes the very chunks that agentmem reads.
    assert rows["text RAG", 1000]["prompt_tokens"] == rows["text RAG", 17000]["prompt_tokens"]
    assert rows["full context", 1000]["prompt_tokens"] >= 1000
    assert rows["agentmem", 17000]["store_bytes"] > rows["agentmem", 1000]["store_bytes"]
    assert "does not fit" in printed


def test_fill_writes_the_history_and_the_kv_that_is_recalled(tmp_path):
    build(Shape.TINY, tmp_path / "tiny")
    with MemoryLLM(tmp_path / "tiny", store=tmp_path / "memory.db", threshold=None) as llm:
        history = draw(llm, Shape.TINY, 6000, 2, seed=0)
        assert set(history.lengths) == {CHUNK_TOKENS}
        n = fill(llm, history, embed(llm, history.texts), 5000)
        memories = llm.conversation(user=USER).memories
        stats = memories.stats()
        assert (n, stats.memories) == (history.cut(5000), history.cut(5000))
        assert 5000 <= stats.tokens < 5000 + CHUNK_TOKENS
        assert 2 * 8 <= stats.warm < stats.memories
        for number, question in enumerate(history.questions):
            best = memories.search(question)[0].memory
            assert best.text == history.texts[number]
            assert best.tier == "warm"
        with pytest.raises(ValueError, match="not 99999"):
            history.cut(99_999)


def test_report_fills_the_sections(recalled, timed, tmp_path):
    results = tmp_path / "RESULTS.md"
    section = re.compile(r"(<!-- begin (.+?) -->).*?(<!-- end \2 -->)", re.DOTALL)
    results.write_text(section.sub(r"\1\n\nNot measured yet.\n\n\3", report.RESULTS.read_text()))
    for name, (result, _) in (("recall", recalled), ("turn_latency", timed)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    paths = [tmp_path / "recall.json", tmp_path / "turn_latency.json"]
    invoke(report.main, *paths, "--results", results)
    once = results.read_text()
    assert once.count("Not measured yet.") == len(section.findall(once)) - 2
    assert recalled[0]["command"] in once
    assert "| unknown abstained |" in once
    assert "| full context | 17,000 | does not fit |" in once
    invoke(report.main, *paths, "--results", results)
    assert results.read_text() == once


def test_report_gives_an_evaluation_the_place_it_is_told(tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text("<!-- begin passkey -->\n<!-- end passkey -->\n<!-- begin pk two -->\n<!-- end pk two -->\n")
    measured = Result("passkey", {"keys": 2}, [{"recipe": "infllm", "accuracy": 0.5}])
    (tmp_path / "passkey.json").write_text(json.dumps(measured.as_json()))
    invoke(report.main, tmp_path / "passkey.json", "--results", results, "--place", "pk two")
    before, after = results.read_text().split("<!-- begin pk two -->")
    assert "infllm" not in before
    assert measured.markdown() in after
    assert f"torch {torch.__version__}" in after
    invoke(report.main, tmp_path / "passkey.json", "--results", results)
    assert results.read_text().count("| infllm | 0.5 |") == 2


def test_report_refuses_a_file_without_a_place():
    with pytest.raises(ValueError, match="begin turn_latency tiny"):
        report.insert("# Results\n", "turn_latency tiny", "figures")

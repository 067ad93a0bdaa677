"""The benchmark of many memories, with few."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agentmem.records import Scope
from agentmem.store import Store
from benchmarks import report, scale
from benchmarks.population import ASKED, DIM, WORDS, Population
from benchmarks.scale_worker import EMBEDDER


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    app = scale.typer.Typer()
    app.command()(scale.main)
    options = ["--memories", "2600", "--probes", "100,500", "--repeats", "5", "--out", str(folder / "scale.json")]
    done = CliRunner().invoke(app, [*options, "--keep", str(folder / "stores")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder


def test_scopes_are_searched_in_the_full_store_and_alone(measured: Path) -> None:
    result = json.loads((measured / "scale.json").read_text())
    rows = [(row["user"], row["store"]) for row in result["search"]]
    assert rows == [("user-100", "alone"), ("user-100", "full"), ("user-500", "alone"), ("user-500", "full")]
    for row in result["search"]:
        for kind in scale.KINDS:
            assert row[kind]["n"] == 5  # the first round is not counted
            assert 0 < row[kind]["median"] <= row[kind]["p95"]
    assert result["rss_bytes"] > result["rss_before_bytes"] > 0
    assert len(result["fill"]["per_second"]) >= 10
    assert [row["add"]["n"] for row in result["add"]] == [5, 5]


def test_the_store_holds_what_was_asked_for(measured: Path) -> None:
    added = 2 * 5  # to each of the two users, at the end
    with Store.open(measured / "stores" / "full.db", embedder=EMBEDDER) as store:
        counts = [store.scope(Scope(user=user)).count() for user in ("user-100", "user-500", "other-0", "other-1")]
        assert sum(counts) == store.stats().memories
        assert all(count >= 100 for count in counts)
        evicted = json.loads((measured / "scale.json").read_text())["evict"]["evicted"]
        assert evicted >= 2
        assert store.stats().memories == 2600 + 2 * added + 2 - evicted
    with Store.open(measured / "stores" / "alone-500.db", embedder=EMBEDDER) as store:
        assert store.stats().memories == 500


def test_the_figures_have_their_place_in_the_results(measured: Path, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("<!-- begin scale -->\n<!-- end scale -->\n")
    report.main([measured / "scale.json"], results)
    text = results.read_text()
    assert "| user-500 | full |" in text
    assert "memories per second" in text
    assert str(measured) not in text


def test_texts_have_the_words_of_a_turn_and_queries_the_words_of_a_question() -> None:
    made = Population(7).batch("s")
    assert {len(memory.text.split()) for memory in made} == {2 * WORDS}
    assert made[0].embedding is not None
    assert made[0].embedding.shape == (DIM,)
    assert np.allclose([np.linalg.norm(memory.embedding) for memory in made if memory.embedding is not None], 1)
    (query,) = Population(8).queries([made[0].text])
    assert len(query.text.split()) == ASKED
    assert set(query.text.split()) < set(made[0].text.split())


def test_common_words_are_as_common_as_in_dialogue() -> None:
    texts = [set(memory.text.split()) for number in range(30) for memory in Population(number).batch("s")]
    shares = sorted(
        (sum(word in text for text in texts) / len(texts) for word in set.union(*texts[:200])), reverse=True
    )
    own = [share for share in shares if share < 0.99]  # without the stop-words between
    assert own[0] == pytest.approx(0.29, abs=0.06)
    assert own[30] == pytest.approx(0.052, abs=0.02)


def test_the_same_seed_gives_the_same_memories() -> None:
    one, two = Population(3).batch("s"), Population(3).batch("s")
    assert [memory.text for memory in one] == [memory.text for memory in two]
    assert Population(4).batch("s")[0].text != one[0].text

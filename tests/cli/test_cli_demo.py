"""``agentmem demo``: two processes, one store, and an honest exit code."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import pytest
from cli_world import invoke, only_line

from agentmem.records import Scope
from agentmem.store import Store


def test_the_second_process_knows_what_the_first_was_told(path: Path) -> None:
    result = invoke("demo", "--store", str(path))
    shown = result.stdout
    assert result.exit_code == 0, shown + result.stderr
    assert len(set(re.findall(r"process (\d+)", shown))) == 2
    for part in ("Your dog is called Biscuit.", "You have not told me", "warm", str(path)):
        assert part in shown
    assert re.search(r"\d\d\.\d%.*My dog is called Biscuit\.", shown)
    assert (shown.count(" yes  "), shown.count(" no   ")) == (5, 0)
    with Store.open(path) as store:  # it was kept
        memories = store.scope(Scope(user="ada")).list(sort="created_at")
    assert "My wifi password is K7-402." in [memory.text for memory in memories]
    assert [memory.text for memory in memories].count("What is my dog called?") == 1  # the control left nothing


def test_a_model_that_remembers_nothing_fails(babbler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = invoke("demo", "--model", str(babbler), "--json")
    assert result.exit_code == 1
    demo = json.loads(result.stdout)
    assert demo["ok"] is False
    assert demo["checks"]["the new process knew the answer: Biscuit"] is False
    assert len(demo["told"]) == 7
    assert "What is my dog called?" in demo["asked"]["context"]
    assert "Biscuit" not in demo["asked"]["context"]
    reads = demo["asked"]["reply"]["memories"]
    assert "My dog is called Biscuit." in [read["memory"]["text"] for read in reads]
    assert {read["memory"]["tier"] for read in reads} == {"warm"}
    assert demo["control"]["reply"]["memories"] == []
    assert list(tmp_path.iterdir()) == []  # the store was thrown away


def test_a_day_that_fails_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = invoke("demo", "--model", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    said_by_the_day = only_line(capfd.readouterr().err)
    assert said_by_the_day.startswith("error: ")
    assert "does not exist" in said_by_the_day


@pytest.mark.parametrize("content", [b"", b"mine"])
def test_an_existing_file_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    result = invoke("demo", "--store", str(path))
    assert result.exit_code == 1
    assert "exists" in only_line(result.stderr)
    assert path.read_bytes() == content

"""``agentmem train``: what it asks for, what it refuses, and a run from a folder to a folder."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentmem.cli import app

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from tuning_world import save_model, text

RUN = CliRunner()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("agentmem.cli.train.find_spec", lambda name: None if name == "peft" else find(name))
    arguments = ["train", "memlong", "--model", "x", "--text", "y.txt", "--out", str(tmp_path / "out")]
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 1
    assert "pip install 'agentmem-kv[train]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_writes_a_model_and_a_bad_one_nothing(tmp_path: Path) -> None:
    base, book = save_model(tmp_path / "base"), tmp_path / "book.txt"
    book.write_text(text(1, 40).replace("\n", "\n\n"))
    out = tmp_path / "out"
    arguments = ["train", "memlong", "--model", str(base), "--text", str(book), "--steps", "2", "--streams", "1"]
    arguments += ["--window", "200", "--rank", "2", "--device", "cpu", "--out"]
    for option, reason in (
        (["--positions", "nowhere"], "positions must be"),
        (["--memory-layer", "9"], "memory_layer is 9"),
        (["--window", "4000"], "positions"),
    ):
        failed = RUN.invoke(app, [*arguments, str(out), *option])
        assert (failed.exit_code, reason in failed.stderr) == (1, True), failed.stderr
        assert not out.exists()
    done = RUN.invoke(app, [*arguments, str(out), "--memory-layer", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "model" / "config.json").read_text())["agentmem_memlong"]["memory_layer"] == 1
    assert len((out / "log.jsonl").read_text().splitlines()) == 2

"""``agentmem doctor`` and the command itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_world import fill, invoke, only_line

from agentmem import llm
from agentmem.cli import doctor
from agentmem.errors import StoreOpenError
from agentmem.store import Store


def test_all_is_well(path: Path) -> None:
    fill(path)
    result = invoke("doctor", "--store", str(path))
    assert result.exit_code == 0, result.stdout
    for part in ("torch", "transformers", "sqlite-vec", "bundled model", "4 memories", "free"):
        assert part in result.stdout
    assert "broken" not in result.stdout


def test_json(path: Path) -> None:
    fill(path)
    told = json.loads(invoke("doctor", "--store", str(path), "--json").stdout)
    assert told["ok"] is True
    found = {finding["name"]: finding["detail"] for finding in told["findings"]}
    assert found["torch"] == version("torch")
    assert {
        "python",
        "transformers",
        "device",
        "sqlite",
        "sqlite-vec",
        "bundled model",
        "disk",
        "store",
    } <= found.keys()


def no_bundled_model(patch: pytest.MonkeyPatch, path: Path) -> str:
    patch.setattr(llm, "bundled_model", lambda: path.parent / "gone")
    return "bundled model"


def old_sqlite(patch: pytest.MonkeyPatch, path: Path) -> str:
    def refuse() -> None:
        raise StoreOpenError("SQLite 3.40.0 is too old: upgrade the pysqlite3 package")

    patch.setattr(doctor, "check_driver", refuse)
    return "sqlite"


def full_disk(patch: pytest.MonkeyPatch, path: Path) -> str:
    patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    return "disk"


def no_store(patch: pytest.MonkeyPatch, path: Path) -> str:
    path.unlink()
    return "store"


def damaged_store(patch: pytest.MonkeyPatch, path: Path) -> str:
    with Store.open(path) as store, store.write() as connection:
        connection.exec_driver_sql("UPDATE kv_payload SET data = zeroblob(nbytes)")
    return "store"


def foreign_file(patch: pytest.MonkeyPatch, path: Path) -> str:
    path.write_bytes(b"something else")
    return "store"


@pytest.mark.parametrize("break_it", [no_bundled_model, old_sqlite, full_disk, no_store, damaged_store, foreign_file])
def test_what_is_broken_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, path: Path, break_it: Callable[[pytest.MonkeyPatch, Path], str]
) -> None:
    fill(path)
    name = break_it(monkeypatch, path)
    result = invoke("doctor", "--store", str(path), "--json")
    assert result.exit_code == 1
    broken = [finding for finding in json.loads(result.stdout)["findings"] if not finding["ok"]]
    assert [finding["name"] for finding in broken] == [name]
    assert broken[0]["advice"]
    shown = invoke("doctor", "--store", str(path))
    assert shown.exit_code == 1
    assert "broken" in shown.stdout


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"agentmem {version('agentmem-kv')}\n")


def test_nothing_asked_for_shows_the_help() -> None:
    result = invoke()
    for command in ("demo", "chat", "memories", "doctor"):
        assert command in result.stdout + result.stderr
    assert "demo-day" not in result.stdout + result.stderr


@pytest.mark.parametrize("words", [["demo"], ["chat"], ["doctor"], ["memories"], ["memories", "prune"]])
def test_every_command_has_help(words: list[str]) -> None:
    result = invoke(*words, "-h")
    assert result.exit_code == 0
    assert "Usage: agentmem" in result.stdout


def test_an_unknown_command_is_a_usage_error() -> None:
    assert invoke("remember").exit_code == 2


def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    result = invoke("chat", "Hello!", "--store", str(tmp_path / "missing" / "memory.db"))
    assert result.exit_code == 1
    assert "does not exist" in only_line(result.stderr)

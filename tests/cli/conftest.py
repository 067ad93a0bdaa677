from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli_world import Terminal, fill

from agentmem.model.local import LocalModel
from agentmem.records import Memory


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests must not reach them."""
    for name in ("AGENTMEM_STORE", "AGENTMEM_USER", "AGENTMEM_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@pytest.fixture
def stored(path: Path) -> list[Memory]:
    """Four memories of ada at ``path``, oldest first."""
    return fill(path)


@pytest.fixture
def on_terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Runs the command on a terminal."""
    terminals: list[Terminal] = []

    def start(*args: str) -> Terminal:
        terminals.append(Terminal(*args, cwd=tmp_path))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a language model is an error."""

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(LocalModel, "load", refuse)

"""Checkpoint folders of tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import build, tokenizer

from agentmem.model.local import LocalModel


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with its tokenizer, as ``save_pretrained`` writes them."""
    path = tmp_path_factory.mktemp("tiny-llama")
    build("llama").save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LocalModel:
    """The model of ``folder``."""
    return LocalModel.load(folder, device="cpu")

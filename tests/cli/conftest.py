from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cli_world import Terminal, fill
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agentmem.llm import bundled_model
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


@pytest.fixture(scope="session")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that says the same word for a very long time: its last layer answers with one token only."""
    folder = tmp_path_factory.mktemp("babbler")
    config = AutoConfig.from_pretrained(bundled_model())
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 32, 64, 1
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 2, 1, 16
    config.max_position_embeddings, config.tie_word_embeddings = 65536, False
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    word = tokenizer(" the", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():  # one large number in every hidden state, which only this word's row looks at
        model.model.embed_tokens.weight[:, 0] = 10.0
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[word] = 1.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

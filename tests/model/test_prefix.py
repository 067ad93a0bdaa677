"""A prompt that goes on from one that was read before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from agentmem.llm import bundled_model
from agentmem.model.local import LocalModel

PROMPT = [1, *range(20, 60)]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model())


@contextmanager
def counted(model: LocalModel) -> Iterator[list[int]]:
    """Numbers of tokens that the model reads, forward by forward."""
    read: list[int] = []

    def note(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read.append(kwargs["input_ids"].shape[1])

    handle = model.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield read
    finally:
        handle.remove()


def placed(model: LocalModel) -> Any:
    return model.place([model.encode([30, 31, 32, 33], model.chat.prefix_ids)], [-4])


@pytest.mark.parametrize("reads", ["nothing", "memory"])
def test_only_what_is_new_is_read(model: LocalModel, reads: str) -> None:
    memory = placed(model) if reads == "memory" else None
    longer = [*PROMPT, *range(70, 90)]

    def answer(prompt: list[int], settled: int, begun: Any = None) -> Any:
        return model.generate(prompt, reads=[(0, None), (settled, memory)], max_new_tokens=8, begun=begun)

    first = answer(PROMPT, 30)
    assert first.prefix is not None
    assert first.prefix.ids == tuple(PROMPT[:30])
    alone = answer(longer, 50)
    assert alone.text is not None
    with counted(model) as read:
        after = answer(longer, 50, first.prefix)
        assert after.token_ids or after.text is not None
        _ = after.text
    assert sum(read[:2] if memory else read[:1]) == len(longer) - 30
    assert after.token_ids == alone.token_ids
    assert after.prefix is not None
    assert alone.prefix is not None
    for one, other in zip(after.prefix.keys, alone.prefix.keys, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-4


def test_a_prompt_that_differs_early_is_read_from_there(model: LocalModel) -> None:
    first = model.generate(PROMPT, reads=[(0, None), (30, None)], max_new_tokens=1)
    _ = first.text
    other = [*PROMPT[:10], 99, *PROMPT[11:]]
    alone = model.generate(other, reads=[(0, None), (30, None)], max_new_tokens=6)
    after = model.generate(other, reads=[(0, None), (30, None)], max_new_tokens=6, begun=first.prefix)
    assert after.text == alone.text
    short = [model.generate([5, 6, 7], max_new_tokens=2, begun=begun) for begun in (None, first.prefix)]
    assert short[0].text == short[1].text  # nothing in common, and nothing that reads no memory


def test_what_reads_memory_is_never_kept(model: LocalModel) -> None:
    memory = placed(model)
    assert model.generate(PROMPT, placed=memory, max_new_tokens=1).prefix is None
    assert model.generate(PROMPT, reads=[(0, memory), (30, None)], max_new_tokens=1).prefix is None
    assert model.generate(PROMPT, max_new_tokens=1).prefix is None


def test_layers_with_a_sliding_window_keep_no_prefix(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=16,
        max_position_embeddings=256,
    )
    torch.manual_seed(0)
    sliding = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = LocalModel(sliding.eval(), LocalModel.load(bundled_model()).tokenizer)
    generation = model.generate(PROMPT, reads=[(0, None), (30, None)], max_new_tokens=2)
    assert generation.prefix is None

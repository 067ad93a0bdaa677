"""A recipe that the model cannot serve is refused when it is opened, with the reason, and no store is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmem import AgentMemError, InvalidInput, MemLong, Memory3, MemoryLLM, UnsupportedModel
from agentmem.recipes import (
    RECIPES,
    STREAM_RECIPES,
    InfLLM,
    LMInfinite,
    Recipe,
    StreamingLLM,
    StreamRecipe,
    memory_recipe,
    stream_recipe,
)
from tests.model import tiny_models

EVERY = sorted([*RECIPES, *STREAM_RECIPES])


def saved(family: str, folder: Path, **changes: int) -> Path:
    """A tiny model: four layers, 512 positions, unless changed."""
    model = tiny_models.build(family)
    if changes:
        config = model.config
        for name, value in changes.items():
            setattr(config, name, value)
        config.layer_types = None
        model = type(model)(config)
    model.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("one"), num_hidden_layers=1)


def refused(model: Path, recipe: str | Recipe | StreamRecipe, store: Path) -> AgentMemError:
    """The error of opening the model so; nothing may be left of the attempt."""
    with pytest.raises(AgentMemError) as caught:
        MemoryLLM(model, store=store, recipe=recipe)
    assert not store.exists()
    return caught.value


@pytest.mark.parametrize("name", EVERY)
def test_learned_positions_are_refused_by_every_recipe(gpt2: Path, name: str, tmp_path: Path) -> None:
    error = refused(gpt2, name, tmp_path / "memory.db")
    assert isinstance(error, UnsupportedModel)
    assert "learned absolute positions" in str(error)


@pytest.mark.parametrize("name", ["memlong", "memory3"])
def test_one_layer_is_too_few(one_layer: Path, name: str, tmp_path: Path) -> None:
    error = refused(one_layer, name, tmp_path / "memory.db")
    assert isinstance(error, InvalidInput)
    assert "this model has 1" in str(error)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (MemLong(memory_layer=4), "memory_layer is 4, but the model's layers are 0 to 3"),
        (MemLong(memory_layer=2, retrieval_layers=(1, 3)), "retrieval layer 1 lies below the memory layer 2"),
        (MemLong(retrieval_layers=(2, 4)), r"retrieval_layers \[2, 4\]"),
        (MemLong(positions="contiguous"), "the model has 512 positions"),
        (Memory3(layers=(0, 4)), r"layers \[0, 4\]: the model's layers are 0 to 3"),
        (Memory3(interval=512), "the model has 512"),
        (InfLLM(n_local=500, step=64), "564 positions, and the model was trained on 512"),
        (InfLLM(n_local=32, step=64), "n_local"),
        (InfLLM(n_local=128, step=32, top_k=9, cached_blocks=8), r"top_k \(9\) exceeds cached_blocks \(8\)"),
        (InfLLM(n_local=128, step=32, n_repr=200), "n_repr"),
        (StreamingLLM(n_local=508, step=1, n_init=4), "513 positions"),
        (LMInfinite(n_local=512, step=8), "520 positions"),
    ],
)
def test_what_the_model_has_no_room_for_is_refused_by_name_and_number(
    llama: Path, recipe: Recipe | StreamRecipe, told: str, tmp_path: Path
) -> None:
    error = refused(llama, recipe, tmp_path / "memory.db")
    assert isinstance(error, InvalidInput)
    assert re.search(told, str(error)), error


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Memory3(keep=129), "keep is 129"),
        (lambda: Memory3(keep=0), "keep is 0"),
        (lambda: Memory3(score="max"), "'max'"),
        (lambda: Memory3(layers=(1, 0)), "ascending"),
        (lambda: Memory3(top_k=0), "top_k"),
        (lambda: MemLong(memory_layer=-1), "memory_layer is -1"),
        (lambda: MemLong(retrieval_layers=()), "retrieval_layers is empty"),
        (lambda: MemLong(positions="one"), "'one'"),
        (lambda: MemLong(top_k=0), "top_k"),
        (lambda: stream_recipe("parallel"), "keeps no stream"),
        (lambda: memory_recipe("infllm"), "keeps a stream"),
    ],
)
def test_what_no_model_could_serve_is_refused_without_one(make: object, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("name", EVERY)
def test_the_defaults_suit_a_short_model(llama: Path, name: str, tmp_path: Path) -> None:
    with MemoryLLM(llama, store=tmp_path / "memory.db", recipe=name) as llm:
        assert llm.recipe.name == name

"""The matrix that every recipe passes: one row per entry of RECIPES, on the bundled model."""

import dataclasses
from datetime import UTC, datetime

import pytest
import torch

from agentmem import InvalidInput, Memory, Parallel, Role, Scope
from agentmem.llm import bundled_model
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.recipes import RECIPES, Recipe, get_recipe
from agentmem.store.codec import pack, unpack

TEXTS = ["My dog is called Biscuit.", "I live in Oslo.", "The train was late again, and I had to wait for an hour."]
QUESTION = "What is my dog called?"
ROUNDING = {"atol": 2e-5, "rtol": 0.0}
"""fp32, batches of other sizes."""


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return LocalModel.load(bundled_model(), device="cpu")


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return get_recipe(request.param)


def memory(text: str, at: datetime = datetime(2026, 5, 4, tzinfo=UTC)) -> Memory:
    return Memory(
        id=text[:8], scope=Scope(user="ada"), text=text, role=Role.USER, turn="t", chunk_no=0, n_tokens=9, created_at=at
    )


def assert_same(one: KV, other: KV) -> None:
    assert one.layers == other.layers
    for a, b in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        torch.testing.assert_close(a, b, **ROUNDING)


def logits(model: LocalModel, recipe: Recipe, kvs: list[KV]) -> torch.Tensor:
    return model.logits(model.chat.encode(QUESTION), recipe.place(model, kvs))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_it_is_chosen_by_its_name_and_cannot_be_changed(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    assert get_recipe(recipe) is recipe
    assert dataclasses.fields(recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(recipe, dataclasses.fields(recipe)[0].name, 0.5)


def test_identities_differ() -> None:
    assert len({get_recipe(name).identity for name in RECIPES}) == len(RECIPES)


def test_kv_does_not_depend_on_the_other_memories(model: LocalModel, recipe: Recipe) -> None:
    memories = [memory(text) for text in TEXTS]
    together = recipe.encode(model, memories)
    backwards = recipe.encode(model, memories[::-1])[::-1]
    for one, kv, again in zip(memories, together, backwards, strict=True):
        (alone,) = recipe.encode(model, [one])
        assert_same(alone, kv)
        assert_same(alone, again)


def test_kv_is_that_of_its_text(model: LocalModel, recipe: Recipe) -> None:
    dog, cat = recipe.encode(model, [memory("My dog is called Biscuit."), memory("My cat is called Biscuit.")])
    assert any(not torch.equal(a, b) for a, b in zip((*dog.keys, *dog.values), (*cat.keys, *cat.values), strict=True))


def test_what_is_read_changes_the_answer_and_nothing_in_store(model: LocalModel, recipe: Recipe) -> None:
    kvs = recipe.encode(model, [memory(text) for text in TEXTS])
    plain = model.logits(model.chat.encode(QUESTION))
    read = logits(model, recipe, kvs)
    assert read.shape == plain.shape
    assert torch.isfinite(read).all()
    assert not torch.allclose(read[-1], plain[-1], **ROUNDING)
    assert all(kv.intact for kv in kvs)
    assert torch.equal(model.logits(model.chat.encode(QUESTION)), plain), "what was read must not linger"


def test_every_memory_has_its_span(model: LocalModel, recipe: Recipe) -> None:
    kvs = recipe.encode(model, [memory(text) for text in TEXTS])
    placed = recipe.place(model, kvs)
    assert len(placed.spans) == len(kvs)
    assert [stop - start for start, stop in placed.spans] == [kv.n_tokens for kv in kvs]


def test_kv_from_disk_answers_like_kv_just_encoded(model: LocalModel, recipe: Recipe) -> None:
    kvs = recipe.encode(model, [memory(text) for text in TEXTS])
    stored = [KV(*unpack(pack(kv.keys, kv.values, "fp32", layers=kv.layers, offsets=kv.offsets))) for kv in kvs]
    assert torch.equal(logits(model, recipe, kvs), logits(model, recipe, stored))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="parallel"):
        get_recipe("paralel")


def test_parallel_reads_alike_in_any_order(model: LocalModel) -> None:
    recipe = Parallel()
    kvs = recipe.encode(model, [memory(text) for text in TEXTS])
    torch.testing.assert_close(logits(model, recipe, kvs), logits(model, recipe, kvs[::-1]), atol=1e-4, rtol=0.0)


def test_parallel_encodes_speaker_and_date(model: LocalModel) -> None:
    recipe, text = Parallel(), TEXTS[0]
    may, june = (memory(text, datetime(2026, month, 4, tzinfo=UTC)) for month in (5, 6))
    assert recipe.text(may) == "[user 2026-05-04] My dog is called Biscuit.\n"
    assert recipe.text(may) != recipe.text(june)

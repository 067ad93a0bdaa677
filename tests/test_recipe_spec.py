"""Recipes written in one word."""

import pytest

from agentmem import InvalidInput
from agentmem.recipes import RECIPES, STREAM_RECIPES, InfLLM, MemLong, Parallel
from agentmem.recipes.spec import parse_recipe


@pytest.mark.parametrize(("name", "kind"), [*RECIPES.items(), *STREAM_RECIPES.items()])
def test_a_name_alone_is_the_recipe_with_its_defaults(name: str, kind: type) -> None:
    assert parse_recipe(name) == kind()


def test_fields_are_read_as_what_they_are() -> None:
    assert parse_recipe("parallel:temperature=0.9,scale=1") == Parallel(temperature=0.9, scale=1.0)
    assert parse_recipe("memlong:memory_layer=1,retrieval_layers=1+3,positions=contiguous") == MemLong(
        memory_layer=1, retrieval_layers=(1, 3), positions="contiguous"
    )
    assert parse_recipe("memlong:memory_layer=none") == MemLong()
    assert parse_recipe("infllm:n_local=1024,top_k=16,selection=all_heads") == InfLLM(
        n_local=1024, top_k=16, selection="all_heads"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("paralel", "unknown recipe 'paralel'"),
        ("parallel:temprature=1", "temperature, scale"),
        ("parallel:temperature", "NAME=VALUE"),
        ("parallel:temperature=warm", "temperature=warm"),
        ("memlong:positions=one", "'zero'"),
        ("memlong:top_k=0", "top_k"),
        ("memlong:top_k=1.5", "top_k=1.5"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(text: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        parse_recipe(text)

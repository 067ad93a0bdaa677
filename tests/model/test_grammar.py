"""What a grammar lets through of a JSON schema: which texts it takes, and which not."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import pytest
from tiny_models import tokenizer

from agentmem.errors import InvalidInput
from agentmem.model.constraint import Grammars
from agentmem.model.grammar import Rules

TOKENIZER = tokenizer()
GRAMMARS = Grammars(TOKENIZER, len(TOKENIZER))
TEXT = {"type": "string"}
PET: dict[str, Any] = {"type": "object", "properties": {"name": TEXT}, "required": ["name"]}
BISCUIT, MORE = {"name": "Biscuit"}, {"name": "Biscuit", "more": 1}


def takes(schema: dict[str, Any], value: Any) -> bool:
    rules = Rules(lambda text: None)
    grammar = rules.grammar(rules.json(schema))
    GRAMMARS.check(grammar)
    matcher = llguidance.LLMatcher(GRAMMARS.tokens, grammar)
    ids = TOKENIZER.encode(json.dumps(value), add_special_tokens=False)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (PET, BISCUIT, MORE),
        ({"type": "array", "items": PET}, [BISCUIT], [MORE]),
        (
            {"type": "object", "properties": {"pet": {"$ref": "#/$defs/Pet"}}, "$defs": {"Pet": PET}},
            {"pet": BISCUIT},
            {"pet": MORE},
        ),
        ({"anyOf": [PET, {"type": "null"}]}, BISCUIT, MORE),
        ({"type": "object", "additionalProperties": PET}, {"a": BISCUIT}, {"a": MORE}),
        ({"type": "object", "properties": {"properties": TEXT}}, {"properties": "a"}, {"properties": "a", "more": 1}),
    ],
    ids=["alone", "in a list", "referred to", "or nothing", "by any name", "called properties"],
)
def test_objects_have_the_properties_that_are_named(schema: dict[str, Any], right: Any, wrong: Any) -> None:
    before = json.dumps(schema)
    assert takes(schema, right)
    assert not takes(schema, wrong)
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        PET | {"additionalProperties": True},
        PET | {"additionalProperties": {"type": "integer"}},
        {"type": "object"},
        {"allOf": [PET, {"type": "object", "properties": {"more": {"type": "integer"}}}]},
        {"const": {"name": "Biscuit", "more": 1}},
        {"enum": [{"properties": 1}, MORE]},
    ],
)
def test_a_schema_that_allows_more_is_left_as_it_is(schema: dict[str, Any]) -> None:
    assert takes(schema, MORE)


def test_a_schema_that_is_no_json_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(10_000):
        deep = {"items": deep}
    for schema in ({"const": {1, 2}}, {"const": float("nan")}, deep):
        with pytest.raises(InvalidInput):
            Rules(lambda text: None).json(schema)

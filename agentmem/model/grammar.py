"""Grammars that llguidance follows: rules in Lark's notation, JSON schemas and special tokens among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentmem.errors import InvalidInput


class Rules:
    """Rules of a Lark grammar for llguidance, with a name each.

    ``token_id`` says which special token a text is, if it is one: as text, nothing can write it.
    """

    def __init__(self, token_id: Callable[[str], int | None]) -> None:
        self._token_id = token_id
        self._rules: dict[str, str] = {}

    def text(self, literal: str, markers: Sequence[str] = ()) -> str:
        """An expression of a fixed text, within which ``markers`` may be special tokens."""
        for marker in markers:
            before, found, behind = literal.partition(marker)
            if found and (token := self._token_id(marker)) is not None:
                parts = [self.text(before, markers), f"<[{token}]>", self.text(behind, markers)]
                return " ".join(part for part in parts if part)
        return json.dumps(literal, ensure_ascii=False) if literal else ""

    def json(self, schema: Mapping[str, Any], spaced: bool = True) -> str:
        """An expression of a JSON value that follows a schema; ``spaced`` with one space behind commas and colons.

        Objects have the properties that the schema names, and no others unless it says so.

        Raises:
            InvalidInput: the schema is no plain JSON.
        """
        # Without white space to choose, a value ends, and costs fewer tokens.
        guide = {"whitespace_flexible": False} | ({"item_separator": ", ", "key_separator": ": "} if spaced else {})
        return self.add(f"%json {_plain({**closed(schema), 'x-guidance': guide})}")

    def add(self, expression: str, name: str | None = None) -> str:
        """A new rule, or the one that says the same. Returns its name."""
        if name is None:
            name = next((known for known, text in self._rules.items() if text == expression), None)
        name = name or f"rule{len(self._rules)}"
        self._rules[name] = expression
        return name

    def reserve(self) -> str:
        """A name for a rule that is added later, so that rules can refer to themselves."""
        return self.add("", f"rule{len(self._rules)}")

    def grammar(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *(f"{name}: {text}" for name, text in self._rules.items())])


_COMBINED = ("allOf", "not", "if", "patternProperties", "propertyNames", "unevaluatedProperties", "dependentSchemas")
"""Where one value has to follow several schemas, a narrower one may leave nothing over."""


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema, but objects whose properties it names have no others, unless it says ``additionalProperties``.

    What follows it follows the schema as it was given. A model could else go on making up properties for ever.

    Raises:
        InvalidInput: the schema is no plain JSON.
    """
    text = _plain(schema)
    if any(f'"{word}"' in text for word in _COMBINED):
        return schema
    try:
        made: Mapping[str, Any] = _closed(schema)
    except RecursionError:
        raise InvalidInput("a JSON schema must be plain JSON: it is too deep") from None
    return made


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(named := made.get(key), Mapping):
            made[key] = {name: _closed(one) for name, one in named.items()}
    for key in ("anyOf", "oneOf", "prefixItems"):
        if isinstance(several := made.get(key), list):
            made[key] = [_closed(one) for one in several]
    for key in ("items", "additionalProperties"):
        if key in made:
            made[key] = _closed(made[key])
    properties, required = made.get("properties"), made.get("required", [])
    alone = not {"additionalProperties", "minProperties", "anyOf", "oneOf", "$ref"} & made.keys()
    if alone and isinstance(properties, Mapping) and isinstance(required, list):
        named_all = all(isinstance(one, str) and one in properties for one in required)
        made |= {"additionalProperties": False} if named_all else {}
    return made


def _plain(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"a JSON schema must be plain JSON: {type(error).__name__}") from None

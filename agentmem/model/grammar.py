"""Grammars that llguidance follows: rules in Lark's notation, JSON schemas and special tokens among them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentmem.errors import InvalidInput

_NAMED = {"properties", "$defs", "definitions"}
_LISTED = {"anyOf", "oneOf", "prefixItems"}
_SINGLE = {"items", "additionalProperties"}
_OPEN = {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref"}
"""Keywords that say, or may say elsewhere, which other properties an object has."""


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
        try:
            # Within allOf, several schemas are those of one object: none of them may be closed on its own.
            shut = schema if '"allOf"' in json.dumps(schema) else _closed(schema)
            return self.add(f"%json {json.dumps({**shut, 'x-guidance': guide}, allow_nan=False)}")
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"a JSON schema must be plain JSON: {type(error).__name__}") from None

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


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose objects have no properties beside those that are named, where it leaves that open.

    A small model that may go on with properties of its own does so, and does not end.
    """
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            found[key] = {name: _closed(one) if isinstance(one, Mapping) else one for name, one in value.items()}
        elif key in _LISTED and isinstance(value, (list, tuple)):
            found[key] = [_closed(one) if isinstance(one, Mapping) else one for one in value]
        else:
            found[key] = _closed(value) if key in _SINGLE and isinstance(value, Mapping) else value
    return found | ({"additionalProperties": False} if "properties" in found and not found.keys() & _OPEN else {})

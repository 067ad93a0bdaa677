"""Calls in braces (Gemma 4, FunctionGemma): ``call:name{key:value}`` between tags, texts between marks of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.model.calls.base import json_at, resolve
from agentmem.model.grammar import Rules
from agentmem.records import ToolCall

_NAME = re.compile(r"\s*call:([A-Za-z0-9_.-]{1,64})\s*")
_KEY = re.compile(r"\s*([^\s:,{}\[\]]+)\s*:")
_PLAIN = re.compile(r"\s*(true|false|null|-?[0-9][0-9.eE+-]*)")
_DEEPEST = 32


class Braced:
    """``<tag>call:name{key:<mark>text<mark>,other:2}<end>``."""

    def __init__(self, looks: str, open_: str, close: str, mark: str, more: tuple[str, ...]) -> None:
        self.looks = re.compile(looks)
        self.opens: tuple[str, ...] = (open_,)
        self.opens_late = True
        self.markers: tuple[str, ...] = (open_, close, mark, *more)
        self._open, self._close, self._mark = open_, close, mark

    def write(self, calls: Sequence[ToolCall]) -> str:
        """A block for each call."""
        return "".join(f"{self._open}call:{c.name}{self._written(c.arguments)}{self._close}" for c in calls)

    def _written(self, value: object) -> str:
        if isinstance(value, str):
            return f"{self._mark}{value}{self._mark}"
        if isinstance(value, Mapping):
            return "{" + ",".join(f"{key}:{self._written(one)}" for key, one in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        return json.dumps(value)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """See ``CallForm``."""
        words, calls, at = [], [], 0
        while (found := text.find(self._open, at)) >= 0:
            words.append(text[at:found])
            named = _NAME.match(text, found + len(self._open))
            if named is None:
                raise ValueError("a call begins with 'call:' and a name")
            arguments, at = self._value(text, named.end(), 0)
            calls.append(ToolCall(name=named[1], arguments=arguments))
            if text.startswith(self._close, at):
                at += len(self._close)
            elif at < len(text):
                raise ValueError("a call that does not end")
        return "".join([*words, text[at:]]), calls

    def _value(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if text.startswith(self._mark, at):
            end = text.index(self._mark, at + len(self._mark))
            return text[at + len(self._mark) : end], end + len(self._mark)
        if text.startswith('"', at):  # FunctionGemma now and then writes a text as JSON does
            return json_at(text, at)
        if text.startswith(("{", "["), at):
            return self._many(text, at, depth)
        if plain := _PLAIN.match(text, at):
            return json_at(plain[1])[0], plain.end()
        raise ValueError("no value")

    def _many(self, text: str, at: int, depth: int) -> tuple[Any, int]:
        """An object or a list."""
        close, keyed = ("}", True) if text[at] == "{" else ("]", False)
        found: dict[str, Any] = {}
        at += 1
        while not text.startswith(close, at):
            if found:
                if not text.startswith(",", at):
                    raise ValueError("a comma is missing")
                at += 1
            key = str(len(found))
            if keyed:
                named = _KEY.match(text, at)
                if named is None:
                    raise ValueError("a key is missing")
                key, at = named[1], named.end()
            found[key], at = self._value(text, at, depth + 1)
        return (found if keyed else list(found.values())), at + 1

    # ------------------------------------------------------------------------------------------------ the grammar

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``. Texts have no ``<``; what a schema says of texts and lists beyond type and choice is not
        followed."""
        opened, closed = rules.text(f"{self._open}call:{name}", self.markers), rules.text(self._close, self.markers)
        known: dict[str, str] = {}
        return f"{opened} {self._follow({'type': 'object', **parameters}, parameters, rules, known)} {closed}"

    def _follow(self, schema: object, root: Mapping[str, Any], rules: Rules, known: dict[str, str]) -> str:
        """The name of a rule of values that follow a schema."""
        key = json.dumps(schema, sort_keys=True)
        if key not in known:
            known[key] = rules.reserve()
            rules.add(self._expression(resolve(schema, root), root, rules, known), known[key])
        return known[key]

    def _expression(self, schema: object, root: Mapping[str, Any], rules: Rules, known: dict[str, str]) -> str:
        plain = schema if isinstance(schema, Mapping) else {}
        if "enum" in plain or "const" in plain:
            return " | ".join(
                rules.text(self._written(one), self.markers) for one in plain.get("enum", [plain.get("const")])
            )
        if choices := plain.get("anyOf") or plain.get("oneOf"):
            return " | ".join(self._follow(one, root, rules, known) for one in choices)
        kind = plain.get("type")
        if isinstance(kind, list):
            return " | ".join(self._follow({**plain, "type": one}, root, rules, known) for one in kind)
        mark = rules.text(self._mark, self.markers)
        if kind == "object":
            return self._object(plain, root, rules, known)
        if kind == "array":
            item = self._follow(plain.get("items", {}), root, rules, known)
            return f'"[" ( {item} ( "," {item} )* )? "]"'
        if kind in ("integer", "number", "boolean", "null"):
            return rules.json(plain)
        text = f"{mark} /[^<]*/ {mark}"
        return text if kind == "string" else f"{text} | {rules.json({'type': ['number', 'boolean', 'null']})}"

    def _object(self, schema: Mapping[str, Any], root: Mapping[str, Any], rules: Rules, known: dict[str, str]) -> str:
        properties = schema.get("properties")
        if not isinstance(properties, Mapping) or not properties:
            if schema.get("additionalProperties") is False:
                return '"{}"'
            one = f'/[A-Za-z0-9_]+/ ":" {self._follow({}, root, rules, known)}'
            return f'"{{" ( {one} ( "," {one} )* )? "}}"'
        pairs = {k: f"{rules.text(k + ':')} {self._follow(v, root, rules, known)}" for k, v in properties.items()}
        required = [pairs[key] for key in pairs if key in schema.get("required", ())]
        optional = [pairs[key] for key in pairs if key not in schema.get("required", ())]
        if required:
            return " ".join(['"{"', ' "," '.join(required), *(f'( "," {one} )?' for one in optional), '"}"'])
        rest = [
            " ".join([one, *(f'( "," {later} )?' for later in optional[at + 1 :])]) for at, one in enumerate(optional)
        ]
        return f'"{{" ( {" | ".join(rest)} )? "}}"'


GEMMA4 = Braced(
    r"<\|tool_call>call:",
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    ("<|tool>", "<tool|>", "<|tool_response>", "<tool_response|>"),
)
FUNCTION_GEMMA = Braced(
    r"<start_function_call>call:",
    "<start_function_call>",
    "<end_function_call>",
    "<escape>",
    (
        "<start_function_declaration>",
        "<end_function_declaration>",
        "<start_function_response>",
        "<end_function_response>",
    ),
)

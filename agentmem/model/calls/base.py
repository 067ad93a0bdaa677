"""What a form of tool calls is, and what all forms share: reading JSON that a model wrote, and making it fit a tool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from re import Pattern
from typing import Any, NoReturn, Protocol

from agentmem.model.grammar import Rules
from agentmem.records import ToolCall


class CallForm(Protocol):
    """How one family of models writes calls of tools. Arguments come back as the model wrote them."""

    looks: Pattern[str]
    """Found in a call that the family's chat template writes."""
    opens: tuple[str, ...]
    """Texts that a call begins with."""
    opens_late: bool
    """A call may also begin behind words; else only at the very start of an answer."""
    markers: tuple[str, ...]
    """Texts that stand for structure: other people's words must not contain them as tokens."""

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The calls as the model would write them."""

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """The words and the calls of a whole answer, which has one of ``opens``.

        Raises:
            ValueError: something in it is no call.
        """

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """A Lark expression of one call of this tool."""


def json_at(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value that begins there, behind white space, and where it ends.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    while at < len(text) and text[at].isspace():
        at += 1
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def call_of(value: object) -> ToolCall:
    """A call of what the model wrote as JSON: the name, and ``arguments`` or ``parameters``.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, Mapping):
        raise ValueError("a call is a JSON object")
    inner = value.get("function")
    if isinstance(inner, Mapping):
        value = inner
    name = value.get("name", inner)
    return ToolCall(name=name, arguments=value.get("arguments", value.get("parameters")) or {})


def skip(text: str, at: int, literal: str) -> int:
    """Where the text goes on behind white space and ``literal``, if that is there; else behind the white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at + len(literal) if text.startswith(literal, at) else at


def fit(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with texts made numbers, truth values, lists or objects where the tool's schema wants only those.

    Models write ``"2"`` for ``2``, and some forms have no other way. What still breaks the schema stays as it is: what
    to say to the model then is the tool's affair.
    """
    properties = parameters.get("properties")
    fitted = dict(arguments)
    for key, value in arguments.items():
        wanted = types(properties.get(key) if isinstance(properties, Mapping) else None, parameters)
        if not isinstance(value, str) or not wanted or "string" in wanted:
            continue
        try:
            read, end = json_at(value)
        except ValueError:
            read, end = {"true": True, "false": False, "none": None}.get(value.strip().lower(), value), len(value)
        if not value[end:].strip() and any(_is(read, one) for one in wanted):
            fitted[key] = read
    return fitted


def types(schema: object, root: Mapping[str, Any], depth: int = 8) -> set[str]:
    """The JSON types that a schema lets through; empty when it does not say."""
    schema = resolve(schema, root)
    if not isinstance(schema, Mapping) or depth == 0:
        return set()
    declared = schema.get("type")
    if declared is not None:
        return {one for one in ([declared] if isinstance(declared, str) else declared) if isinstance(one, str)}
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return {kind for value in values for kind in _KINDS if _is(value, kind)}
    found: set[str] = set()
    for choice in [*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())]:
        found |= types(choice, root, depth - 1)
    return found


def resolve(schema: object, root: Mapping[str, Any]) -> object:
    """A schema, or the one within ``root`` that it refers to."""
    for _ in range(8):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = root
        for step in reference[2:].split("/"):
            schema = schema.get(step) if isinstance(schema, Mapping) else None
    return None


_KINDS: dict[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
    "string": str,
}


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _KINDS.get(kind, ()))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)

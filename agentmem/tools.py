"""What a turn is asked with beside its messages, in OpenAI's form: tools, which one to call, the form of the answer.

A turn that calls tools is stored as its words and then a line ``Calling <name> with <arguments>`` for each call, so a
memory of it is words like any other. What the model reads in its window is its own family's form (``model.calls``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.model.calls import CallForm
from agentmem.model.grammar import Rules
from agentmem.records import Message, Role, ToolCall
from agentmem.text import check_characters

Tool = Mapping[str, Any]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CALLED = re.compile(r"Calling ([A-Za-z0-9_.-]{1,64}) with (\{.*\})")


def check_tools(tools: object) -> tuple[dict[str, Any], ...]:
    """Tools of OpenAI's form: ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    They come back in the order of their names, with the same keys in the same order each time: the same set of tools is
    the same prompt, whoever lists it.

    Raises:
        InvalidInput: something else, parameters that are no schema of an object, or a name that is used twice.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, (str, bytes)):
        raise InvalidInput(f"tools must be a list, not {type(tools).__name__}")
    found: dict[str, dict[str, Any]] = {}
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping):
            raise InvalidInput("a tool has the form {'type': 'function', 'function': {'name': ..., 'parameters': {}}}")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInput(f"a tool needs a name of 1 to 64 letters, digits, '_', '-', '.', not {name!r:.80}")
        if name in found:
            raise InvalidInput(f"two tools have the name {name!r}; give each its own")
        found[name] = {
            "type": "function",
            "function": {
                "name": name,
                "description": _described(function.get("description"), name),
                "parameters": _parameters(function.get("parameters"), name),
            },
        }
    return tuple(found[name] for name in sorted(found))


def _described(description: object, name: str) -> str:
    if description is not None and not isinstance(description, str):
        raise InvalidInput(f"the description of the tool {name!r} must be a str, not {type(description).__name__}")
    return check_characters(description or "", f"the description of the tool {name!r}")


def _parameters(parameters: object, name: str) -> dict[str, Any]:
    """The schema as plain JSON, with what every chat template looks for."""
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise InvalidInput(
            f"the parameters of the tool {name!r} must be the JSON schema of an object, {{'type': 'object', "
            f"'properties': ...}}, not {parameters!r:.80}"
        )
    if not isinstance(parameters.get("properties", {}), Mapping):
        raise InvalidInput(f"the properties of the tool {name!r} must map names to schemas")
    try:
        text = json.dumps({"type": "object", "properties": {}, **parameters}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the parameters of the tool {name!r} must be plain JSON: {error}") from None
    plain: dict[str, Any] = json.loads(check_characters(text, f"the parameters of the tool {name!r}"))
    return plain


def check_choice(choice: object, tools: Sequence[Tool]) -> tuple[Tool, ...] | None:
    """Of which tools one has to be called: all of them for "required", the named one; None: it is the model's choice.

    ``choice`` is OpenAI's: "auto", "none", "required", or ``{"type": "function", "function": {"name": ...}}``.

    Raises:
        InvalidInput: something else, or a tool that is not there.
    """
    if choice in ("auto", "none"):
        return None
    if choice == "required":
        if not tools:
            raise InvalidInput("tool_choice is 'required', and there are no tools; give some")
        return tuple(tools)
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if not isinstance(function, Mapping):
        raise InvalidInput(
            "tool_choice must be 'auto', 'none', 'required' or {'type': 'function', 'function': {'name': ...}}, not "
            f"{choice!r:.80}"
        )
    named = tuple(tool for tool in tools if tool["function"]["name"] == function.get("name"))
    if not named:
        raise InvalidInput(f"tool_choice names {function.get('name')!r:.80}, which is no tool of this request")
    return named


def check_format(response_format: object) -> Mapping[str, Any] | None:
    """The JSON schema that OpenAI's ``response_format`` asks for; None: text of any kind.

    ``response_format`` is ``{"type": "text"}``, ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema":
    {"name": ..., "schema": {...}}}``.

    Raises:
        InvalidInput: something else.
    """
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named = response_format.get("json_schema") if isinstance(response_format, Mapping) else None
    schema = named.get("schema", {}) if isinstance(named, Mapping) else None
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise InvalidInput(
            "response_format must be {'type': 'text'}, {'type': 'json_object'} or {'type': 'json_schema', "
            f"'json_schema': {{'name': ..., 'schema': {{...}}}}}}, not {response_format!r:.80}"
        )
    return schema


def grammar(
    form: CallForm, rules: Rules, called: Sequence[Tool] | None, schema: Mapping[str, Any] | None
) -> str | None:
    """What an answer has to follow: one call of these tools, a JSON value, either of both; None: nothing.

    Raises:
        InvalidInput: a schema is no plain JSON.
    """
    ways = []
    for tool in called or ():
        function = tool["function"]
        ways.append(rules.add(form.grammar(function["name"], function["parameters"], rules)))
    if schema is not None:
        ways.append(rules.json(schema, spaced=False))
    return rules.grammar(" | ".join(ways)) if ways else None


def stored_message(role: Role, text: str) -> Message:
    """The message of which this text was stored: an assistant's calls stand in lines of their own at its end."""
    calls: list[ToolCall] = []
    lines = text.split("\n") if role is Role.ASSISTANT else []
    while lines and (called := _CALLED.fullmatch(lines[-1])):
        try:
            call = ToolCall(name=called[1], arguments=called[2])  # type: ignore[arg-type]  # JSON text is understood
        except ValueError:
            break
        if call.text != lines[-1]:  # something alike that was said
            break
        calls.insert(0, call)
        lines.pop()
    return Message(role=role, content="\n".join(lines) if calls else text, tool_calls=tuple(calls))

"""Tools of an agent loop, as text: how they are offered to the model, and how its calls are written and read.

One form for every model: the one of the Hermes and Qwen templates. The tools stand in the system text; a call is a JSON
object between ``<tool_call>`` and ``</tool_call>`` in the answer. A turn that calls tools is stored as that text, so a
memory of it is words like any other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.records import ToolCall
from agentmem.text import check_characters

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BLOCK = re.compile(rf"{OPEN}(.*?)(?:{CLOSE}|\Z)", re.DOTALL)
_OFFER = """# Tools

Each line between <tools> and </tools> describes a function that you can call:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as a JSON object within the tags <tool_call> and </tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def check_tools(tools: object) -> tuple[Mapping[str, Any], ...]:
    """Tools in OpenAI's form: ``{"type": "function", "function": {"name", "description", "parameters"}}``.

    Raises:
        InvalidInput: something else, or a name that is used twice.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise InvalidInput(f"tools must be a list, not {type(tools).__name__}")
    names: set[str] = set()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("parameters", {}), Mapping):
            raise InvalidInput("a tool has the form {'type': 'function', 'function': {'name': ..., 'parameters': {}}}")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
            raise InvalidInput(
                f"a tool needs a name of its own, of 1 to 64 letters, digits, '_', '-', '.', not {name!r}"
            )
        names.add(name)
    return tuple(tools)


def offer(tools: Sequence[Mapping[str, Any]], system: str = "") -> str:
    """The system text that offers the tools, behind the system text that there is.

    Raises:
        InvalidInput: a tool that is no plain JSON.
    """
    try:
        lines = "\n".join(json.dumps(tool, ensure_ascii=False, allow_nan=False) for tool in tools)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"tools must be plain JSON: {error}") from None
    text = _OFFER.format(tools=check_characters(lines, "tools"))
    return f"{system}\n\n{text}" if system else text


def call_schemas(tools: Sequence[Mapping[str, Any]], name: str | None = None) -> list[dict[str, Any]]:
    """JSON schemas of a call of each tool, or of the one of this name.

    Raises:
        InvalidInput: there is no tool of this name.
    """
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not functions:
        raise InvalidInput(f"there is no tool {name!r} to be called; the tools are those of this request")
    schemas = []
    for function in functions:
        arguments = dict(function.get("parameters") or {"type": "object"})
        # References in a schema begin at its root, which is the call's from here on.
        roots = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
        schemas.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
                **roots,
            }
        )
    return schemas


def call_text(text: str, calls: Sequence[ToolCall]) -> str:
    """An assistant's words and calls as one text: how such a turn is stored, and how the model wrote it."""
    blocks = [
        f"{OPEN}\n{json.dumps({'name': call.name, 'arguments': call.arguments}, ensure_ascii=False)}\n{CLOSE}"
        for call in calls
    ]
    return "\n".join([text.strip(), *blocks] if text.strip() else blocks)


def read_calls(text: str, names: Iterable[str] | None) -> tuple[str, tuple[ToolCall, ...]]:
    """The words and the calls of an answer; an answer with anything that is no call of a known tool is all words.

    ``names`` None: any tool is known, for an answer whose tools are not.
    """
    known = None if names is None else set(names)
    calls = []
    for block in _BLOCK.findall(text):
        try:
            value = json.loads(block)
        except ValueError:
            return text, ()
        arguments = value.get("arguments", {}) if isinstance(value, dict) else None
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(arguments, dict) or not isinstance(name, str) or (known is not None and name not in known):
            return text, ()
        calls.append(ToolCall(name=name, arguments=arguments))
    return (_BLOCK.sub("", text).strip(), tuple(calls)) if calls else (text, ())


def words_only(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces up to where a call begins. What could be the beginning of one is held back until it is none."""
    held, calling = "", False
    for piece in pieces:
        if calling:  # the rest is generated to its end, and not shown
            continue
        held += piece
        calling = OPEN in held
        if calling:
            shown, held = held.partition(OPEN)[0].rstrip(), ""
        else:
            begun = next((n for n in range(len(OPEN) - 1, 0, -1) if held.endswith(OPEN[:n])), 0)
            shown = held[: len(held) - begun].rstrip()  # white space before a call is no part of the words
            held = held[len(shown) :]
        if shown:
            yield shown
    if held:
        yield held

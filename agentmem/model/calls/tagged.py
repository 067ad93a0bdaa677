"""Calls as JSON objects: between tags (Hermes, Qwen2, 2.5 and 3), or bare (Llama 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.model.calls.base import call_of, json_at, skip
from agentmem.model.grammar import Rules
from agentmem.records import ToolCall


class Tagged:
    """``<tool_call>``, a JSON object with ``name`` and ``arguments``, ``</tool_call>``."""

    looks = re.compile(r"<tool_call>\s*\{")
    opens: tuple[str, ...] = ("<tool_call>",)
    opens_late = True
    markers: tuple[str, ...] = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

    def write(self, calls: Sequence[ToolCall]) -> str:
        """A block for each call."""
        return "\n".join(f"<tool_call>\n{_object(call, 'arguments')}\n</tool_call>" for call in calls)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """See ``CallForm``. The last closing tag may be missing or cut: some models end their turn in its place."""
        words, calls, rest = [], [], text
        while "<tool_call>" in rest:
            before, _, rest = rest.partition("<tool_call>")
            words.append(before)
            value, end = json_at(rest)
            calls.append(call_of(value))
            rest = rest[end:].lstrip()
            if rest.startswith("</tool_call>"):
                rest = rest.removeprefix("</tool_call>")
            elif "</tool_call>".startswith(rest):
                rest = ""
            else:
                raise ValueError("there is more than a JSON object between the tags")
        return "".join([*words, rest]), calls

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``."""
        opened = rules.text(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": ', self.markers)
        return f"{opened} {rules.json(parameters)} {rules.text('}' + chr(10) + '</tool_call>', self.markers)}"


class Bare:
    """A JSON object with ``name`` and ``parameters`` as the whole answer (Llama 3.1 and later)."""

    looks = re.compile(r'\{\s*"(?:type": "function", ")?name":\s*"[^"]*",\s*"parameters":')
    opens: tuple[str, ...] = ("<|python_tag|>", '{"name"', '{"type": "function"')
    opens_late = False
    markers: tuple[str, ...] = ("<|python_tag|>",)

    def write(self, calls: Sequence[ToolCall]) -> str:
        """The objects, with semicolons between them."""
        return "; ".join(_object(call, "parameters") for call in calls)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """See ``CallForm``."""
        at, calls = skip(text, 0, "<|python_tag|>"), []
        while True:
            value, at = json_at(text, at)
            calls.append(call_of(value))
            at = skip(text, at, ";")
            at = skip(text, at, "<|python_tag|>")
            if at >= len(text):
                return "", calls

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``."""
        opened = rules.text(f'{{"name": {json.dumps(name)}, "parameters": ')
        return f"{opened} {rules.json(parameters)} {rules.text('}')}"


def _object(call: ToolCall, arguments: str) -> str:
    return json.dumps({"name": call.name, arguments: call.arguments}, ensure_ascii=False)

"""Calls in markup (Qwen 3.5, Qwen 3 Coder): a tag for the function and one for each parameter, values as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.model.calls.base import resolve, types
from agentmem.model.grammar import Rules
from agentmem.records import ToolCall

_BLOCK = re.compile(r"<tool_call>\s*<function=([^>\n]+)>(.*?)</function>\s*(?:</tool_call>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)
_END = "\n</parameter>\n"


class Markup:
    """``<tool_call><function=name><parameter=key>value</parameter></function></tool_call>``."""

    looks = re.compile(r"<tool_call>\s*<function=")
    opens: tuple[str, ...] = ("<tool_call>",)
    opens_late = True
    markers: tuple[str, ...] = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

    def write(self, calls: Sequence[ToolCall]) -> str:
        """A block for each call."""
        return "\n".join(_block(call) for call in calls)

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """See ``CallForm``. Every value is text; ``fit`` makes of it what the tool's schema wants."""
        words = _BLOCK.sub("", text)
        if "<tool_call>" in words:
            raise ValueError("a call that does not end, or is none")
        calls = []
        for name, body in _BLOCK.findall(text):
            if _PARAMETER.sub("", body).strip():
                raise ValueError("there is more than parameters within the function")
            calls.append(ToolCall(name=name.strip(), arguments=dict(_PARAMETER.findall(body))))
        return words, calls

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``. Texts have no ``<`` in them."""
        parts = [rules.text(f"<tool_call>\n<function={name}>\n", self.markers)]
        properties = parameters.get("properties")
        if isinstance(properties, Mapping) and properties:
            for key, schema in properties.items():
                one = f"{rules.text(f'<parameter={key}>{chr(10)}')} {self._value(schema, parameters, rules)}"
                parts.append(one if key in parameters.get("required", ()) else f"( {one} )?")
        elif parameters.get("additionalProperties") is not False:
            parts.append(r'( "<parameter=" /[A-Za-z0-9_.-]+/ ">\n" /[^<]+\n<\/parameter>\n/ )*')
        return " ".join([*parts, rules.text("</function>\n</tool_call>", self.markers)])

    def _value(self, schema: object, root: Mapping[str, Any], rules: Rules) -> str:
        schema, wanted = resolve(schema, root), types(schema, root)
        plain = schema if isinstance(schema, Mapping) else {}
        if wanted and "string" not in wanted:
            roots = {key: root[key] for key in ("$defs", "definitions") if key in root}
            return f"{rules.json({**plain, **roots})} {rules.text(_END)}"
        given = plain.get("enum", [plain["const"]] if "const" in plain else [])
        choices = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in given]
        # The end of a text is part of its expression: else its own line break would be taken for more of the text.
        return rules.add(" | ".join(rules.text(one + _END) for one in choices) or r"/[^<]+\n<\/parameter>\n/")


def _block(call: ToolCall) -> str:
    lines = [f"<tool_call>\n<function={call.name}>"]
    for key, value in call.arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"<parameter={key}>\n{text}\n</parameter>")
    return "\n".join([*lines, "</function>\n</tool_call>"])

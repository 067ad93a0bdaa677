"""Calls behind ``[TOOL_CALLS]`` (Mistral): one list of JSON objects, or each name with its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agentmem.model.calls.base import call_of, json_at, skip
from agentmem.model.grammar import Rules
from agentmem.records import ToolCall

_OPEN, _ARGS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_NAMED = re.compile(r"\s*([A-Za-z0-9_.-]{1,64})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?")


class _Behind:
    """Both ways are read alike."""

    opens: tuple[str, ...] = (_OPEN,)
    opens_late = True
    markers: tuple[str, ...] = (_OPEN, _ARGS, _ID, "[TOOL_RESULTS]", "[/TOOL_RESULTS]")

    def read(self, text: str) -> tuple[str, list[ToolCall]]:
        """See ``CallForm``."""
        words, _, rest = text.partition(_OPEN)
        calls: list[ToolCall] = []
        while True:
            named = _NAMED.match(rest)
            value, at = json_at(rest, named.end() if named else 0)
            if named:
                calls.append(call_of({"name": named[1], "arguments": value}))
            elif isinstance(value, list) and value:
                calls += [call_of(one) for one in value]
            else:
                raise ValueError("neither a name nor a list of calls")
            rest = rest[skip(rest, at, _OPEN) :]
            if not rest.strip():
                return words, calls


class Listed(_Behind):
    """``[TOOL_CALLS] [{"name": ..., "arguments": {...}}]``."""

    looks = re.compile(r"\[TOOL_CALLS\]\s*\[\s*\{")

    def write(self, calls: Sequence[ToolCall]) -> str:
        """One list."""
        objects = [{"name": call.name, "arguments": call.arguments} for call in calls]
        return f"{_OPEN} {json.dumps(objects, ensure_ascii=False)}"

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``."""
        opened = rules.text(f'{_OPEN} [{{"name": {json.dumps(name)}, "arguments": ', self.markers)
        return f"{opened} {rules.json(parameters)} {rules.text('}]')}"


class Named(_Behind):
    """``[TOOL_CALLS]name[ARGS]{...}``, for each call anew."""

    def __init__(self, between: str) -> None:
        self.looks = re.compile(rf"\[TOOL_CALLS\]\s*[\w.-]+\s*(?:\[CALL_ID\]\s*\w+\s*)?{re.escape(between)}\s*\{{")
        self._between = between

    def write(self, calls: Sequence[ToolCall]) -> str:
        """Each behind a marker of its own."""
        return "".join(
            f"{_OPEN}{call.name}{self._between}{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls
        )

    def grammar(self, name: str, parameters: Mapping[str, Any], rules: Rules) -> str:
        """See ``CallForm``."""
        return f"{rules.text(_OPEN + name + self._between, self.markers)} {rules.json(parameters)}"


WITH_ARGS, WITHOUT_ARGS = Named(_ARGS), Named("")

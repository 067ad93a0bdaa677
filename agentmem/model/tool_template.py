"""Tools, calls and results in a prompt: as the chat template writes them, or as text where it has no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jinja2 import TemplateError

from agentmem.model.calls import CallForm, recognise
from agentmem.records import Message, Role, ToolCall

Tool = Mapping[str, Any]
"""One tool, as ``agentmem.tools.check_tools`` gives it."""

_OFFER = """# Tools

Each line between <tools> and </tools> describes a function that you can call:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as a JSON object within the tags <tool_call> and </tool_call>:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

_REFUSED = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template may raise on a dialogue that it was not written for."""

_ASKED, _DONE = "Basalt", "Quartz"
_NAMES = ("find_basalt", "find_marble")
_PROBES: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Finds {_ASKED}.",
            "parameters": {
                "type": "object",
                "properties": {"stone": {"type": "string", "description": "Which"}},
                "required": ["stone"],
            },
        },
    }
    for name in _NAMES
]


class Apply(Protocol):
    """Writes plain messages with the tokenizer's chat template."""

    def __call__(
        self, messages: Sequence[dict[str, Any]], generation_prompt: bool, tools: Sequence[Tool] | None = None
    ) -> str:
        """The text. Raises one of ``_REFUSED``."""


def with_offer(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The dialogue with a system text that offers the tools, behind the system text that there is."""
    if not tools:
        return list(messages)
    text = _OFFER.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    head, rest = (messages[0].content, messages[1:]) if messages[0].role is Role.SYSTEM else ("", messages)
    return [Message(role=Role.SYSTEM, content=f"{head}\n\n{text}" if head else text), *rest]


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as templates take them: arguments as objects, and calls numbered in the order in which they were made.

    So the same dialogue is the same text whatever ids its calls have, and a template that insists on ids of nine
    letters and digits (Mistral) has them.
    """
    out: list[dict[str, Any]] = []
    made = 0
    waiting: list[tuple[str, str, str]] = []
    for message in messages:
        one: dict[str, Any] = {"role": message.role.value, "content": message.content}
        if message.tool_calls:
            one["tool_calls"] = []
            for call in message.tool_calls:
                number = f"call{made:05d}"
                made += 1
                waiting.append((call.id, number, call.name))
                function = {"name": call.name, "arguments": call.arguments}
                one["tool_calls"].append({"type": "function", "id": number, "function": function})
        elif message.role is Role.TOOL:
            answered = next((w for w in waiting if w[0] == message.tool_call_id), waiting[0] if waiting else None)
            if answered is None:
                answered = ("", f"call{made:05d}", message.name or "tool")
                made += 1
            else:
                waiting.remove(answered)
            one |= {"tool_call_id": answered[1], "name": answered[2]}
        elif message.name is not None:
            one["name"] = message.name
        out.append(one)
    return out


class ToolTemplate:
    """What a chat template makes of tools, found out once by trying.

    Attributes:
        form: how the family writes calls; None where the template does not write tools, calls and results, or writes
            calls in a form that is not known here.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self.form: CallForm | None = None
        self._several = self._with_words = False
        calls = [ToolCall(name=name, arguments={"stone": _ASKED}) for name in _NAMES]
        user, result = Message(role=Role.USER, content="Hello"), Message(role=Role.TOOL, content=_DONE)
        offered = self._text([user], _PROBES)
        if offered is None or _ASKED not in offered or not all(name in offered for name in _NAMES):
            return
        one = self._text([user, _calling(calls[:1]), result], _PROBES)
        if one is None or _DONE not in one:
            return
        begun = self._text([user], _PROBES, False) or ""
        self.form = recognise(one.removeprefix(begun))
        both = self._text([user, _calling(calls), result, result], _PROBES, False) or ""
        self._several = all(both.count(name) > begun.count(name) for name in _NAMES)
        worded = self._text([user, _calling(calls[:1], "Marble"), result], _PROBES, False) or ""
        self._with_words = "Marble" in worded

    def write(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str | None:
        """The prompt, up to where the assistant's next turn begins; None where the template refuses the dialogue."""
        return self._text(self._apart(messages), tools)

    def _text(self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool = True) -> str | None:
        try:
            return self._apply(plain(messages), prompt, tools)
        except _REFUSED:
            return None

    def _apart(self, messages: Sequence[Message]) -> list[Message]:
        """Turns that the template would not write whole, in several: words before calls, one call at a time."""
        out: list[Message] = []
        rest = list(messages)
        while rest:
            message = rest.pop(0)
            if message.tool_calls and message.content.strip() and not self._with_words:
                out.append(Message(role=message.role, content=message.content))
                message = _calling(message.tool_calls)
            if len(message.tool_calls) < 2 or self._several:
                out.append(message)
                continue
            results: list[Message] = []
            while rest and rest[0].role is Role.TOOL:
                results.append(rest.pop(0))
            for number, call in enumerate(message.tool_calls):
                mine = next((r for r in results if r.tool_call_id == call.id), results[0] if results else None)
                out.append(_calling([call], message.content if number == 0 else ""))
                if mine is not None:
                    results.remove(mine)
                    out.append(mine)
            out += results
        return out


def _calling(calls: Sequence[ToolCall], words: str = "") -> Message:
    return Message(role=Role.ASSISTANT, content=words, tool_calls=tuple(calls))

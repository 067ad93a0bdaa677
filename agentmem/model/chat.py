"""Dialogue <-> token ids: the tokenizer's chat template where it has one, a plain form where not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from agentmem.errors import InvalidInput
from agentmem.model.calls import PLAIN, AnswerReader, CallForm
from agentmem.model.tool_template import Tool, ToolTemplate, plain, with_offer
from agentmem.records import Message, Role
from agentmem.text import check_characters

PLAIN_STOP = ("\nuser:", "\nsystem:", "\ntool:")
"""Where an answer ends when there is no chat template: the model begins to speak for someone else."""

_FIXED_PREFIX = "Conversation:\n"
_PROBE = "Quartz"


class ChatFormat:
    """How one tokenizer writes a dialogue.

    ``prefix_ids`` is what every memory is encoded after: the beginning-of-sequence token, or a short fixed text.
    ``stop_ids`` end a turn; ``stop_strings`` do so where there is no template. ``takes_tools`` says that the template
    writes tools, calls and results itself; where it does not, they stand in the dialogue as text.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        self.has_template = bool(tokenizer.chat_template)
        self._tools = ToolTemplate(self._apply) if self.has_template else None
        self.takes_tools = self._tools is not None and self._tools.form is not None
        self.form: CallForm = self._tools.form if self._tools is not None and self._tools.form is not None else PLAIN
        added = tokenizer.added_tokens_decoder
        self._added = {token.content: id for id, token in added.items()}
        special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        marks = self._added.keys() & set(self.form.markers)
        self._special = sorted({text for text in special | marks if text}, key=len, reverse=True)
        self.prefix_ids: tuple[int, ...] = (bos,) if bos is not None else tuple(self.encode(_FIXED_PREFIX))
        self._knows_system = self._knows_tool = self._any_order = True
        if self.has_template:
            user = Message(role=Role.USER, content="Hello")
            reply = Message(role=Role.ASSISTANT, content="Hello")
            self._knows_system = self._shows([Message(role=Role.SYSTEM, content=_PROBE), user])
            self._knows_tool = self._shows([user, reply, Message(role=Role.TOOL, content=_PROBE)])
            self._any_order = self._shows([user, Message(role=Role.USER, content=_PROBE)]) and self._shows(
                [reply, Message(role=Role.USER, content=_PROBE)]
            )
        self.stop_ids: frozenset[int] = frozenset(stop_ids) | self._end_ids()
        self.stop_strings: tuple[str, ...] = () if self.has_template else PLAIN_STOP

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without a beginning-of-sequence token.

        The names of special tokens inside the text are broken up by a space, so that text which someone else wrote
        cannot end a turn or speak as the system.

        Raises:
            InvalidInput: a NUL or a lone surrogate in it.
        """
        return self._ids(self._harmless(check_characters(text)))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a dialogue, up to where the assistant's next turn begins.

        ``tools`` are offered by the template if it takes tools, else in the system text; calls and results are written
        alike. A template that knows no system role gets the system text in the first user turn; one that knows no tool
        role gets ``tool: ...`` as a user turn; one that insists on turns that alternate gets neighbours joined.

        Raises:
            InvalidInput: no message, or a message with a NUL or a lone surrogate.
        """
        if not messages:
            raise InvalidInput("there is no message to render")
        clean, offered = [self._clean(message) for message in messages], [self._deep(tool) for tool in tools]
        text = self._with_tools(clean, offered)
        if text is not None:
            return self._ids(text)
        if not self.takes_tools:
            clean, offered = with_offer(clean, offered), []
        # What a template with tools refuses (results that answer nothing, say) it would refuse in their roles, too.
        tool_role = self._knows_tool and not self.takes_tools
        fitted = self._fit([self._flat(message) for message in clean], tool_role)
        if not self.has_template:
            lines = [f"{message.role.value}: {message.content}\n" for message in fitted]
            head = [self._tokenizer.bos_token_id] if self._tokenizer.bos_token_id is not None else []
            return head + self._ids("".join(lines) + f"{Role.ASSISTANT.value}:")
        try:
            return self._ids(self._apply(plain(fitted), True, offered))
        except TemplateError as error:
            roles = ", ".join(message.role.value for message in messages)
            raise InvalidInput(f"the model's chat template refuses this dialogue ({roles}): {error}") from error

    def render_next(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of what follows an assistant's turn whose words are there already, up to its next turn.

        That is the end of its turn, then ``messages``: with ``render`` before it, a dialogue in pieces.

        Raises:
            InvalidInput: as ``render``.
        """
        if not messages:
            raise InvalidInput("there is no message to render")
        user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
        fitted = self._fit([user, reply, *(self._flat(self._clean(message)) for message in messages)], self._knows_tool)
        if not self.has_template:
            lines = [f"{message.role.value}: {message.content}\n" for message in fitted[2:]]
            return self._ids("\n" + "".join(lines) + f"{Role.ASSISTANT.value}:")
        try:
            return self._ids(self._apply(plain(fitted), True).partition(_PROBE)[2])
        except TemplateError as error:
            roles = ", ".join(message.role.value for message in messages)
            raise InvalidInput(f"the model's chat template refuses these turns ({roles}): {error}") from error

    def frame(self) -> tuple[list[int], list[int]]:
        """Token ids before and behind the words of one user turn that is to be answered: for a text too long to render.

        ``[*before, *encode(text), *behind]`` is ``render`` of that turn, up to how words are cut where they meet.
        """
        user = Message(role=Role.USER, content=_PROBE)
        bos = self._tokenizer.bos_token_id
        bare = f"{Role.USER.value}: {_PROBE}\n{Role.ASSISTANT.value}:"
        before, _, behind = (self._apply(plain([user]), True) if self.has_template else bare).partition(_PROBE)
        ids = [self._ids(text) for text in (before, behind)]
        return ([bos, *ids[0]] if bos is not None and not self.has_template else ids[0]), ids[1]

    def said(self, message: Message) -> list[int]:
        """Token ids of an assistant's words and calls, as they follow where its turn begins.

        Raises:
            InvalidInput: a NUL or a lone surrogate in it.
        """
        lead = " "
        if self.has_template:
            user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
            begun, whole = self._apply(plain([user]), True), self._apply(plain([user, reply]), False)
            lead = whole[len(begun) :].partition(_PROBE)[0] if whole.startswith(begun) else ""
        return self._ids(lead + self._flat(self._clean(message)).content)

    def answers(self, tools: Sequence[Tool], constrained: bool = False) -> AnswerReader:
        """Reads what this model answers when these tools are offered: by the tokenizer's own response template where it
        brings one that knows calls, else, and where the answer was ``constrained`` to it, in the family's form."""
        template = getattr(self._tokenizer, "response_template", None)
        if constrained or not isinstance(template, dict) or "tool_calls" not in template.get("fields", {}):
            return AnswerReader(self.form, tools)
        user = Message(role=Role.USER, content="Hello")
        begun = self._apply(plain([user]), True) if self.has_template else ""
        return AnswerReader(self.form, tools, lambda: self._tokenizer.get_response_parser(template, prefix=begun))

    def token_id(self, text: str) -> int | None:
        """The id of the token of its own, special or not, that is this text."""
        return self._added.get(text)

    def _with_tools(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str | None:
        """The dialogue as the template writes tools, calls and results; None where it cannot, or has none to write."""
        about = bool(tools) or any(m.tool_calls or m.role is Role.TOOL for m in messages)
        if self._tools is None or not self.takes_tools or not about:
            return None
        return self._tools.write(self._fit(list(messages), tool_role=True, structured=True), tools)

    def _flat(self, message: Message) -> Message:
        """A message whose calls are part of its words, in the model's form."""
        if not message.tool_calls:
            return message
        written = self.form.write(message.tool_calls)
        content = f"{message.content.strip()}\n{written}" if message.content.strip() else written
        return Message(role=message.role, content=content)

    def _clean(self, message: Message) -> Message:
        """The message without names of special tokens in it.

        Raises:
            InvalidInput: a NUL or a lone surrogate in it.
        """
        calls = tuple(call.model_copy(update={"arguments": self._deep(call.arguments)}) for call in message.tool_calls)
        return message.model_copy(
            update={"content": self._harmless(check_characters(message.content)), "tool_calls": calls}
        )

    def _deep(self, value: Any) -> Any:
        """Plain JSON without names of special tokens in its texts."""
        if isinstance(value, str):
            return self._harmless(value)
        if isinstance(value, Mapping):
            return {self._harmless(key): self._deep(one) for key, one in value.items()}
        return [self._deep(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _fit(self, messages: list[Message], tool_role: bool, structured: bool = False) -> list[Message]:
        """The dialogue in the roles and order that the template accepts.

        ``tool_role``: results of tools keep their role. ``structured``: the template writes calls and results itself,
        so neighbours of those stay apart.
        """
        out: list[Message] = []
        system = ""
        for message in messages:
            if message.role is Role.SYSTEM and not self._knows_system:
                system = f"{system}\n\n{message.content}" if system else message.content
                continue
            if message.role is Role.TOOL and not tool_role:
                message = Message(role=Role.USER, content=f"tool: {message.content}")
            called = message.role is Role.TOOL or bool(message.tool_calls) or bool(out and out[-1].tool_calls)
            apart = called and structured
            if not self._any_order and out and out[-1].role is message.role and not apart:
                joined = f"{out[-1].content}\n\n{message.content}"
                out[-1] = out[-1].model_copy(update={"content": joined})
                continue
            out.append(message)
        talk = next((i for i, message in enumerate(out) if message.role is not Role.SYSTEM), len(out))
        starts_with_user = talk < len(out) and out[talk].role is Role.USER
        if (system or not self._any_order or not out) and not starts_with_user:
            out.insert(talk, Message(role=Role.USER, content="" if system else "..."))
        if system:
            content = out[talk].content
            out[talk] = out[talk].model_copy(update={"content": f"{system}\n\n{content}" if content else system})
        return out

    def _apply(
        self, messages: Sequence[dict[str, Any]], generation_prompt: bool, tools: Sequence[Tool] | None = None
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            enable_thinking=False,  # templates that know the switch (Qwen3) otherwise open with a hidden monologue
        )
        return text

    def _shows(self, messages: list[Message]) -> bool:
        """Whether the template takes these roles, in this order, and writes the probe word."""
        try:
            return _PROBE in self._apply(plain(messages), False)
        except TemplateError:
            return False

    def _end_ids(self) -> frozenset[int]:
        """End of sequence, and the special token that the template writes after an assistant's words."""
        ids = set() if self._tokenizer.eos_token_id is None else {self._tokenizer.eos_token_id}
        if self.has_template:
            user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
            rest = self._apply(plain([user, reply]), False).rpartition(_PROBE)[2].lstrip()
            after = self._ids(rest) if rest else []
            if after and after[0] in self._tokenizer.all_special_ids:
                ids.add(after[0])
        return frozenset(ids)

    def _harmless(self, text: str) -> str:
        for token in self._special:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

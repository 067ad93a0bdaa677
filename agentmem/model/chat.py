"""Dialogue <-> token ids: the tokenizer's chat template where it has one, a plain form where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from agentmem.errors import InvalidInput
from agentmem.records import Message, Role
from agentmem.text import check_characters

PLAIN_STOP = ("\nuser:", "\nsystem:", "\ntool:")
"""Where an answer ends when there is no chat template: the model begins to speak for someone else."""

_FIXED_PREFIX = "Conversation:\n"
_PROBE = "Quartz"


class ChatFormat:
    """How one tokenizer writes a dialogue.

    ``prefix_ids`` is what every memory is encoded after: the beginning-of-sequence token, or a short fixed text.
    ``stop_ids`` end a turn; ``stop_strings`` do so where there is no template.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = sorted({token for token in tokenizer.all_special_tokens if token}, key=len, reverse=True)
        bos = tokenizer.bos_token_id
        self.prefix_ids: tuple[int, ...] = (bos,) if bos is not None else tuple(self.encode(_FIXED_PREFIX))
        self.has_template = bool(tokenizer.chat_template)
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
        ids: list[int] = self._tokenizer(self._harmless(check_characters(text)), add_special_tokens=False)["input_ids"]
        return ids

    def render(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a dialogue, up to where the assistant's next turn begins.

        A template that knows no system role gets the system text in the first user turn; one that knows no tool role
        gets ``tool: ...`` as a user turn; one that insists on turns that alternate gets neighbours of one role joined.

        Raises:
            InvalidInput: no message, or a message with a NUL or a lone surrogate.
        """
        if not messages:
            raise InvalidInput("there is no message to render")
        fitted = self._fit(
            [m.model_copy(update={"content": self._harmless(check_characters(m.content))}) for m in messages]
        )
        if not self.has_template:
            lines = [f"{message.role.value}: {message.content}\n" for message in fitted]
            head = [self._tokenizer.bos_token_id] if self._tokenizer.bos_token_id is not None else []
            text = "".join(lines) + f"{Role.ASSISTANT.value}:"
            body: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return head + body
        try:
            text = self._apply(fitted, True)
        except TemplateError as error:
            roles = ", ".join(message.role.value for message in messages)
            raise InvalidInput(f"the model's chat template refuses this dialogue ({roles}): {error}") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def render_next(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of what follows an assistant's turn whose words are there already, up to its next turn.

        That is the end of its turn, then ``messages``: with ``render`` before it, a dialogue in pieces.

        Raises:
            InvalidInput: as ``render``.
        """
        if not messages:
            raise InvalidInput("there is no message to render")
        user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
        new = [m.model_copy(update={"content": self._harmless(check_characters(m.content))}) for m in messages]
        fitted = self._fit([user, reply, *new])
        if not self.has_template:
            lines = [f"{message.role.value}: {message.content}\n" for message in fitted[2:]]
            text = "\n" + "".join(lines) + f"{Role.ASSISTANT.value}:"
        else:
            try:
                text = self._apply(fitted, True).partition(_PROBE)[2]
            except TemplateError as error:
                roles = ", ".join(message.role.value for message in messages)
                raise InvalidInput(f"the model's chat template refuses these turns ({roles}): {error}") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def frame(self) -> tuple[list[int], list[int]]:
        """Token ids before and behind the words of one user turn that is to be answered: for a text too long to render.

        ``[*before, *encode(text), *behind]`` is ``render`` of that turn, up to how words are cut where they meet.
        """
        user = Message(role=Role.USER, content=_PROBE)
        bos = self._tokenizer.bos_token_id
        plain = f"{Role.USER.value}: {_PROBE}\n{Role.ASSISTANT.value}:"
        before, _, behind = (self._apply([user], True) if self.has_template else plain).partition(_PROBE)
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, behind)]
        return ([bos, *ids[0]] if bos is not None and not self.has_template else ids[0]), ids[1]

    def said(self, content: str) -> list[int]:
        """Token ids of an assistant's words, as they follow where its turn begins.

        Raises:
            InvalidInput: a NUL or a lone surrogate in it.
        """
        lead = " "
        if self.has_template:
            user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
            begun, whole = self._apply([user], True), self._apply([user, reply], False)
            lead = whole[len(begun) :].partition(_PROBE)[0] if whole.startswith(begun) else ""
        text = lead + self._harmless(check_characters(content))
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _fit(self, messages: list[Message]) -> list[Message]:
        """The dialogue in the roles and order that the template accepts."""
        out: list[Message] = []
        system = ""
        for message in messages:
            if message.role is Role.SYSTEM and not self._knows_system:
                system = f"{system}\n\n{message.content}" if system else message.content
                continue
            if message.role is Role.TOOL and not self._knows_tool:
                message = Message(role=Role.USER, content=f"tool: {message.content}")
            if not self._any_order and out and out[-1].role is message.role:
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

    def _apply(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        plain = [message.model_dump(mode="json", exclude_none=True) for message in messages]
        text: str = self._tokenizer.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            enable_thinking=False,  # templates that know the switch (Qwen3) otherwise open with a hidden monologue
        )
        return text

    def _shows(self, messages: list[Message]) -> bool:
        """Whether the template takes these roles, in this order, and writes the probe word."""
        try:
            return _PROBE in self._apply(messages, False)
        except TemplateError:
            return False

    def _end_ids(self) -> frozenset[int]:
        """End of sequence, and the special token that the template writes after an assistant's words."""
        ids = set() if self._tokenizer.eos_token_id is None else {self._tokenizer.eos_token_id}
        if self.has_template:
            user, reply = Message(role=Role.USER, content="Hello"), Message(role=Role.ASSISTANT, content=_PROBE)
            rest = self._apply([user, reply], False).rpartition(_PROBE)[2].lstrip()
            after = self._tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else []
            if after and after[0] in self._tokenizer.all_special_ids:
                ids.add(after[0])
        return frozenset(ids)

    def _harmless(self, text: str) -> str:
        for token in self._special:
            if len(token) > 1 and token in text:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

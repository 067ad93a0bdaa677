"""AgentMemModel: a ``MemoryLLM`` as a model of smolagents."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from smolagents import ChatMessage, FinalAnswerTool, Model, Tool
from smolagents.models import (
    ChatMessageStreamDelta,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    ChatMessageToolCallStreamDelta,
    MessageRole,
    get_tool_json_schema,
)
from smolagents.monitoring import TokenUsage

from agentmem import MemoryLLM, Message, Reply, ReplyStream, Role, session_of

from smolagents_agentmem_kv.convert import to_messages


class AgentMemModel(Model):  # type: ignore[misc]  # smolagents has no types
    """A model whose runs are remembered: what is older than the window, or of another day, is read as KV.

    An answer without a call is a final answer; smolagents' tool for that is offered where a call is required, or the
    system prompt speaks of it. The messages are the run so far; what of it was stored before is not stored again.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        session: Name of the dialogue; None makes one from the run's task.
        remember: False to read memories and store nothing.
        options: For every answer, as ``Conversation.stream`` has them: ``temperature``, ``max_new_tokens``, ``seed``,
            ``tool_choice`` ("auto" unless said otherwise), ``response_format``.
    """

    def __init__(
        self,
        llm: MemoryLLM,
        *,
        user: str,
        agent: str = "",
        session: str | None = None,
        remember: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(flatten_messages_as_text=True, model_id=llm.name, **options)
        self._llm, self._user, self._agent, self._session, self._remember = llm, user, agent, session, remember
        self._newest = threading.local()  # an agent parses an answer in the thread that asked for it

    def generate(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """The whole answer; ``raw`` is agentmem's ``Reply``, with the memories that were read."""
        with self._begin(messages, stop_sequences, response_format, tools_to_call_from, **kwargs) as pieces:
            for _ in pieces:
                pass
        reply = self._newest.reply = pieces.reply
        calls = [
            ChatMessageToolCall(ChatMessageToolCallFunction(call.arguments, call.name), call.id, "function")
            for call in reply.tool_calls
        ]
        return ChatMessage(MessageRole.ASSISTANT, reply.text, calls or None, raw=reply, token_usage=to_usage(reply))

    def generate_stream(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, Any] | None = None,
        tools_to_call_from: list[Tool] | None = None,
        **kwargs: Any,
    ) -> Generator[ChatMessageStreamDelta, None, None]:
        """The answer piece by piece, then its calls and its usage. Closing it stops the model."""
        with self._begin(messages, stop_sequences, response_format, tools_to_call_from, **kwargs) as pieces:
            for piece in pieces:
                yield ChatMessageStreamDelta(content=piece)
        reply = self._newest.reply = pieces.reply
        calls = [
            ChatMessageToolCallStreamDelta(
                at, call.id, "function", ChatMessageToolCallFunction(json.dumps(call.arguments), call.name)
            )
            for at, call in enumerate(reply.tool_calls)
        ]
        yield ChatMessageStreamDelta(tool_calls=calls or None, token_usage=to_usage(reply))

    def parse_tool_calls(self, message: ChatMessage) -> ChatMessage:
        """Make words without a call a call of ``final_answer``. Raises ValueError for what is broken or cut off."""
        reply: Reply | None = getattr(self._newest, "reply", None)
        if message.tool_calls or not message.content or reply is None or reply.text != message.content.strip():
            return super().parse_tool_calls(message)
        if reply.finish_reason in ("broken_call", "length"):
            what = "was cut off at max_new_tokens" if reply.finish_reason == "length" else "calls no tool that there is"
            raise ValueError(f"the answer {what}: {reply.text[:200]}")
        answer = ChatMessageToolCallFunction({"answer": message.content}, "final_answer")
        message.tool_calls = [ChatMessageToolCall(answer, f"call_{reply.turn}", "function")]
        return message

    def _begin(
        self,
        messages: Sequence[ChatMessage | Mapping[str, Any]],
        stop: list[str] | None,
        response_format: Mapping[str, Any] | None,
        tools: list[Tool] | None,
        **options: Any,
    ) -> ReplyStream:
        self._newest.stop = stop or getattr(self._newest, "stop", ())  # a run's last question comes without
        dialogue = to_messages(messages, self._newest.stop)
        session = self._session or session_of(dialogue)
        asked = {"stop": stop or (), "response_format": response_format, **options, **self.kwargs}
        offered = [to_schema(tool) for tool in tools or () if needed(tool, asked.get("tool_choice"), dialogue)]
        if not offered:
            asked.pop("tool_choice", None)
        conversation = self._llm.conversation(user=self._user, agent=self._agent, session=session)
        return conversation.stream(dialogue, tools=offered, remember=self._remember, **asked)


def needed(tool: Tool, choice: object, messages: Sequence[Message]) -> bool:
    """Whether a tool is to be offered: not that for a final answer, where words will do and nobody speaks of it."""
    if type(tool) is not FinalAnswerTool or choice == "required" or tool.name in str(choice):
        return True
    return any(tool.name in message.text for message in messages if message.role is Role.SYSTEM)


def to_schema(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's form. A tool takes no arguments but its own, so a forced call has no others."""
    schema: dict[str, Any] = get_tool_json_schema(tool)
    schema["function"]["parameters"]["additionalProperties"] = False
    return schema


def to_usage(reply: Reply) -> TokenUsage:
    """Tokens of an answer; those that were read from memory are input, too."""
    return TokenUsage(reply.usage.prompt_tokens + reply.usage.memory_tokens, reply.usage.completion_tokens)

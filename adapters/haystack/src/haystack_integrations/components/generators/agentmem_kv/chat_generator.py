"""AgentMemChatGenerator: a ``MemoryLLM`` as a chat generator of Haystack."""

from __future__ import annotations

import inspect
from typing import Any

from haystack import component, default_from_dict, default_to_dict
from haystack.dataclasses import ChatMessage, ComponentInfo, StreamingCallbackT, select_streaming_callback
from haystack.tools import ToolsType, deserialize_tools_or_toolset_inplace, serialize_tools_or_toolset
from haystack.utils import deserialize_callable, serialize_callable

from agentmem import Conversation

from haystack_integrations.components.generators.agentmem_kv.convert import (
    scope_of,
    to_answer,
    to_chunk,
    to_end,
    to_messages,
    to_options,
    to_tools,
)
from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore


@component
class AgentMemChatGenerator:
    """Chats with a local model whose dialogues are remembered: what is of another day is read as KV.

    Messages are the dialogue so far; what of them was stored before is not stored again. ``generation_kwargs`` are
    ``max_tokens``, ``temperature``, ``top_p``, ``top_k``, ``seed``, ``stop``, ``tool_choice``, ``response_format`` (a
    pydantic model or OpenAI's form), ``remember`` (False to read memories and store nothing), and ``user_id``,
    ``agent_id`` and ``session_id``, so that one pipeline or agent serves many users.

    Args:
        memory_store: The model and its memory; None for the bundled model and the file ``memory.db``.
        user_id: Whose memory is read and written, where a run does not say.
        agent_id: Of which agent.
        session_id: Name of the dialogue; None makes one from its first message.
        generation_kwargs: For all runs; those of a run come before them, key by key.
        streaming_callback: Called with each ``StreamingChunk``. One that raises stops the model; what was said until
            then is remembered.
        tools: What may be called, where a run does not say.
    """

    def __init__(
        self,
        memory_store: AgentMemMemoryStore | None = None,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        session_id: str | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        streaming_callback: StreamingCallbackT | None = None,
        tools: ToolsType | None = None,
    ) -> None:
        self.memory_store = memory_store or AgentMemMemoryStore()
        self.user_id, self.agent_id, self.session_id = user_id, agent_id, session_id
        self.generation_kwargs = generation_kwargs or {}
        self.streaming_callback = streaming_callback
        self.tools = tools

    def warm_up(self) -> None:
        """Open the model."""
        _ = self.memory_store.llm

    def close(self) -> None:
        """Let go of the model."""
        self.memory_store.close()

    def to_dict(self) -> dict[str, Any]:
        """The component without the open model."""
        callback = self.streaming_callback
        return default_to_dict(
            self,
            memory_store=self.memory_store,
            user_id=self.user_id,
            agent_id=self.agent_id,
            session_id=self.session_id,
            generation_kwargs=dict(self.generation_kwargs),
            streaming_callback=serialize_callable(callback) if callback else None,
            tools=serialize_tools_or_toolset(self.tools),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AgentMemChatGenerator:
        """The component that ``to_dict`` described."""
        given = data["init_parameters"]
        deserialize_tools_or_toolset_inplace(given, key="tools")
        if callback := given.get("streaming_callback"):
            given["streaming_callback"] = deserialize_callable(callback)
        return default_from_dict(cls, data)

    @component.output_types(replies=list[ChatMessage])
    def run(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """Answer the last message of a dialogue. Without any message there is no reply."""
        if not messages:
            return {"replies": []}
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=False)
        source = ComponentInfo.from_component(self)
        conversation, dialogue, options = self._asked(messages, generation_kwargs, tools)
        with conversation.stream(dialogue, **options) as pieces:
            for at, piece in enumerate(pieces):
                if callback:
                    callback(to_chunk(piece, at, source))
        if callback:
            callback(to_end(pieces.reply, source))
        return {"replies": [to_answer(pieces.reply, self.memory_store.llm.name)]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(
        self,
        messages: list[ChatMessage] | str,
        streaming_callback: StreamingCallbackT | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        *,
        tools: ToolsType | None = None,
    ) -> dict[str, list[ChatMessage]]:
        """As ``run``. A task that is cancelled stops the model."""
        if not messages:
            return {"replies": []}
        callback = select_streaming_callback(self.streaming_callback, streaming_callback, requires_async=True)
        source = ComponentInfo.from_component(self)
        conversation, dialogue, options = self._asked(messages, generation_kwargs, tools)
        at = 0
        async with conversation.astream(dialogue, **options) as pieces:
            async for piece in pieces:
                if callback and inspect.isawaitable(heard := callback(to_chunk(piece, at, source))):
                    await heard
                at += 1
        if callback and inspect.isawaitable(heard := callback(to_end(pieces.reply, source))):
            await heard
        return {"replies": [to_answer(pieces.reply, self.memory_store.llm.name)]}

    def _asked(
        self, messages: list[ChatMessage] | str, more: dict[str, Any] | None, tools: ToolsType | None
    ) -> tuple[Conversation, list[dict[str, Any]], dict[str, Any]]:
        said = [ChatMessage.from_user(messages)] if isinstance(messages, str) else messages
        own = {"user_id": self.user_id, "agent_id": self.agent_id, "session_id": self.session_id}
        options = own | self.generation_kwargs | (more or {})
        dialogue = to_messages(said)
        conversation = self.memory_store.llm.conversation(**scope_of(options, dialogue))
        return conversation, dialogue, to_options(**options) | {"tools": to_tools(tools or self.tools)}

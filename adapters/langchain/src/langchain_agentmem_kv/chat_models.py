"""ChatAgentMem: a ``MemoryLLM`` as a LangChain chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from agentmem import MemoryLLM, ReplyStream, session_of

from langchain_agentmem_kv.convert import to_choice, to_end, to_messages


class ChatAgentMem(BaseChatModel):
    """A chat model whose dialogues are remembered: what is older than the window, or of another day, is read as KV.

    Messages are the dialogue so far, as LangChain sends them; what of them was stored before is not stored again.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        session: Name of the dialogue; None makes one from its first message.
        remember: False to read memories and store nothing.
        temperature: 0 (or None) is greedy.
        max_tokens: Longest reply; None for the ``MemoryLLM``'s own limit.
        stop: Texts that end the reply.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    llm: MemoryLLM = Field(exclude=True, repr=False)
    user: str
    agent: str = ""
    session: str | None = None
    remember: bool = True
    temperature: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")

    @property
    def _llm_type(self) -> str:
        return "agentmem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.llm.name, "user": self.user, "agent": self.agent, "session": self.session}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"], params["ls_model_name"] = "agentmem", kwargs.get("model", self.llm.name)
        return params

    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools. A choice of "any", or of a name, forces a call whose arguments follow the tool's schema."""
        strict = [convert_to_openai_tool(tool, strict=True) for tool in tools]
        return self.bind(tools=strict, tool_choice=tool_choice, **kwargs)

    def _begin(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> ReplyStream:
        dialogue = to_messages(messages)
        session = self.session or session_of(dialogue)
        return self.llm.conversation(user=self.user, agent=self.agent, session=session).stream(
            dialogue,
            max_new_tokens=max_tokens or self.max_tokens,
            temperature=(self.temperature if temperature is None else temperature) or 0.0,
            top_p=top_p,
            seed=seed,
            stop=stop or self.stop or (),
            response_format=response_format,
            remember=self.remember,
            **to_choice(tools, tool_choice),
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._begin(messages, stop, **kwargs) as pieces:
            for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield ChatGenerationChunk(message=to_end(pieces.reply, self.llm.name))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        pieces = await asyncio.to_thread(self._begin, messages, stop, **kwargs)
        step: asyncio.Task[str | None] | None = None
        try:
            while (piece := await asyncio.shield(step := asyncio.create_task(_next(pieces)))) is not None:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        finally:  # also when the consumer leaves: a step that is under way is waited for, and none follows
            pieces.cancel()
            if step is not None:
                await asyncio.wait([step])
            await asyncio.to_thread(pieces.close)
        yield ChatGenerationChunk(message=to_end(pieces.reply, self.llm.name))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._begin(messages, stop, **kwargs) as pieces:
            for _ in pieces:
                pass
        message = message_chunk_to_message(to_end(pieces.reply, self.llm.name, pieces.reply.text))
        return ChatResult(generations=[ChatGeneration(message=message)])


async def _next(pieces: ReplyStream) -> str | None:
    return await asyncio.to_thread(next, pieces, None)

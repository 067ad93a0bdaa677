"""ChatAgentMem: a ``MemoryLLM`` as a LangChain chat model."""

from __future__ import annotations

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

from agentmem import Conversation, MemoryLLM, session_of

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

    def _turn(
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
    ) -> tuple[Conversation, dict[str, Any]]:
        """The conversation that a dialogue belongs to, and what it is asked."""
        dialogue = to_messages(messages)
        session = self.session or session_of(dialogue)
        asked = {
            "message": dialogue,
            "max_new_tokens": max_tokens or self.max_tokens,
            "temperature": (self.temperature if temperature is None else temperature) or 0.0,
            "top_p": top_p,
            "seed": seed,
            "stop": stop or self.stop or (),
            "response_format": response_format,
            "remember": self.remember,
        }
        conversation = self.llm.conversation(user=self.user, agent=self.agent, session=session)
        return conversation, asked | to_choice(tools, tool_choice)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        conversation, asked = self._turn(messages, stop, **kwargs)
        with conversation.stream(**asked) as pieces:
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
        conversation, asked = self._turn(messages, stop, **kwargs)
        async with conversation.astream(**asked) as pieces:  # leaving it stops the model
            async for piece in pieces:
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
                if run_manager is not None:
                    await run_manager.on_llm_new_token(piece, chunk=chunk)
                yield chunk
        yield ChatGenerationChunk(message=to_end(pieces.reply, self.llm.name))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        conversation, asked = self._turn(messages, stop, **kwargs)
        reply = conversation.chat(**asked)
        message = message_chunk_to_message(to_end(reply, self.llm.name, reply.text))
        return ChatResult(generations=[ChatGeneration(message=message)])

"""AgentMemModel: a ``MemoryLLM`` as a model of the SDK, and the provider that hands it out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any, cast

from agents import (
    Model,
    ModelProvider,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    Tool,
    Usage,
    UserError,
    generation_span,
)
from agents.agent_output import AgentOutputSchemaBase
from agents.handoffs import Handoff
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.models.chatcmpl_converter import Converter
from agents.models.chatcmpl_stream_handler import ChatCmplStreamHandler
from openai import AsyncStream, Omit
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessage
from openai.types.responses import Response, ResponseCompletedEvent
from openai.types.responses.response_prompt_param import ResponsePromptParam

from agentmem import AsyncReplyStream, MemoryLLM, session_of

from openai_agents_agentmem_kv.convert import to_chunks, to_messages, to_options, to_usage


class AgentMemModel(Model):
    """A model whose dialogues are remembered: what is older than the window, or of another day, is read as KV.

    The input of a run is the dialogue so far; what of it was stored before is not stored again. With
    ``previous_response_id`` it goes on behind that response.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        session: Name of the dialogue; None makes one from its first message.
        remember: False to read memories and store nothing.
    """

    def __init__(
        self, llm: MemoryLLM, *, user: str, agent: str = "", session: str | None = None, remember: bool = True
    ) -> None:
        self._llm, self._user, self._agent, self._session, self._remember = llm, user, agent, session, remember

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> ModelResponse:
        """The whole answer. A task that is cancelled stops the model."""
        refuse(conversation_id, prompt)
        session, pieces = self._begin(
            system_instructions, input, model_settings, tools, output_schema, handoffs, previous_response_id
        )
        with generation_span(model=self._llm.name, disabled=tracing.is_disabled()):
            async with pieces:
                async for _ in pieces:
                    pass
        reply = pieces.reply
        message = ChatCompletionMessage.model_validate(reply.message.openai())
        used = to_usage(reply)
        return ModelResponse(
            output=Converter.message_to_output_items(message),
            usage=Usage(
                requests=1,
                input_tokens=used.prompt_tokens,
                input_tokens_details=cast(Any, used.prompt_tokens_details),  # turned into the SDK's own by the SDK
                output_tokens=used.completion_tokens,
                total_tokens=used.total_tokens,
            ),
            response_id=f"{session}/{reply.turn}",
        )

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The answer as it is generated. A stream that is closed stops the model."""
        refuse(conversation_id, prompt)
        session, pieces = self._begin(
            system_instructions, input, model_settings, tools, output_schema, handoffs, previous_response_id
        )
        response = Response(
            id=session,
            created_at=time.time(),
            model=self._llm.name,
            object="response",
            output=[],
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=False,
        )
        chunks = cast("AsyncStream[ChatCompletionChunk]", to_chunks(pieces, self._llm.name))
        with generation_span(model=self._llm.name, disabled=tracing.is_disabled()):
            async with pieces:  # leaving it, also when the consumer leaves, stops the model
                async for event in ChatCmplStreamHandler.handle_stream(response, chunks):
                    if isinstance(event, ResponseCompletedEvent):
                        event.response.id = f"{session}/{pieces.reply.turn}"
                    yield event

    def _begin(
        self,
        instructions: str | None,
        input: str | list[TResponseInputItem],
        settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff[Any, Any]],
        previous: str | None,
    ) -> tuple[str, AsyncReplyStream]:
        """The name of the dialogue, and the answer that it goes on with."""
        messages = to_messages(instructions, input)
        session, _, after = (previous or "").rpartition("/")
        session = session or self._session or session_of(messages)
        response_format = Converter.convert_response_format(output_schema)
        return session, self._llm.conversation(user=self._user, agent=self._agent, session=session).astream(
            messages,
            tools=[*map(Converter.tool_to_openai, tools), *map(Converter.convert_handoff_tool, handoffs)],
            response_format=None if isinstance(response_format, Omit) else response_format,
            after=after or None,
            remember=self._remember,
            **to_options(settings),
        )


class AgentMemProvider(ModelProvider):
    """Hands out an ``AgentMemModel`` to all agents of a run: ``RunConfig(model_provider=...)``.

    Takes what ``AgentMemModel`` takes.
    """

    def __init__(
        self, llm: MemoryLLM, *, user: str, agent: str = "", session: str | None = None, remember: bool = True
    ) -> None:
        self._name = llm.name
        self._model = AgentMemModel(llm, user=user, agent=agent, session=session, remember=remember)

    def get_model(self, model_name: str | None) -> Model:
        """The model, by the name of the ``MemoryLLM`` or without one. Raises UserError for another name."""
        if model_name not in (None, self._name):
            raise UserError(f"there is no model {model_name!r} here, only {self._name!r}")
        return self._model


def refuse(conversation_id: str | None, prompt: ResponsePromptParam | None) -> None:
    """Raise UserError for what only OpenAI has."""
    if conversation_id is not None or prompt is not None:
        raise UserError("agentmem keeps neither prompts nor conversations under ids of OpenAI; use a session")

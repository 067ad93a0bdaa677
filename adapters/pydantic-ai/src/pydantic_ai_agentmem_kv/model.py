"""AgentMemModel: a ``MemoryLLM`` as a model of Pydantic AI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from anyio import CancelScope
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings

from agentmem import AsyncReplyStream, MemoryLLM, session_of

from pydantic_ai_agentmem_kv.convert import conversation_of, to_end, to_messages, to_options, to_parts

SYSTEM = "agentmem"


PROFILE = ModelProfile(
    supports_json_schema_output=True,
    supports_json_object_output=True,
    supports_image_input=False,
    supports_document_input=False,
    supports_audio_file_input=False,
    supports_video_input=False,
    supported_native_tools=frozenset(),
    context_window=None,
)


class AgentMemModel(Model[None]):
    """A model whose dialogues are remembered: what is older than the window, or of another day, is read as KV.

    Messages are the dialogue so far, as Pydantic AI sends them; what of them was stored before is not stored again.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        session: Name of the dialogue; None for the id of Pydantic AI's conversation.
        remember: False to read memories and store nothing.
        settings: Settings for all requests. Without a ``temperature`` the model is greedy.
    """

    unsupported_settings = frozenset({"timeout", "max_retries", "parallel_tool_calls", "extra_headers", "extra_body"})

    def __init__(
        self,
        llm: MemoryLLM,
        *,
        user: str,
        agent: str = "",
        session: str | None = None,
        remember: bool = True,
        settings: ModelSettings | None = None,
    ) -> None:
        super().__init__(settings=settings, profile=PROFILE)
        self.llm = llm
        self.user, self.agent, self.session, self.remember = user, agent, session, remember

    @property
    def model_name(self) -> str:
        """The name of the model that runs."""
        return self.llm.name

    @property
    def system(self) -> str:
        """Who provides it."""
        return SYSTEM

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """One answer. A task that is cancelled stops the model; what was said until then is remembered."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        async with self._begun(messages, settings, parameters) as pieces:
            async for _ in pieces:
                pass
        parts = list(to_parts(pieces.reply))
        return ModelResponse(parts, model_name=self.model_name, provider_name=SYSTEM, **to_end(pieces.reply))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """One answer, piece by piece. A stream that is left, or cancelled, stops the model."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        async with self._begun(messages, settings, parameters) as pieces:
            yield _Streamed(model_request_parameters=parameters, _pieces=pieces, _model_name=self.model_name)

    @asynccontextmanager
    async def _begun(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> AsyncGenerator[AsyncReplyStream]:
        instructions = [part.content for part in self._get_instruction_parts(messages, parameters) or ()]
        dialogue = to_messages(messages, instructions)
        session = self.session or conversation_of(messages) or session_of(dialogue)
        pieces = self.llm.conversation(user=self.user, agent=self.agent, session=session).astream(
            dialogue, remember=self.remember, **to_options(settings or {}, parameters)
        )
        try:
            yield pieces
        finally:
            with CancelScope(shield=True):  # a run that is cancelled waits, too, until what was said is stored
                await pieces.aclose()


@dataclass
class _Streamed(StreamedResponse):
    _pieces: AsyncReplyStream
    _model_name: str
    _timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for piece in self._pieces:
            for event in self._parts_manager.handle_text_delta(vendor_part_id="text", content=piece):
                yield event
        reply = self._pieces.reply
        for call in reply.tool_calls:
            yield self._parts_manager.handle_tool_call_part(
                vendor_part_id=call.id, tool_name=call.name, args=call.arguments, tool_call_id=call.id
            )
        end = to_end(reply)
        self._usage = end["usage"]
        self.finish_reason, self.provider_details = end["finish_reason"], end["provider_details"]

    async def close_stream(self) -> None:
        await self._pieces.aclose()

    @property
    def model_name(self) -> str:
        return self._model_name

    @property
    def provider_name(self) -> str:
        return SYSTEM

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self._timestamp

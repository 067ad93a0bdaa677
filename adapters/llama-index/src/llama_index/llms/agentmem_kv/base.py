"""AgentMem: a ``MemoryLLM`` as a function-calling LLM of LlamaIndex."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

from llama_index.core.base.llms import generic_utils, types
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.utils import process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import BaseTool

from agentmem import Conversation, MemoryLLM, session_of

from llama_index.llms.agentmem_kv import convert

ENDLESS = 1_000_000
"""Tokens that LlamaIndex may send: what the window does not show is memory, so nothing has to be cut off before."""


class AgentMem(FunctionCallingLLM):
    """An LLM whose dialogues are remembered: what is older than the window, or of another day, is read as KV.

    Messages are the dialogue so far, as LlamaIndex sends them; what of them was stored before is not stored again.
    Unsaid options of ``chat`` and its like go to ``Conversation.chat``: ``top_p``, ``seed``, ``response_format``.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory is read and written.
        agent: Of which agent.
        session: Name of the dialogue; None makes one from its first message.
        remember: False to read memories and store nothing.
        temperature: 0 is greedy.
        max_tokens: Longest reply; None for the ``MemoryLLM``'s own limit.
        stop: Texts that end the reply.
    """

    llm: MemoryLLM = Field(exclude=True, repr=False)
    user: str
    agent: str = ""
    session: str | None = None
    remember: bool = True
    temperature: float = 0.0
    max_tokens: int | None = None
    stop: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        """LlamaIndex's name of this class."""
        return "AgentMem"

    @property
    def metadata(self) -> types.LLMMetadata:
        """What LlamaIndex plans with."""
        return types.LLMMetadata(
            context_window=ENDLESS,
            num_output=self.max_tokens or self.llm.max_new_tokens,
            is_chat_model=True,
            is_function_calling_model=True,
            model_name=self.llm.name,
        )

    def _turn(
        self, messages: Sequence[types.ChatMessage], *, max_tokens: int | None = None, **more: Any
    ) -> tuple[Conversation, dict[str, Any]]:
        """The conversation that a dialogue belongs to, and what it is asked."""
        dialogue = convert.to_messages(messages)
        asked: dict[str, Any] = {"message": dialogue, "max_new_tokens": max_tokens or self.max_tokens}
        asked |= {"temperature": self.temperature, "stop": self.stop, "remember": self.remember}
        session = self.session or session_of(dialogue)
        return self.llm.conversation(user=self.user, agent=self.agent, session=session), asked | more

    @llm_chat_callback()
    def chat(self, messages: Sequence[types.ChatMessage], **kwargs: Any) -> types.ChatResponse:
        """Answer a dialogue."""
        conversation, asked = self._turn(messages, **kwargs)
        return convert.to_response(conversation.chat(**asked))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[types.ChatMessage], **kwargs: Any) -> types.ChatResponse:
        """As ``chat``; a task that is cancelled stops the model."""
        conversation, asked = self._turn(messages, **kwargs)
        return convert.to_response(await conversation.achat(**asked))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[types.ChatMessage], **kwargs: Any) -> types.ChatResponseGen:
        """As ``chat``, piece by piece; the last response has the calls. Closing the generator stops the model."""
        conversation, asked = self._turn(messages, **kwargs)
        pieces = conversation.stream(**asked)

        def said() -> types.ChatResponseGen:
            text = ""
            with pieces:
                for piece in pieces:
                    text += piece
                    yield convert.to_piece(text, piece)
            yield convert.to_response(pieces.reply, delta="")

        return said()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[types.ChatMessage], **kwargs: Any) -> types.ChatResponseAsyncGen:
        """As ``stream_chat``."""
        conversation, asked = self._turn(messages, **kwargs)

        async def said() -> types.ChatResponseAsyncGen:
            text = ""
            async with conversation.astream(**asked) as pieces:
                async for piece in pieces:
                    text += piece
                    yield convert.to_piece(text, piece)
            yield convert.to_response(pieces.reply, delta="")

        return said()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> types.CompletionResponse:
        """Answer one message."""
        return generic_utils.chat_to_completion_decorator(self.chat)(prompt, **kwargs)

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> types.CompletionResponse:
        """Answer one message."""
        return await generic_utils.achat_to_completion_decorator(self.achat)(prompt, **kwargs)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> types.CompletionResponseGen:
        """Answer one message, piece by piece."""
        return generic_utils.stream_chat_to_completion_decorator(self.stream_chat)(prompt, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> types.CompletionResponseAsyncGen:
        """Answer one message, piece by piece."""
        return await generic_utils.astream_chat_to_completion_decorator(self.astream_chat)(prompt, **kwargs)

    # ------------------------------------------------------------------------------------------------ tools and forms

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | types.ChatMessage | None = None,
        chat_history: list[types.ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        newest = types.ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
        messages = [*(chat_history or []), *([newest] if newest else [])]
        offered = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
        choice = convert.to_choice(tool_choice, tool_required) if offered else "auto"
        return {"messages": messages, "tools": offered, "tool_choice": choice, **kwargs}

    def _validate_chat_with_tools_response(
        self,
        response: types.ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> types.ChatResponse:
        """Where one call at a time is wanted, the first one counts."""
        calls = [block for block in response.message.blocks if isinstance(block, types.ToolCallBlock)]
        if not allow_parallel_tool_calls:
            response.message.blocks = [block for block in response.message.blocks if block not in calls[1:]]
        return response

    def get_tool_calls_from_response(
        self, response: types.ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a finished response. Raises ValueError where one is wanted and there is none."""
        calls = [block for block in response.message.blocks if isinstance(block, types.ToolCallBlock)]
        if error_on_no_tool_call and not calls:
            raise ValueError(f"the model called no tool; it said {response.message.content!r:.200}")
        return [convert.to_selection(call) for call in calls]

    def _structured_stream_call(
        self, output_cls: type[BaseModel], *args: Any, **kwargs: Any
    ) -> Generator[Any, None, None]:
        messages, options = self._formed(output_cls, *args, **kwargs)
        found: list[Any] = []
        for response in self.stream_chat(messages, **options):
            found = [process_streaming_objects(response, output_cls, found)]
            yield found[0]

    async def _structured_astream_call(
        self, output_cls: type[BaseModel], *args: Any, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        messages, options = self._formed(output_cls, *args, **kwargs)
        responses = await self.astream_chat(messages, **options)

        async def objects() -> AsyncGenerator[Any, None]:
            found: list[Any] = []
            async for response in responses:
                found = [process_streaming_objects(response, output_cls, found)]
                yield found[0]

        return objects()

    def _formed(
        self, output_cls: type[BaseModel], prompt: BasePromptTemplate, llm_kwargs: Any = None, **prompt_args: Any
    ) -> tuple[list[types.ChatMessage], dict[str, Any]]:
        """What a streamed form is asked with: it grows as the words of the answer do, which a call would not."""
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return messages, {"response_format": convert.to_form(output_cls.model_json_schema())} | (llm_kwargs or {})

"""AgentMemLlm: a ``MemoryLLM`` as a model of Google's Agent Development Kit."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from pydantic import Field

from agentmem import Conversation, InvalidInput, MemoryLLM, session_of

from google_adk_agentmem_kv import convert
from google_adk_agentmem_kv.plugin import AGENT, SESSION, USER


class AgentMemLlm(BaseLlm):
    """A model whose dialogues are remembered: what is older than the window, or of another day, is read as KV.

    Whose memory it reads and writes, a request does not say: put ``AgentMemPlugin`` into the runner, or give ``user``
    for an app of one person.

    Args:
        llm: An open ``MemoryLLM``; close it yourself.
        user: Whose memory it is, where the plugin does not say so.
        agent: Of which agent, likewise.
        remember: False to read memories and store nothing, as for an app whose memory service does that.
    """

    model: str = ""
    llm: MemoryLLM = Field(exclude=True, repr=False)
    user: str = ""
    agent: str = ""
    remember: bool = True

    def model_post_init(self, context: Any, /) -> None:
        """The name by which ADK, its logs and the plugin know the model."""
        self.model = self.model or f"agentmem/{self.llm.name}"

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        """The answer to a request; with ``stream`` its pieces first. Closing the generator stops the model."""
        messages = convert.to_messages(llm_request)
        options = convert.to_options(llm_request.config) | {"remember": self.remember}
        conversation = self._conversation(llm_request, messages)
        async with conversation.astream(messages, **options) as pieces:
            async for piece in pieces:
                if stream:
                    yield convert.to_piece(piece)
        yield convert.to_response(pieces.reply, self.model)

    def _conversation(self, request: LlmRequest, messages: list[dict[str, Any]]) -> Conversation:
        said = request.config.labels or {}
        user = said.get(USER, self.user)
        if not user:
            raise InvalidInput("whose memory is it? Put AgentMemPlugin() into the runner's plugins, or give user=...")
        session = said.get(SESSION) or session_of(messages)
        return self.llm.conversation(user=user, agent=said.get(AGENT, self.agent), session=session)

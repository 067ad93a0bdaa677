"""AgentMemPlugin: tells the model for whom a run is; ADK's requests do not."""

from __future__ import annotations

from google.adk.agents.callback_context import CallbackContext
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.plugins.base_plugin import BasePlugin

USER, AGENT, SESSION = "agentmem_user", "agentmem_agent", "agentmem_session"
"""Labels of a request."""


class AgentMemPlugin(BasePlugin):
    """The memory of a run is that of its user, in its app; its dialogue is the session's.

    For the whole of a ``Runner`` or an ``App``: agents of other models are left as they are.
    """

    def __init__(self, name: str = "agentmem") -> None:
        super().__init__(name)

    async def before_model_callback(
        self, *, callback_context: CallbackContext, llm_request: LlmRequest
    ) -> LlmResponse | None:
        """Label a request that goes to ``AgentMemLlm``."""
        if (llm_request.model or "").startswith("agentmem/"):
            session = callback_context.session
            whose = {USER: session.user_id, AGENT: session.app_name, SESSION: session.id}
            llm_request.config.labels = {**(llm_request.config.labels or {}), **whose}
        return None

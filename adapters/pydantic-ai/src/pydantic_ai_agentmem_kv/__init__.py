"""agentmem for Pydantic AI: a capability that remembers, a store of conversations, and a local model."""

from pydantic_ai_agentmem_kv.capability import AgentMemCapability
from pydantic_ai_agentmem_kv.conversations import AgentMemConversationStore
from pydantic_ai_agentmem_kv.model import AgentMemModel

__all__ = ["AgentMemCapability", "AgentMemConversationStore", "AgentMemModel"]

"""agentmem for Google's Agent Development Kit: a memory service, a model, a plugin that says whose memory it is."""

from google_adk_agentmem_kv.memory_service import AgentMemMemoryService
from google_adk_agentmem_kv.models import AgentMemLlm
from google_adk_agentmem_kv.plugin import AgentMemPlugin

__all__ = ["AgentMemLlm", "AgentMemMemoryService", "AgentMemPlugin"]

"""The memory that a chat generator, a retriever and a writer of Haystack share."""

from haystack_integrations.memory_stores.agentmem_kv.memory_store import AgentMemMemoryStore

__all__ = ["AgentMemMemoryStore"]

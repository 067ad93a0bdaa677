"""A retriever of memories."""

from haystack_integrations.components.retrievers.agentmem_kv.memory_retriever import AgentMemMemoryRetriever

__all__ = ["AgentMemMemoryRetriever"]

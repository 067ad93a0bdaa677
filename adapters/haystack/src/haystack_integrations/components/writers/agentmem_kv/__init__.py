"""A writer of memories."""

from haystack_integrations.components.writers.agentmem_kv.memory_writer import AgentMemMemoryWriter

__all__ = ["AgentMemMemoryWriter"]

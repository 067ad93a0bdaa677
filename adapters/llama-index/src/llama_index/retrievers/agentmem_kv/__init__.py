"""agentmem for LlamaIndex: what a user is remembered by, as nodes."""

from llama_index.retrievers.agentmem_kv.base import AgentMemRetriever

__all__ = ["AgentMemRetriever"]

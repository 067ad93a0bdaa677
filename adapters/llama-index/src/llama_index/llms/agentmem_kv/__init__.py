"""agentmem for LlamaIndex: a function-calling LLM that remembers."""

from llama_index.llms.agentmem_kv.base import AgentMem

__all__ = ["AgentMem"]

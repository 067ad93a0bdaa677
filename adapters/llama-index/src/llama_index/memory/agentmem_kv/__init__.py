"""agentmem for LlamaIndex: a block of ``Memory`` that keeps what leaves the dialogue, and finds it again."""

from llama_index.memory.agentmem_kv.base import AgentMemBlock

__all__ = ["AgentMemBlock"]

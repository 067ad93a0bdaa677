"""mem0's ``Memory`` over a ``MemoryLLM``: ``from agentmem.compat.mem0 import Memory``."""

from agentmem.compat.mem0.memory import Memory

__all__ = ["Memory"]

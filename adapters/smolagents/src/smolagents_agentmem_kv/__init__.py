"""agentmem for smolagents: a model that remembers, a recall tool, a callback that remembers runs, and short prompts."""

from smolagents_agentmem_kv.memory import RecallTool, remember
from smolagents_agentmem_kv.models import AgentMemModel
from smolagents_agentmem_kv.prompts import SHORT_CODE_PROMPTS, SHORT_PROMPTS

__all__ = ["SHORT_CODE_PROMPTS", "SHORT_PROMPTS", "AgentMemModel", "RecallTool", "remember"]

"""LangGraph's long-term store on agentmem."""

from langgraph_agentmem_kv.store import AgentMemStore

__all__ = ["AgentMemStore"]

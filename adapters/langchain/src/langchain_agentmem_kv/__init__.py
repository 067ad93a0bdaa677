"""agentmem for LangChain: a chat model, a retriever, and a middleware for agents."""

from langchain_agentmem_kv.chat_models import ChatAgentMem
from langchain_agentmem_kv.middleware import AgentMemMiddleware
from langchain_agentmem_kv.retrievers import AgentMemRetriever

__all__ = ["AgentMemMiddleware", "AgentMemRetriever", "ChatAgentMem"]

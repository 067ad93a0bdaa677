"""A chat generator whose dialogues are remembered."""

from haystack_integrations.components.generators.agentmem_kv.chat_generator import AgentMemChatGenerator

__all__ = ["AgentMemChatGenerator"]

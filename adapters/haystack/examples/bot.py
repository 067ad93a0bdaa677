"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import sys

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage

from haystack_integrations.components.generators.agentmem_kv import AgentMemChatGenerator
from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore

if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    agent = Agent(chat_generator=AgentMemChatGenerator(AgentMemMemoryStore(path), user_id=user))
    print(agent.run([ChatMessage.from_user(text)])["last_message"].text)
    agent.close()

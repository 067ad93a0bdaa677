"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import sys

from pydantic_ai import Agent

from agentmem import MemoryLLM

from pydantic_ai_agentmem_kv import AgentMemModel

if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    with MemoryLLM(store=path) as llm:
        agent = Agent(AgentMemModel(llm, user=user))
        print(agent.run_sync(text).output)

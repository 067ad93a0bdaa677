"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import asyncio
import sys

from agents import Agent, RunConfig, Runner

from agentmem import MemoryLLM

from openai_agents_agentmem_kv import AgentMemProvider

if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    with MemoryLLM(store=path) as llm:
        config = RunConfig(model_provider=AgentMemProvider(llm, user=user))
        print(asyncio.run(Runner.run(Agent(name="bot"), text, run_config=config)).final_output)

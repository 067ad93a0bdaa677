"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import sys

from smolagents import ToolCallingAgent

from agentmem import MemoryLLM

from smolagents_agentmem_kv import SHORT_PROMPTS, AgentMemModel

if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    with MemoryLLM(store=path) as llm:
        model = AgentMemModel(llm, user=user)
        agent = ToolCallingAgent(tools=[], model=model, prompt_templates=SHORT_PROMPTS, verbosity_level=0)
        print(agent.run(text))

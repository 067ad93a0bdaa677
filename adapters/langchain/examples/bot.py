"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import sys

from langchain.agents import create_agent

from agentmem import MemoryLLM

from langchain_agentmem_kv import ChatAgentMem

if __name__ == "__main__":
    path, user, text = sys.argv[1:]
    with MemoryLLM(store=path) as llm:
        agent = create_agent(ChatAgentMem(llm=llm, user=user))
        print(agent.invoke({"messages": [("user", text)]})["messages"][-1].text)

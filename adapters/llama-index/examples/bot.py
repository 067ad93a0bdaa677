"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import asyncio
import sys

from llama_index.core.agent.workflow import FunctionAgent

from agentmem import MemoryLLM

from llama_index.llms.agentmem_kv import AgentMem


async def main(path: str, user: str, text: str) -> None:
    """Ask the agent, and print its answer."""
    with MemoryLLM(store=path) as llm:
        agent = FunctionAgent(llm=AgentMem(llm=llm, user=user))
        print(await agent.run(text))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

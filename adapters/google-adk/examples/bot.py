"""A bot that remembers across processes: ``python bot.py STORE USER TEXT``, today and tomorrow."""

import asyncio
import sys

from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.runners import InMemoryRunner
from google.genai import types

from agentmem import MemoryLLM

from google_adk_agentmem_kv import AgentMemLlm, AgentMemPlugin


async def main(path: str, user: str, text: str) -> None:
    """Ask the agent, and print its answer."""
    with MemoryLLM(store=path) as llm:
        agent = LlmAgent(name="bot", model=AgentMemLlm(llm=llm))
        app = App(name="bot", root_agent=agent, plugins=[AgentMemPlugin()])
        async with InMemoryRunner(app=app) as runner:
            session = await runner.session_service.create_session(app_name="bot", user_id=user)
            said = types.UserContent(text)
            async for event in runner.run_async(user_id=user, session_id=session.id, new_message=said):
                print("".join(part.text or "" for part in event.content.parts))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

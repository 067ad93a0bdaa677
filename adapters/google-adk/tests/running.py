"""How the tests ask an agent: a real runner of ADK's, an event loop that can be left in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps import App
from google.adk.events.event import Event
from google.adk.memory.base_memory_service import BaseMemoryService
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.genai import types

from agentmem import MemoryLLM

from google_adk_agentmem_kv import AgentMemLlm, AgentMemPlugin

APP = "bot"


def make_agent(llm: MemoryLLM, *tools: Callable[..., Any], remember: bool = True, **more: Any) -> LlmAgent:
    return LlmAgent(name="bot", model=AgentMemLlm(llm=llm, remember=remember), tools=list(tools), **more)


class Bot:
    """An app with its sessions in RAM, as if each object was a process of its own."""

    def __init__(self, agent: LlmAgent, memory_service: BaseMemoryService | None = None):
        self.sessions = InMemorySessionService()
        app = App(name=APP, root_agent=agent, plugins=[AgentMemPlugin()])
        self.runner = Runner(app=app, session_service=self.sessions, memory_service=memory_service)

    async def events(self, user: str, text: str, session: str, *, stream: bool = False) -> AsyncIterator[Event]:
        if await self.sessions.get_session(app_name=APP, user_id=user, session_id=session) is None:
            await self.sessions.create_session(app_name=APP, user_id=user, session_id=session)
        config = RunConfig(streaming_mode=StreamingMode.SSE if stream else StreamingMode.NONE, max_llm_calls=6)
        said = types.UserContent(text)
        events = self.runner.run_async(user_id=user, session_id=session, new_message=said, run_config=config)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def ask(self, user: str, text: str, session: str = "monday") -> str:
        events = [event async for event in self.events(user, text, session)]
        return words(events[-1])


def words(event: Event) -> str:
    return "".join(part.text or "" for part in event.content.parts)


def in_a_loop(events: AsyncIterator[Event]) -> Iterator[Event]:
    """The events one by one, for who has no event loop. Closing the generator closes them."""
    with asyncio.Runner() as runner:
        try:
            while (event := runner.run(anext(events, None))) is not None:
                yield event
        finally:
            runner.run(events.aclose())

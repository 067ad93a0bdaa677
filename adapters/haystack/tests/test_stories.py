"""The stories of all adapters, told by Haystack's agents and the chat generator."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage, StreamingChunk

from agentmem import MemoryLLM

from agentmem_contract import ModelStories
from haystack_integrations.components.generators.agentmem_kv import AgentMemChatGenerator
from haystack_integrations.memory_stores.agentmem_kv import AgentMemMemoryStore
from tool_of import tool_of


class Left(Exception):
    """Nobody listens any more."""


class TestStories(ModelStories):
    folder = Path(__file__).parent.parent

    def generator(self, llm: MemoryLLM, user: str) -> AgentMemChatGenerator:
        return AgentMemChatGenerator(AgentMemMemoryStore.of(llm), user_id=user)

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return Agent(chat_generator=self.generator(llm, user)).run([ChatMessage.from_user(text)])["last_message"].text

    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        """Haystack streams into a callback; one that raises ends the run."""
        pieces: queue.Queue[str | None] = queue.Queue()
        left = threading.Event()

        def hear(chunk: StreamingChunk) -> None:
            if left.is_set():
                raise Left
            pieces.put(chunk.content)

        def run() -> None:
            try:
                self.generator(llm, user).run(text, streaming_callback=hear)
            except Left:
                pass
            finally:
                pieces.put(None)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                yield piece
        finally:
            left.set()
            thread.join()

    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        agent = Agent(chat_generator=self.generator(llm, user), tools=[tool_of(tool)])
        return agent.run([ChatMessage.from_user(text)])["last_message"].text

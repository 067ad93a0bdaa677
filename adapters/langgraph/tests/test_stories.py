"""The stories of all adapters, told by a graph whose node answers from the store."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from agentmem import MemoryLLM

from agentmem_contract import MemoryStories

FOLDER = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("bot", FOLDER / "examples" / "bot.py")
bot = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bot)


class TestStories(MemoryStories):
    folder = FOLDER

    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        return bot.build(llm, user).invoke({"said": text, "answer": ""})["answer"]

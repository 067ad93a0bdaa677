"""Stories that every adapter passes, told with its own framework, the bundled model and real processes.

A test module of the adapter subclasses ``MemoryStories`` (and ``ModelStories``, if it brings a model) and says how its
framework speaks; the stories are the same for all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from agentmem import MemoryLLM

import no_network  # noqa: F401  # who imports this module is watched from then on
from babbler import make_babbler

CONTRACT = Path(__file__).resolve().parent


def python(*arguments: object, cwd: Path | None = None, ignore: Sequence[str] = ()) -> str:
    """What a real, separate process without network prints. The test fails when it does, or when it warns.

    ``ignore``: how warnings begin that are not ours.
    """
    switch = "import runpy, sys, no_network; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    warnings = ["-Werror", *(f"-Wignore:{words}" for words in ignore)]
    command = [sys.executable, *warnings, "-c", switch, *map(str, arguments)]
    # What lies over the environment, such as the oldest versions, lies over it in that process, too.
    laid_over = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(CONTRACT), *laid_over]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class MemoryStories(ABC):
    """What is told is remembered, by whom it was told, until it is forgotten."""

    folder: Path
    """The adapter's. Its ``examples/bot.py`` prints the answer to ``python bot.py STORE USER TEXT``."""
    agent: str = ""
    """Under which agent's name the adapter remembers what a user says."""
    ignore: Sequence[str] = ()
    """How warnings begin that the framework itself is the cause of."""

    @abstractmethod
    def say(self, llm: MemoryLLM, user: str, text: str) -> str:
        """A user says something in a dialogue that begins with it; the answer."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        return tmp_path / "memory.db"

    @pytest.fixture
    def llm(self, store: Path) -> Iterator[MemoryLLM]:
        with MemoryLLM(store=store) as opened:
            yield opened

    def test_remembers_tomorrow(self, store: Path) -> None:
        bot = self.folder / "examples" / "bot.py"
        python(bot, store, "ada", "My dog is called Biscuit.", ignore=self.ignore)
        assert "Biscuit" in python(bot, store, "ada", "What is my dog called?", ignore=self.ignore)
        assert "Biscuit" not in python(bot, store, "bob", "What is my dog called?", ignore=self.ignore)

    def test_the_quickstart_does_what_it_shows(self, tmp_path: Path) -> None:
        blocks = re.findall(
            r"^```(python|text)\n(.*?)^```", (self.folder / "README.md").read_text("utf-8"), re.M | re.S
        )
        script = tmp_path / "quickstart.py"
        script.write_text("".join(block for kind, block in blocks if kind == "python"), "utf-8")
        shown = "".join(block for kind, block in blocks if kind == "text").strip()
        assert shown
        assert python(script, cwd=tmp_path, ignore=self.ignore) == shown

    def test_users_are_apart(self, llm: MemoryLLM) -> None:
        self.say(llm, "ada", "My dog is called Biscuit.")
        self.say(llm, "bob", "My dog is called Bruno.")
        assert "Biscuit" in self.say(llm, "ada", "What is my dog called?")
        answer = self.say(llm, "bob", "What is my dog called?")
        assert "Bruno" in answer
        assert "Biscuit" not in answer

    def test_what_is_forgotten_is_gone(self, llm: MemoryLLM) -> None:
        self.say(llm, "ada", "My dog is called Biscuit.")
        assert "Biscuit" in self.say(llm, "ada", "What is my dog called?")
        memories = llm.memories(user="ada", agent=self.agent)
        memories.delete([memory.id for memory in memories.list(limit=1000)])
        assert "Biscuit" not in self.say(llm, "ada", "What is my dog called?")


class ModelStories(MemoryStories):
    """A model that the framework runs: streaming, stopping, and calling tools."""

    @abstractmethod
    def stream(self, llm: MemoryLLM, user: str, text: str) -> Iterator[str]:
        """As ``say``, piece by piece: a generator that, when closed, closes the framework's stream."""

    @abstractmethod
    def say_with_tool(self, llm: MemoryLLM, user: str, text: str, tool: Callable[[str], str]) -> str:
        """The framework's own agent loop: the model calls the tool if it chooses to, and then answers."""

    @pytest.fixture(scope="class")
    @classmethod
    def babbler(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_babbler(tmp_path_factory.mktemp("babbler"))

    def test_a_stream_is_the_answer_in_pieces(self, llm: MemoryLLM) -> None:
        self.say(llm, "ada", "My dog is called Biscuit.")
        pieces = list(self.stream(llm, "ada", "What is my dog called?"))
        assert len([piece for piece in pieces if piece]) > 1
        assert "".join(pieces) == self.say(llm, "ada", "What is my dog called?")

    def test_a_closed_stream_stops_the_model(self, store: Path, babbler: Path) -> None:
        with MemoryLLM(babbler, store=store, max_new_tokens=8000) as llm:
            with closing(self.stream(llm, "ada", "Go on and on.")) as pieces:
                heard = "".join(next(pieces) for _ in range(5))
            (kept,) = llm.memories(user="ada", agent=self.agent).list(role="assistant")
            assert kept.text.startswith(heard.strip())
            assert kept.n_tokens < 100

    def test_a_tool_is_called_and_its_result_answered(self, llm: MemoryLLM) -> None:
        asked: list[str] = []

        def weather(city: str) -> str:
            """The weather in a city."""
            asked.append(city)
            return "It rains in Lisbon."

        answer = self.say_with_tool(llm, "ada", "How is the weather in Lisbon?", weather)
        assert asked == ["Lisbon"]
        assert "It rains in Lisbon." in answer
        assert "It rains in Lisbon." in [
            memory.text for memory in llm.memories(user="ada", agent=self.agent).list(role="tool")
        ]

"""Users of a server, each with a secret of its own, all at once: what they say, and what they must never hear."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI

from agentmem.training.values import value

TELL, ASK = "My dog is called {}.", "What is my dog called?"
FOODS = ["soup", "pasta", "rice", "pizza", "salad", "curry", "bread", "fish", "eggs", "sushi"]
WEIGHTS = {"stream": 6, "whole": 4, "dialogue": 3, "response": 3, "cancel": 2, "memory": 2}
"""What a user does next, and how often."""


def secrets(n: int, seed: int) -> list[str]:
    """Made-up names that nobody has guessed; none is part of another."""
    rng, found = random.Random(seed), list[str]()
    while len(found) < n:
        name = value(rng, "name", "heldout")
        if " " not in name and not any(name in other or other in name for other in found):
            found.append(name)
    return found


@dataclass
class Figures:
    """What the users saw. Seconds from sending a request."""

    first_token: list[float] = field(default_factory=list)
    reply: list[float] = field(default_factory=list)
    search: list[float] = field(default_factory=list)
    tokens: int = 0
    cancelled: int = 0
    asked: int = 0
    right: int = 0
    """Answers to the question for the secret that have it."""
    errors: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    """Places where another user's secret was seen."""
    refused: int = 0
    """Requests that a server about to end did not take."""
    told: list[tuple[str, str]] = field(default_factory=list)
    """User and text of every message that was answered: it has to be in the store."""


class Crowd:
    """Users that talk to one server until they are told to stop."""

    def __init__(self, url: str, n: int, seed: int, figures: Figures) -> None:
        self.url, self.figures, self._seed = url, figures, seed
        self.secrets = secrets(n, seed)
        self._any = re.compile("|".join(map(re.escape, self.secrets)))
        self._over = asyncio.Event()
        self.ending = False
        """The server was told to stop: it may refuse what is new, and nothing else."""

    async def live(self, seconds: float, then: Callable[[], Awaitable[None]] | None = None) -> float:
        """All users at once for so long; ``then`` is awaited before they stop. Returns the seconds it took."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=len(self.secrets))
        began = time.monotonic()
        async with httpx2.AsyncClient(base_url=self.url, timeout=300, limits=limits) as http:
            users = [asyncio.create_task(self._live(http, number)) for number in range(len(self.secrets))]
            await asyncio.sleep(seconds)
            if then is not None:
                await then()
            self._over.set()
            await asyncio.gather(*users)
        return time.monotonic() - began

    async def _live(self, http: httpx2.AsyncClient, number: int) -> None:
        user = User(self, http, number, random.Random(f"{self._seed} {number}"))
        try:
            await user.begin()
            while not self._over.is_set():
                await user.act()
        except (APIConnectionError, httpx2.TransportError, httpx2.HTTPStatusError, APIStatusError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if self.ending and not user.answering and status in (None, 503):
                self.figures.refused += 1
            else:
                self.figures.errors.append(f"user {number}: {type(error).__name__}: {error}")
        finally:
            await user.api.close()

    def hear(self, number: int, where: str, texts: Sequence[str]) -> None:
        """Look for secrets of others."""
        for text in texts:
            for found in self._any.findall(text):
                if found != self.secrets[number]:
                    self.figures.leaks.append(f"user {number} saw {found!r} in {where}")


class User:
    """One user, who tells its secret first, and asks for it and says other things afterwards."""

    def __init__(self, crowd: Crowd, http: httpx2.AsyncClient, number: int, rng: random.Random) -> None:
        self.crowd, self.http, self.number, self.rng = crowd, http, number, rng
        self.name, self.secret, self.figures = f"user-{number}", crowd.secrets[number], crowd.figures
        self.api = AsyncOpenAI(base_url=f"{crowd.url}/v1", api_key="none", max_retries=0, timeout=300)
        self.answering = False
        """An answer has begun to arrive."""
        self.dialogue: list[dict[str, str]] = []

    async def begin(self) -> None:
        """Tell the secret."""
        await self._whole([{"role": "user", "content": TELL.format(self.secret)}])

    async def act(self) -> None:
        """Do something."""
        kind = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self.answering = False
        question = [{"role": "user", "content": ASK}]
        if kind == "stream":
            await self._streamed(question)
        elif kind == "cancel":
            await self._streamed(question, cancel=True)
        elif kind == "whole":
            self._asked(await self._whole(question))
        elif kind == "dialogue":
            await self._talk()
        elif kind == "response":
            await self._respond()
        else:
            await self._look()

    async def _whole(self, messages: list[dict[str, str]]) -> str:
        began = time.monotonic()
        body = {"model": "bundled", "user": self.name, "messages": messages}
        answer = (await self.http.post("/v1/chat/completions", json=body)).raise_for_status().json()
        text: str = answer["choices"][0]["message"]["content"] or ""
        self._heard(text, answer["agentmem"], answer["usage"]["completion_tokens"], began)
        self.figures.told.append((self.name, messages[-1]["content"]))
        return text

    async def _streamed(self, messages: list[dict[str, str]], *, cancel: bool = False) -> None:
        began, tokens = time.monotonic(), 0
        pieces: list[str] = []
        extension: dict[str, Any] = {}
        create: Any = self.api.chat.completions.create
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with await create(model="bundled", messages=messages, user=self.name, **options) as stream:
            async for chunk in stream:
                if chunk.choices and (piece := chunk.choices[0].delta.content):
                    if not pieces:
                        self.answering = True
                        self.figures.first_token.append(time.monotonic() - began)
                    pieces.append(piece)
                    if cancel:
                        self.figures.cancelled += 1
                        self.crowd.hear(self.number, "a stream", pieces)
                        return
                extension = getattr(chunk, "agentmem", None) or extension
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        text = "".join(pieces)
        self._heard(text, extension, tokens, began)
        self._asked(text)

    async def _talk(self) -> None:
        """A dialogue that grows, and is sent whole each time."""
        if len(self.dialogue) > 8:
            self.dialogue = []
        said = f"I had {self.rng.choice(FOODS)} today." if self.rng.random() < 0.5 else ASK
        self.dialogue.append({"role": "user", "content": said})
        text = await self._whole(self.dialogue)
        self.dialogue.append({"role": "assistant", "content": text or "..."})
        if said == ASK:
            self._asked(text)

    async def _respond(self) -> None:
        """Two turns of the Responses API, the second one in a dialogue of which only the new item is sent."""
        began, said = time.monotonic(), f"I had {self.rng.choice(FOODS)} today."
        create: Any = self.api.responses.create
        first = await create(model="bundled", input=said, user=self.name)
        self._heard(first.output_text, first.agentmem, first.usage.output_tokens, began)
        self.figures.told.append((self.name, said))
        began = time.monotonic()
        second = await create(model="bundled", input=ASK, user=self.name, previous_response_id=first.id)
        self._heard(second.output_text, second.agentmem, second.usage.output_tokens, began)
        self._asked(second.output_text)

    async def _look(self) -> None:
        """The memory API: a search, and a page."""
        began, whose = time.monotonic(), {"x-agentmem-user": self.name}
        found = await self.http.post("/v1/memories/search", json={"query": "the dog's name"}, headers=whose)
        self.figures.search.append(time.monotonic() - began)
        page = await self.http.get("/v1/memories", params={"limit": 100}, headers=whose)
        hits = [hit["memory"]["text"] for hit in found.raise_for_status().json()["data"]]
        listed = [memory["text"] for memory in page.raise_for_status().json()["data"]]
        self.crowd.hear(self.number, "the memory API", [*hits, *listed])

    def _heard(self, text: str, extension: dict[str, Any], tokens: int, began: float) -> None:
        self.figures.reply.append(time.monotonic() - began)
        self.figures.tokens += tokens
        self.crowd.hear(self.number, "an answer", [text])
        self.crowd.hear(self.number, "the memories read", [memory["text"] for memory in extension["memories"]])

    def _asked(self, text: str) -> None:
        self.figures.asked += 1
        self.figures.right += self.secret in text

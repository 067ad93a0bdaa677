"""Turns against a filled store: timed and interleaved in one process, or one turn alone for its peak memory."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from agentmem.llm import MemoryLLM
from agentmem.records import Message, Role, Scope
from benchmarks.history import USER, open_history
from benchmarks.processes import emit, memory_mark, resident

NEW_TOKENS = 2
"""Generated tokens of a turn; the time is taken at the first."""
HEADROOM = 64
"""Positions kept free for the question and the answer when a whole history is put into the context."""

app = typer.Typer()


class Contender(StrEnum):
    """Who answers."""

    AGENTMEM = "agentmem"
    FULL = "full context"
    RAG = "text RAG"


class Turns:
    """The three ways to answer a question against one store."""

    def __init__(self, llm: MemoryLLM, history: list[str]):
        self._llm, self._history = llm, history
        self._handle = llm.store.scope(Scope(user=USER))

    def fits(self, contender: Contender) -> bool:
        """Whether the model's context holds what this contender puts into it."""
        if contender is not Contender.FULL:
            return True
        return len(self._prompt(self._history, "")) + HEADROOM <= self._llm.model.max_positions

    def turn(self, contender: Contender, question: str) -> dict[str, Any]:
        """One turn. Seconds from the question to the first piece of the answer, and what was in context and memory."""
        return self._agentmem(question) if contender is Contender.AGENTMEM else self._text(contender, question)

    def _agentmem(self, question: str) -> dict[str, Any]:
        conversation = self._llm.conversation(user=USER)
        began = _now()
        stream = conversation.stream(question, max_new_tokens=NEW_TOKENS)
        next(stream, "")
        seconds = _now() - began
        for _ in stream:
            pass
        reply = stream.reply
        self._llm.flush()
        # Every contender and question meets the same store: what this turn added is taken out again.
        conversation.memories.delete([one.id for one in conversation.memories.list(session=conversation.session)])
        return {
            "seconds": seconds,
            "prompt_tokens": reply.usage.prompt_tokens,
            "memory_tokens": reply.usage.memory_tokens,
            "rebuilt": sum(read.rebuilt for read in reply.memories),
        }

    def _text(self, contender: Contender, question: str) -> dict[str, Any]:
        model = self._llm.model
        began = _now()
        past = self._history if contender is Contender.FULL else self._recalled(question)
        prompt = self._prompt(past, question)
        generation = model.generate(prompt, max_new_tokens=NEW_TOKENS)
        next(generation, "")
        seconds = _now() - began
        generation.close()
        return {"seconds": seconds, "prompt_tokens": len(prompt), "memory_tokens": 0, "rebuilt": 0}

    def _prompt(self, past: list[str], question: str) -> list[int]:
        """Token ids of the past as the system's text, and the question."""
        said = [Message(role=Role.SYSTEM, content="\n".join(past))] if past else []
        return self._llm.model.chat.render([*said, Message(role=Role.USER, content=question)])

    def _recalled(self, question: str) -> list[str]:
        vector = self._llm.writer.embedder.embed([question])[0]
        reader = self._llm.reader
        hits = self._handle.search(question, vector, top_k=reader.top_k, threshold=reader.threshold)
        return [hit.memory.text for hit in hits]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def _opened(folder: Path, model: str, tokens: int) -> Iterator[tuple[Turns, list[str]]]:
    """The store with this history, and the plan's questions."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    with open_history(folder, model, tokens) as llm:
        yield Turns(llm, plan["texts"][: plan["chunks"][str(tokens)]]), plan["questions"]


@app.command("time")
def time_turns(
    folder: Annotated[Path, typer.Argument(help="Folder with the stores and plan.json.")],
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model.")],
    histories: Annotated[list[int], typer.Argument(help="Tokens of history, one store each.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time every contender on every store, once per question and in a new order each time. One JSON line a turn."""
    torch.set_num_threads(threads)
    rng = random.Random(0)
    with ExitStack() as stack:
        opened = {tokens: stack.enter_context(_opened(folder, model, tokens)) for tokens in histories}
        pairs = [(c, tokens) for c in Contender for tokens in histories if opened[tokens][0].fits(c)]
        for repeat in range(len(opened[histories[0]][1])):
            for contender, tokens in rng.sample(pairs, len(pairs)):
                turns, questions = opened[tokens]
                record = turns.turn(contender, questions[repeat])
                emit({"contender": contender.value, "history": tokens, "warm_up": repeat == 0, **record})


@app.command("peak")
def peak_of_one_turn(
    folder: Annotated[Path, typer.Argument(help="Folder with the stores and plan.json.")],
    model: Annotated[str, typer.Argument(help="Folder or hub id of the model.")],
    tokens: Annotated[int, typer.Argument(help="Tokens of history.")],
    contender: Annotated[Contender, typer.Argument(help="Who answers.")],
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """One turn in a process of its own, and the most memory that it held. One JSON line."""
    torch.set_num_threads(threads)
    with _opened(folder, model, tokens) as (turns, questions):
        if not turns.fits(contender):
            emit({"contender": contender.value, "history": tokens, "fits": False})
            return
        gc.collect()
        before = memory_mark()  # loading the model is not a turn
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        turns.turn(contender, questions[0])
        emit(
            {
                "contender": contender.value,
                "history": tokens,
                "fits": True,
                "rss_before_bytes": before,
                "rss_peak_bytes": resident("VmHWM"),
                "cuda_peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            }
        )


if __name__ == "__main__":
    app()

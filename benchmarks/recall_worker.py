"""One phase of the recall benchmark, in a process of its own: a session is told, or the questions are asked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from agentmem.conversation import Conversation
from agentmem.llm import DEFAULT_CODEC, MemoryLLM
from agentmem.records import Reply, Role
from benchmarks.processes import emit
from benchmarks.scripts import SESSIONS, Phase, Question, Said, contains, scripts

MAX_NEW_TOKENS = 64
"""Longer than any right answer."""


def tell(conversation: Conversation, session: tuple[Said, ...]) -> list[dict[str, Any]]:
    """Say a session's messages, and keep what is needed to judge the replies.

    A session in which a tool speaks is sent as an agent loop does it: the whole message list, every time.
    """
    agent = any(said.role is Role.TOOL for said in session)
    messages: list[dict[str, Any]] = []
    turns = []
    for said in session:
        messages.append({"role": said.role.value, "content": said.text})
        began = time.perf_counter()
        reply = conversation.chat(messages if agent else said.text, max_new_tokens=MAX_NEW_TOKENS)
        seconds = time.perf_counter() - began
        if reply.text.strip():
            messages.append({"role": Role.ASSISTANT.value, "content": reply.text})
        confirmed = None if said.value is None else contains(reply.text, said.value)
        turns.append({"seconds": seconds, "confirmed": confirmed})
    return turns


def answer(conversation: Conversation, question: Question) -> dict[str, Any]:
    """Ask one question and keep the answer and what was read."""
    began = time.perf_counter()
    reply = conversation.chat(question.text, max_new_tokens=MAX_NEW_TOKENS)
    return {
        "kind": question.kind,
        "group": question.group,
        "relation": question.relation,
        "question": question.text,
        "expected": question.answer,
        "value": question.value,
        "old": question.old,
        "answer": reply.text,
        "seconds": time.perf_counter() - began,
        "read": _reads(reply, question),
    }


def _reads(reply: Reply, question: Question) -> list[dict[str, Any]]:
    return [
        {
            "text": read.memory.text,
            "role": read.memory.role.value,
            "share": read.attention,
            "right": bool(question.value) and contains(read.memory.text, question.value),
            "rebuilt": read.rebuilt,
        }
        for read in reply.memories
    ]


def run(
    phase: Annotated[Phase, typer.Argument(help="What happens in this process.")],
    store: Annotated[Path, typer.Argument(help="The one store of all users.")],
    dialogues: Annotated[int, typer.Option(min=1)] = 300,
    seed: Annotated[int, typer.Option()] = 1,
    model: Annotated[str, typer.Option()] = "bundled",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    codec: Annotated[str, typer.Option()] = DEFAULT_CODEC,
) -> None:
    """Run one phase for all users; one JSON line each, then one about the store."""
    torch.set_num_threads(threads)
    off = phase is Phase.ASK_WITHOUT
    with MemoryLLM(model, store=store, codec=codec, top_k=0 if off else None) as llm:
        for script in scripts(dialogues, seed):
            memories = llm.conversation(user=script.user).memories.stats().memories
            if phase not in SESSIONS:
                chosen = [question for question in script.questions if not off or question.kind == "known"]
                answers = [answer(llm.conversation(user=script.user), question) for question in chosen]
                emit({"user": script.user, "memories": memories, "answers": answers})
            else:
                session = script.sessions[SESSIONS.index(phase)]
                turns = tell(llm.conversation(user=script.user, session=phase.value), session)
                emit({"user": script.user, "memories": memories, "turns": turns})
        if not llm.flush(timeout=600):
            raise TimeoutError("the KV of what was told was not on disk after 600 s")
        stats = llm.store.stats().model_dump(mode="json")
        emit({"pid": os.getpid(), "top_k": llm.reader.top_k, "fingerprint": llm.model.fingerprint, "stats": stats})


if __name__ == "__main__":
    typer.run(run)

"""What is said on the two days of the demo. Each day runs in a process of its own: they share the store's file only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agentmem.cli.opening import load_llm
from agentmem.records import Message, Record, Reply, Role

if TYPE_CHECKING:
    from agentmem.llm import MemoryLLM

USER = "ada"
TOLD, ASKED, UNKNOWN, CONTROL = "told", "asked", "unknown", "control"

VALUES = ("Biscuit", "Oslo", "K7-402")
"""The facts' values: what the second day's context must not hold."""
_DAY_ONE = (
    "Hello!",
    "My dog is called Biscuit.",
    "It is raining again.",
    "I live in Oslo.",
    "I watched a film last night.",
    "My wifi password is K7-402.",
    "Thanks a lot!",
)
_QUESTION, _ANSWER = "What is my dog called?", "Biscuit"
_NEVER_TOLD = "What is my cat called?"


class Exchange(Record):
    """One message and its reply."""

    label: str
    said: str
    context: str
    """The whole prompt as text: all that the model saw besides memory."""
    reply: Reply
    expected: str = ""

    @property
    def knew(self) -> bool:
        """Whether the reply holds what was asked for."""
        return self.expected in self.reply.text

    @property
    def told_in_context(self) -> bool:
        """Whether the context held any value that was told."""
        return any(value in self.context for value in VALUES)

    @property
    def told_in_answer(self) -> bool:
        """Whether the reply names any value that was told."""
        return any(value in self.reply.text for value in VALUES)


def day_one(store: Path, model: str | None) -> Iterator[Exchange]:
    """Tell the facts, between small talk."""
    with load_llm(store, model) as llm:
        conversation = llm.conversation(user=USER)
        for said in _DAY_ONE:
            yield Exchange(label=TOLD, said=said, context="", reply=conversation.chat(said))


def day_two(store: Path, model: str | None) -> Iterator[Exchange]:
    """Ask for a fact, for one that was never told, and for the first one again without memory."""
    with load_llm(store, model) as llm:
        yield _ask(llm, ASKED, _QUESTION, _ANSWER)
        yield _ask(llm, UNKNOWN, _NEVER_TOLD, "")
    with load_llm(store, model, top_k=0) as llm:
        yield _ask(llm, CONTROL, _QUESTION, _ANSWER, remember=False)


def _ask(llm: MemoryLLM, label: str, question: str, expected: str, *, remember: bool = True) -> Exchange:
    """Ask in a dialogue of its own, so that the context holds the question and nothing else."""
    conversation = llm.conversation(user=USER)
    reply = conversation.chat(question)
    if not remember:  # what a model says without its memory would mislead it later
        conversation.memories.delete([m.id for m in conversation.memories.list(session=conversation.session)])
    prompt = llm.model.chat.render([Message(role=Role.USER, content=question)])
    context = llm.model.tokenizer.decode(prompt)
    return Exchange(label=label, said=question, context=context, reply=reply, expected=expected)

"""The window of recent turns: what fits in the context, newest first. Everything older is memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentmem.errors import InvalidInput
from agentmem.records import Message, Role

Render = Callable[[Sequence[Message]], list[int]]
"""Messages -> token ids of the whole prompt, with the opening of the assistant's turn."""


@dataclass(frozen=True)
class Window:
    """The messages that the context holds, as token ids, and what had to be cut."""

    prompt: list[int]
    kept: int
    """How many of the newest messages are in the context, whole or cut."""
    cut_characters: int
    """Characters cut from the front of the oldest kept message, because it alone was too long."""


def fit(system: Message | None, messages: Sequence[Message], render: Render, budget: int) -> Window:
    """The longest run of newest messages whose rendering has at most ``budget`` tokens.

    The run begins with a user's message where one is near enough: an answer without its question misleads. If even
    the newest message does not fit, its front is cut away. Raises InvalidInput when the system text leaves no room.
    """
    head = [system] if system is not None else []
    best: Window | None = None
    for n in range(1, len(messages) + 1):
        rendered = render([*head, *messages[-n:]])
        if len(rendered) > budget:
            break
        if messages[-n].role is Role.USER or best is None or messages[-best.kept].role is not Role.USER:
            best = Window(rendered, n, 0)
    return best or _cut_front(head, messages[-1], render, budget)


def _cut_front(head: list[Message], message: Message, render: Render, budget: int) -> Window:
    """Keep the longest end of the message that fits, found by bisection over its characters."""
    text = message.content
    short, long = 0, len(text)
    prompt: list[int] = []
    while short < long:
        middle = (short + long + 1) // 2
        rendered = render([*head, message.model_copy(update={"content": text[-middle:]})])
        if len(rendered) <= budget:
            short, prompt = middle, rendered
        else:
            long = middle - 1
    if not prompt:
        raise InvalidInput(
            f"the context has room for {budget} tokens, which the system text alone fills; shorten it, "
            "or ask for fewer max_new_tokens"
        )
    return Window(prompt, 1, len(text) - short)

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
    """Keep the longest end of the message that fits: its length is doubled until it does not, then halved between.

    So a megabyte is not rendered twenty times for one page of it.
    """
    text = message.content

    def rendered(characters: int) -> list[int]:
        return render([*head, message.model_copy(update={"content": text[len(text) - characters :]})])

    short, long = 0, min(len(text), budget)
    prompt: list[int] = []
    while len(ids := rendered(long)) <= budget:  # the whole does not fit
        short, long, prompt = long, min(2 * long, len(text)), ids
    while long - short > 1:
        middle = (short + long) // 2
        if len(ids := rendered(middle)) <= budget:
            short, prompt = middle, ids
        else:
            long = middle
    if not prompt:
        raise InvalidInput(
            f"the context has room for {budget} tokens, which the system text and the tools alone fill; shorten them, "
            "or ask for fewer max_new_tokens"
        )
    return Window(prompt, 1, len(text) - short)

"""The window of recent turns: what fits in the context, newest first. Everything older is memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentmem.dialogue import in_common
from agentmem.errors import InvalidInput
from agentmem.records import Message, Role

Render = Callable[[Sequence[Message]], list[int]]
"""Messages -> token ids of the whole prompt, with the opening of the assistant's turn."""

LEAST_SETTLED = 32
"""Tokens in front of the newest message from which on it is worth keeping their KV."""

LONG = 16
"""Characters per token of the budget from which on a message is looked at from its end before all of it is rendered."""


@dataclass(frozen=True)
class Window:
    """The messages that the context holds, as token ids, and what had to be cut."""

    prompt: list[int]
    kept: int
    """How many of the newest messages are in the context, whole or cut."""
    cut_characters: int
    """Characters cut from the front of the oldest kept message, because it alone was too long."""
    settled: int = 0
    """Tokens in front of the newest message: they stay as they are while the window begins where it does."""


def fit(
    system: Message | None,
    turns: Sequence[tuple[Message, str]],
    render: Render,
    budget: int,
    begins: str | None = None,
) -> Window:
    """A run of newest turns whose rendering has at most ``budget`` tokens.

    It begins with the turn ``begins`` (with which the last window began, whose KV is kept) as long as it fits, so that
    one prompt goes on from the other; when it does not, it slides on by half the budget. Else it is the longest run
    that fits. It begins with a user's message where one is near enough: an answer without its question misleads. If
    even the newest message does not fit, its front is cut away. Raises InvalidInput when the system text leaves no
    room.
    """
    head = [system] if system is not None else []
    found, slides = None, False
    if (n := _run_from(turns, begins)) and _begins_well(turns, n):
        found = _rendered(head, _messages(turns, n), render, budget)
        slides = found is None
    if found is None and slides:
        found = _longest(head, turns, render, budget // 2)
    if found is None:
        found = _longest(head, turns, render, budget)
    if found is None:
        return _cut_front(head, turns[-1][0], render, budget)
    prompt, n = found
    return Window(prompt, n, 0, _settled([*head, *_messages(turns, n)], prompt, render))


def _messages(turns: Sequence[tuple[Message, str]], n: int) -> list[Message]:
    return [message for message, _ in turns[-n:]]


def _run_from(turns: Sequence[tuple[Message, str]], begins: str | None) -> int:
    """How many turns there are from this one on; 0 when it is not one of them."""
    if begins is None:
        return 0
    return next((n for n in range(1, len(turns) + 1) if turns[-n][1] == begins), 0)


def _begins_well(turns: Sequence[tuple[Message, str]], n: int) -> bool:
    users = [message.role is Role.USER for message, _ in turns[-n:]]
    return users[0] or not any(users)


def _rendered(
    head: list[Message], messages: list[Message], render: Render, budget: int
) -> tuple[list[int], int] | None:
    """The prompt and its number of messages, if it fits. Nothing is rendered of which a part is too long already."""
    for message in messages:
        if len(message.content) > LONG * budget:
            end = message.model_copy(update={"content": message.content[-LONG * budget :]})
            if len(render([*head, end])) > budget:
                return None
    prompt = render([*head, *messages])
    return (prompt, len(messages)) if len(prompt) <= budget else None


def _longest(
    head: list[Message], turns: Sequence[tuple[Message, str]], render: Render, budget: int
) -> tuple[list[int], int] | None:
    best: tuple[list[int], int] | None = None
    for n in range(1, len(turns) + 1):
        found = _rendered(head, _messages(turns, n), render, budget)
        if found is None:
            break
        if turns[-n][0].role is Role.USER or best is None or turns[-best[1]][0].role is not Role.USER:
            best = found
    return best


def _settled(shown: list[Message], prompt: list[int], render: Render) -> int:
    """Tokens of the prompt that another newest message would leave as they are."""
    newest = shown[-1]
    other = newest.model_copy(
        update={"content": "!" if newest.content.lstrip().startswith("?") else "?", "tool_calls": ()}
    )
    settled = in_common(render([*shown[:-1], other]), prompt[:-1])
    return settled if settled >= LEAST_SETTLED else 0


def _cut_front(head: list[Message], message: Message, render: Render, budget: int) -> Window:
    """Keep the longest end of the message that fits: its length is doubled until it does not, then halved between.

    So a megabyte is not rendered twenty times for one page of it.
    """
    text = message.content

    def ending(characters: int) -> list[Message]:
        return [*head, message.model_copy(update={"content": text[len(text) - characters :]})]

    short, long = 0, min(len(text), budget)
    prompt: list[int] = []
    while len(ids := render(ending(long))) <= budget:  # the whole does not fit
        short, long, prompt = long, min(2 * long, len(text)), ids
    while long - short > 1:
        middle = (short + long) // 2
        if len(ids := render(ending(middle))) <= budget:
            short, prompt = middle, ids
        else:
            long = middle
    if not prompt:
        raise InvalidInput(
            f"the context has room for {budget} tokens, which the system text and the tools alone fill; shorten them, "
            "or ask for fewer max_new_tokens"
        )
    return Window(prompt, 1, len(text) - short, _settled(ending(short), prompt, render))

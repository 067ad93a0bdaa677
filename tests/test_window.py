"""The window: the newest turns that fit, whatever the length of the history."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentmem.errors import InvalidInput
from agentmem.records import Message, Role
from agentmem.turns import with_ids
from agentmem.window import Render, Window
from agentmem.window import fit as fit_turns


def render(messages: Sequence[Message]) -> list[int]:
    """One token per character, two per message, one for the opening of the reply."""
    return [ord(c) for m in messages for c in f"<{m.content}>"] + [0]


def fit(system: Message | None, messages: Sequence[Message], render: Render, budget: int) -> Window:
    return fit_turns(system, with_ids(messages, "seed"), render, budget)


def dialogue(*texts: str) -> list[Message]:
    return [Message(role=Role.ASSISTANT if i % 2 else Role.USER, content=text) for i, text in enumerate(texts)]


def test_everything_fits() -> None:
    messages = dialogue("hello", "hi", "bye")
    window = fit(None, messages, render, 100)
    assert (window.kept, window.cut_characters, window.prompt) == (3, 0, render(messages))


def test_the_oldest_turns_leave_first_and_never_half_an_exchange() -> None:
    messages = dialogue("a" * 10, "b" * 10, "c" * 10, "d" * 10, "e" * 10)
    assert fit(None, messages, render, 60).kept == 3  # with four, it would begin with an answer
    assert fit(None, messages, render, 30).kept == 1


def test_the_system_text_is_always_there() -> None:
    system = Message(role=Role.SYSTEM, content="S" * 20)
    window = fit(system, dialogue("a" * 10, "b" * 10, "c" * 10), render, 40)
    assert window.kept == 1
    assert window.prompt[:3] == [ord("<"), ord("S"), ord("S")]


def test_a_message_longer_than_the_window_keeps_its_end() -> None:
    window = fit(None, dialogue("x" * 100 + "what is it?"), render, 20)
    assert window.kept == 1
    assert "".join(map(chr, window.prompt)).rstrip("\0").endswith("what is it?>")
    assert len(window.prompt) <= 20
    assert window.cut_characters == 111 - (20 - 3)


def test_a_system_text_that_fills_the_context_is_refused() -> None:
    with pytest.raises(InvalidInput, match="system text"):
        fit(Message(role=Role.SYSTEM, content="S" * 50), dialogue("hello"), render, 40)


@given(st.lists(st.text("abc", min_size=1, max_size=30), min_size=1, max_size=20), st.integers(8, 200))
def test_the_prompt_never_exceeds_the_budget(texts: list[str], budget: int) -> None:
    messages = dialogue(*texts)
    window = fit(None, messages, render, budget)
    assert 0 < len(window.prompt) <= budget
    assert 1 <= window.kept <= len(messages)
    if not window.cut_characters:
        assert window.prompt == render(messages[-window.kept :])


def test_a_long_run_of_tool_results_still_fills_the_window() -> None:
    messages = [
        Message(role=Role.USER, content="u" * 30),
        *(Message(role=Role.TOOL, content="t" * 8) for _ in range(9)),
    ]
    assert fit(None, messages, render, 45).kept == 4

"""The window: the newest turns that fit, whatever the length of the history."""

import random
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


def agents(n: int, seed: int = 0) -> list[Message]:
    """A task, and results of different lengths."""
    lengths = random.Random(seed)
    results = [Message(role=Role.TOOL, content="t" * lengths.randrange(5, 40)) for _ in range(n)]
    return [Message(role=Role.USER, content="u" * 30), *results]


@pytest.mark.parametrize("seed", range(4))
def test_it_begins_where_it_began_and_slides_by_half_of_it(seed: int) -> None:
    turns, budget = with_ids(agents(200, seed), "seed"), 400
    begins, moved, last = None, [], [0]
    for n in range(1, len(turns) + 1):
        window = fit_turns(None, turns[:n], render, budget, begins)
        assert len(window.prompt) <= budget
        began, begins = begins, turns[n - window.kept][1]
        if began not in (None, begins):
            moved.append(n)
            assert len(window.prompt) <= budget // 2
        else:  # one prompt goes on from the other
            assert window.prompt[: len(last) - 1] == last[:-1]
        last = window.prompt
    assert 200 // 14 <= len(moved) <= 200 // 5  # half of it holds 8 results or so


def test_a_question_behind_results_alone_begins_a_window_of_its_own() -> None:
    turns = with_ids([*agents(3)[1:], Message(role=Role.USER, content="what?")], "seed")
    assert fit_turns(None, turns[:3], render, 400).kept == 3
    assert fit_turns(None, turns, render, 400, turns[0][1]).kept == 1


def test_a_beginning_that_is_gone_is_no_beginning() -> None:
    turns = with_ids(agents(3), "seed")
    assert fit_turns(None, turns, render, 400, "another") == fit_turns(None, turns, render, 400)


def test_what_is_settled_is_all_in_front_of_the_newest_message() -> None:
    system = Message(role=Role.SYSTEM, content="S" * 20)
    messages = dialogue("hello, how are you today?", "very well!", "good")
    window = fit(system, messages, render, 400)
    assert "".join(map(chr, window.prompt[: window.settled])).endswith("<very well!><")
    assert fit(None, messages, render, 400).settled == window.settled - 22
    assert fit(None, messages[-1:], render, 400).settled == 0  # too little to keep
    cut = fit(Message(role=Role.SYSTEM, content="S" * 40), dialogue("x" * 500), render, 100)
    assert cut.settled == 43


def test_of_a_long_message_only_its_end_is_rendered() -> None:
    rendered = []

    def counted(messages: Sequence[Message]) -> list[int]:
        ids = render(messages)
        rendered.append(len(ids))
        return ids

    turns = with_ids([Message(role=Role.TOOL, content="x" * 10**6), *agents(3)], "seed")
    fit_turns(None, turns, counted, 400, turns[0][1])
    fit_turns(None, turns[:1], counted, 400)
    assert max(rendered) < 40 * 400

"""Lists that are sent whole each time: checked from where they differ, and recognised whatever was stored of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from agentmem import InvalidInput, Message, Role, Scope, session_of
from agentmem.dialogue import Dialogue, check_dialogue, in_common
from agentmem.recognising import PREVIOUS, Recogniser, Turns
from agentmem.store import NewMemory, Store
from agentmem.turns import with_ids
from agentmem.writer import chunk_id

MESSAGES = st.sampled_from(
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "Hello!"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "name": "look", "arguments": {"at": 1}}]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        Message(role=Role.USER, content="Hi"),
    ]
)


def parts(dialogue: Dialogue) -> tuple[Any, ...]:
    return dialogue.said, dialogue.heads, dialogue.given, dialogue.ends, dialogue.system


@given(st.lists(MESSAGES, max_size=8), st.lists(MESSAGES, max_size=8), st.integers(0, 8))
def test_a_list_behind_another_is_checked_as_if_it_were_the_first(one: list[Any], other: list[Any], cut: int) -> None:
    user = {"role": "user", "content": "Go on."}
    before = check_dialogue([user, *one])
    wanted = [user, *one[:cut], *other]
    assert parts(check_dialogue(wanted, before)) == parts(check_dialogue(wanted))
    assert parts(before) == parts(check_dialogue([user, *one]))  # and the one before is as it was


def test_what_both_lists_begin_with_is_not_checked_again() -> None:
    messages: list[Any] = [{"role": "user", "content": f"Number {n}."} for n in range(50)]
    before = check_dialogue(messages)
    again = check_dialogue([*copy.deepcopy(messages), {"role": "user", "content": "Another."}], before)
    assert all(one is other for one, other in zip(before.said, again.said, strict=False))
    assert len(again.said) == 51


def test_a_dict_that_its_owner_changes_is_a_new_message() -> None:
    messages: list[Any] = [{"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": {"at": [1]}}]}]
    before = check_dialogue(messages)
    messages[0]["tool_calls"][0]["arguments"]["at"].append(2)
    assert check_dialogue(messages, before).said[0].tool_calls[0].arguments == {"at": [1, 2]}


def test_a_bad_message_behind_a_known_list_is_refused_by_its_number() -> None:
    before = check_dialogue([{"role": "user", "content": "Hi"}])
    with pytest.raises(InvalidInput, match="message 1 "):
        check_dialogue([{"role": "user", "content": "Hi"}, {"role": "tool", "content": b"\x00\x01"}], before)


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_in_common(one: list[int], other: list[int]) -> None:
    n = in_common(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]


# ------------------------------------------------------------------------------------------------------ recognising


SCOPE = Scope(user="ada")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "memory.db") as store:
        yield store


def keep(store: Store, turns: Turns, given: dict[str, str] | None = None) -> None:
    """Store turns, each of one chunk; those of ``given`` say which turn they follow."""
    store.scope(SCOPE).add(
        [
            NewMemory(
                id=chunk_id(turn, 0),
                text=message.text,
                role=message.role,
                turn=turn,
                session="s",
                n_tokens=1,
                meta={PREVIOUS: given[turn]} if given and turn in given else {},
            )
            for message, turn in turns
        ]
    )


def talk(n: int) -> list[Message]:
    return [Message(role=Role.ASSISTANT if at % 2 else Role.USER, content=f"Number {at}.") for at in range(n)]


def recogniser(store: Store) -> Recogniser:
    return Recogniser(store, store.scope(SCOPE), "s")


@pytest.mark.parametrize(("stored", "sent"), [(0, 3), (1, 1), (1, 2), (40, 40), (333, 400), (1000, 1002), (1, 700)])
def test_what_is_stored_of_a_dialogue_is_found_with_few_questions(store: Store, stored: int, sent: int) -> None:
    messages = talk(sent)
    turns = with_ids(messages, "s")
    if stored:
        keep(store, turns[:stored])
    fresh, asked = recogniser(store), 0

    def count(*_: Any) -> None:
        nonlocal asked
        asked += 1

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        assert fresh.turns_of(messages) == turns
        first, asked = asked, 0
        assert fresh.turns_of(messages) == turns
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
    assert asked == 0
    assert first <= 12
    assert fresh.unstored(turns) == stored
    assert fresh.memory_ids(turns[-5:]) == {chunk_id(turn, 0) for _, turn in turns[max(0, sent - 5) : stored]}


def test_replies_with_ids_of_their_own_are_recognised_one_behind_the_other(store: Store) -> None:
    messages = talk(41)
    turns: Turns = []
    given: dict[str, str] = {}
    for at, message in enumerate(messages):
        before = turns[-1][1] if turns else "s"
        turns += with_ids([message], before)
        if at % 4 == 1:
            turns[-1] = (message, f"given-{at}")
            given[f"given-{at}"] = before
    keep(store, turns[:38], given)
    fresh = recogniser(store)
    assert fresh.turns_of(messages) == [*turns[:38], *with_ids(messages[38:], turns[37][1])]
    assert fresh.unstored(turns) == 38


def test_an_edited_message_and_all_behind_it_are_new(store: Store) -> None:
    messages = talk(20)
    turns = with_ids(messages, "s")
    keep(store, turns)
    known = recogniser(store)
    assert known.unstored(known.turns_of(messages)) == 20
    edited = [*messages[:7], Message(role=Role.USER, content="Other words."), *messages[8:]]
    again = known.turns_of(edited)
    assert [turn for _, turn in again[:7]] == [turn for _, turn in turns[:7]]
    assert not {turn for _, turn in again[7:]} & {turn for _, turn in turns}
    assert known.unstored(again) == 7
    assert known.unstored(known.turns_of(messages)) == 20  # and back


@pytest.mark.parametrize("cut", [1, 2, 7, 18])
def test_a_list_whose_front_was_cut_off_goes_on_where_it_was(store: Store, cut: int) -> None:
    messages = talk(23)
    turns = with_ids(messages, "s")
    keep(store, turns[:20])
    fresh = recogniser(store)
    assert fresh.turns_of(messages[cut:]) == turns[cut:]
    assert fresh.unstored(turns[cut:]) == 20 - cut
    if cut < 18:
        assert fresh.turns_of(messages[cut + 1 :]) == turns[cut + 1 :]  # a window that slides


def test_of_turns_with_the_same_words_it_is_the_one_with_the_same_words_behind_it(store: Store) -> None:
    again, yes = Message(role=Role.USER, content="Again."), Message(role=Role.ASSISTANT, content="Yes.")
    numbers = [Message(role=Role.ASSISTANT, content=f"Number {n}.") for n in range(6)]
    messages = [*talk(2), *(m for number in numbers for m in (again, number))]
    turns = with_ids(messages, "s")
    keep(store, turns)
    assert recogniser(store).turns_of(messages[6:]) == turns[6:]
    new = [again, numbers[4], yes]
    assert recogniser(store).turns_of(new) == [*turns[10:12], *with_ids([yes], turns[11][1])]


def test_a_cut_list_is_found_by_a_reply_with_an_id_of_its_own(store: Store) -> None:
    messages = talk(6)
    turns = with_ids(messages[:3], "s")
    turns += [(messages[3], "given"), *with_ids(messages[4:], "given")]
    keep(store, turns, {"given": turns[2][1]})
    assert recogniser(store).turns_of(messages[2:]) == turns[2:]


def test_one_message_that_was_said_before_is_not_the_middle_of_a_dialogue(store: Store) -> None:
    messages = talk(6)
    keep(store, with_ids(messages, "s"))
    new = [messages[2], Message(role=Role.ASSISTANT, content="Another answer.")]
    assert recogniser(store).turns_of(new) == with_ids(new, "s")
    assert recogniser(store).turns_of(messages[2:3]) == with_ids(messages[2:3], "s")
    elsewhere = Recogniser(store, store.scope(SCOPE), "another session")
    assert elsewhere.turns_of(messages[2:]) == with_ids(messages[2:], "another session")


def test_what_was_forgotten_is_known_to_have_been_there(store: Store) -> None:
    messages = talk(10)
    turns = with_ids(messages, "s")
    keep(store, turns)
    store.scope(SCOPE).delete([chunk_id(turn, 0) for _, turn in turns[4:]])
    fresh = recogniser(store)
    assert fresh.unstored(fresh.turns_of([*messages, *talk(1)])) == 10
    assert fresh.memory_ids(turns) == {chunk_id(turn, 0) for _, turn in turns[:4]}


def test_a_dialogue_has_one_name_however_it_is_sent_and_grows() -> None:
    first = {"role": "user", "content": "Hello!"}
    name = session_of([first])
    assert (
        session_of([{"role": "system", "content": "Be brief."}, first, {"role": "assistant", "content": "Hi."}]) == name
    )
    assert session_of([Message(role=Role.USER, content="Hello!")]) == name
    assert session_of([{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]) == name
    assert session_of([{"role": "user", "content": "Hello?"}]) != name
    assert session_of([{"role": "assistant", "content": "Hello!"}]) != name
    assert session_of([]) == session_of([{"role": "system", "content": "Be brief."}])
    with pytest.raises(InvalidInput, match="message 0"):
        session_of([{"role": "nobody", "content": "Hello!"}])

"""Isolation: whatever is done in one scope, no other one sees, finds, counts, changes or loses anything."""

from __future__ import annotations

import pytest
import servers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from pydantic import ValidationError
from store_world import ADA, BOB, EMBEDDER, attach, embed, new

from agentmem.errors import InvalidInput, NotFound
from agentmem.records import Scope
from agentmem.store import Store

# Look-alikes, prefixes, wildcards, separators: all different.
SPACES = [
    ("ada", ""),
    ("Ada", ""),
    ("ada", "a"),
    ("ada/a", ""),
    ("ada:", "a"),
    ("ad", "aa"),
    ("ada%", ""),
    ("ad_", ""),
    ("", "ada"),
    ("", ""),
    ("é", ""),
    ("e\u0301", ""),
]
SESSIONS = [None, "s", "S", "s/1", ""]
WORDS = ["apple", "pear", "plum"]

SCOPES = st.builds(
    lambda space, session: Scope(user=space[0], agent=space[1], session=session),
    st.sampled_from(SPACES),
    st.sampled_from(SESSIONS),
)


class Isolation(RuleBasedStateMachine):
    """Random work in random scopes, next to a model of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open()
        self.model: dict[tuple[str, str], dict[str, tuple[str | None, str]]] = {}
        self.number = 0

    def open(self) -> Store:
        return Store.open(":memory:", embedder=EMBEDDER)

    def teardown(self) -> None:
        assert self.store.verify().ok
        self.store.close()

    def visible(self, scope: Scope) -> dict[str, str]:
        space = self.model.get((scope.user, scope.agent), {})
        return {id_: text for id_, (session, text) in space.items() if scope.session in (None, session)}

    @rule(scope=SCOPES, word=st.sampled_from(WORDS), id_=st.sampled_from(["1", "2", "3", "4"]))
    def add(self, scope: Scope, word: str, id_: str) -> None:
        self.number += 1
        text = f"{word} {self.number}"
        space = self.model.setdefault((scope.user, scope.agent), {})
        memory = new(text, f"turn {self.number}", id=id_)
        if id_ in space:
            with pytest.raises(InvalidInput):
                self.store.scope(scope).add([memory])
        else:
            self.store.scope(scope).add([memory])
            space[id_] = (scope.session, text)

    @rule(
        scope=SCOPES, id_=st.sampled_from(["1", "2", "3", "4"]), how=st.sampled_from(["delete", "pin", "update", "kv"])
    )
    def touch(self, scope: Scope, id_: str, how: str) -> None:
        handle, seen = self.store.scope(scope), self.visible(scope)
        space = self.model.get((scope.user, scope.agent), {})
        if id_ not in seen:
            for call in (handle.get, handle.delete, handle.pin, lambda i: handle.update(i, text="stolen", n_tokens=1)):
                with pytest.raises(NotFound):
                    call(id_)
            assert handle.load_kv([id_], fingerprint="model-a").missing == (id_,)
            handle.record_uses([(id_, 1.0)], turn="foreign")
            return
        if how == "delete":
            handle.delete(id_)
            del space[id_]
        elif how == "update":
            self.number += 1
            text = f"{WORDS[self.number % 3]} {self.number}"
            handle.update(id_, text=text, n_tokens=2, embedding=embed(text))
            space[id_] = (space[id_][0], text)
        elif how == "kv":
            assert attach(handle, handle.get(id_), repr(scope).encode())
        else:
            handle.pin(id_, True)

    @rule(scope=SCOPES)
    def forget(self, scope: Scope) -> None:
        seen = self.visible(scope)
        assert set(self.store.scope(scope).forget_scope().ids) == set(seen)
        for id_ in seen:
            del self.model[scope.user, scope.agent][id_]

    @rule(scope=SCOPES, word=st.sampled_from(WORDS))
    def search(self, scope: Scope, word: str) -> None:
        handle, seen = self.store.scope(scope), self.visible(scope)
        hits = handle.search(word, embed(word), threshold=None, top_k=99)
        assert {hit.memory.id: hit.memory.text for hit in hits} == seen
        for hit in handle.search(word, threshold=None, top_k=99):
            assert seen[hit.memory.id] == hit.memory.text

    @invariant()
    def every_space_lists_what_it_should(self) -> None:
        for space in SPACES:
            scope = Scope(user=space[0], agent=space[1])
            handle, seen = self.store.scope(scope), self.visible(scope)
            assert {memory.id: memory.text for memory in handle.list(limit=99)} == seen
            for memory in handle.list(limit=99):
                assert (memory.scope.user, memory.scope.agent) == space
                assert memory.uses == 0  # a use reported from a scope that cannot see it counts nowhere


TestIsolation = Isolation.TestCase
TestIsolation.settings = settings(max_examples=15, stateful_step_count=25)


class IsolationOnPostgres(Isolation):
    def open(self) -> Store:
        return Store.open(servers.empty_database(), embedder=EMBEDDER)


TestIsolationOnPostgres = IsolationOnPostgres.TestCase
TestIsolationOnPostgres.settings = settings(max_examples=3, stateful_step_count=12)


def test_ids_and_turns_of_two_scopes_may_be_the_same(store: Store) -> None:
    for scope in (ADA, BOB):
        store.scope(scope).add([new(f"mine, says {scope.user}", "turn", id="id")])
    store.scope(ADA).delete("id")
    assert store.scope(BOB).get("id").text == "mine, says bob"
    assert [event.action for event in store.scope(BOB).history("id")] == ["added"]


def test_a_session_handle_writes_into_its_session_only(store: Store) -> None:
    monday = store.scope(Scope(user="ada", session="monday"))
    (memory,) = monday.add([new("hello")])
    assert memory.scope.session == "monday"
    with pytest.raises(InvalidInput, match="narrowed to session 'monday'"):
        monday.add([new("elsewhere", session="tuesday")])
    with pytest.raises(InvalidInput, match="taken by another memory"):
        store.scope(Scope(user="ada", session="tuesday")).add([new("hello", id=memory.id)])
    with pytest.raises(NotFound):
        store.scope(Scope(user="ada", session="tuesday")).history(memory.id)


def test_a_handle_needs_a_scope(store: Store) -> None:
    for wrong in ("ada", None, {"user": "ada"}):
        with pytest.raises(InvalidInput, match="expected a Scope"):
            store.scope(wrong)  # type: ignore[arg-type]
    for user in ("a\u200bda", " ada", "ada\n", "x" * 300, "\ud800"):
        with pytest.raises(ValidationError):
            Scope(user=user)

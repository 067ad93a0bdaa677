"""Forgetting: what remains in the files is looked for byte by byte, and must have been there before."""

from __future__ import annotations

import random
import string

import psycopg
import pytest
import servers
import sqlalchemy as sa
from servers import found_on_disk
from store_world import ADA, BOB, EMBEDDER, Where, attach, embed, new

from agentmem.errors import NotFound, StoreBusy
from agentmem.records import Forgotten, Memory, Scope
from agentmem.store import ScopedMemories, Store

SECRET = "Qvortak hides the zwybrunel under jyxomplar"
TERMS = (b"vortak", b"wybrunel", b"yxomplar")  # without first letters: FTS5 shares prefixes between terms
DICE = random.Random(0)
WORDS = ["".join(DICE.choices(string.ascii_lowercase, k=7)) for _ in range(500)]


def noise(count: int, session: str | None = "s") -> list[object]:
    return [new(" ".join(DICE.choices(WORDS, k=30)), session=session) for _ in range(count)]


@pytest.fixture
def secret(ada: ScopedMemories) -> Memory:
    """A memory amid others of the same session, whose keys quote it, with KV inline and in a file."""
    ada.add(noise(60))  # type: ignore[arg-type]
    (memory,) = ada.add([new(SECRET, id="private-id", session="s", tags=("tagvqx",), meta={"k": "metavqx"})])
    ada.add(noise(60))  # type: ignore[arg-type]
    attach(ada, memory, b"INLINEKV" * 1000, "model-a")
    attach(ada, memory, b"FILEDKV!" * 100_000, "model-b")
    ada.record_uses([(memory.id, 0.5)], turn="private-turn")
    assert ada.get(memory.id).uses == 1
    return memory


def needles(memory: Memory) -> list[bytes]:
    vector = embed(SECRET).tobytes()
    kv = [b"INLINEKV" * 20, b"FILEDKV!" * 20]
    return [SECRET.encode(), *TERMS, vector[:16], vector[-16:], *kv, b"tagvqx", b"metavqx", memory.turn.encode()]


def forgotten_at_last(store: Store, forgotten: Forgotten) -> None:
    """A file is rid of it at once, PostgreSQL when its tables are written anew."""
    in_file = store.database.path is not None
    assert forgotten.complete == in_file
    assert in_file or store.vacuum()


def test_delete_leaves_nothing_in_any_file(ada: ScopedMemories, store: Store, where: Where, secret: Memory) -> None:
    store.database.checkpoint()
    before = {needle for _, needle in found_on_disk(where, *needles(secret))}
    assert before == set(needles(secret))  # else the search below proves nothing
    forgotten_at_last(store, ada.delete(secret.id))
    assert found_on_disk(where, *needles(secret)) == []
    assert store.files is None or list(store.files.walk()) == []
    assert ada.search("qvortak zwybrunel", embed(SECRET), threshold=None)[0].memory.text != SECRET
    assert ada.search("qvortak") == []  # the neighbours' keys do not quote it any more either
    with pytest.raises(NotFound):
        ada.get(secret.id)
    assert [(event.action, event.reason) for event in ada.history(secret.id)][-1] == ("deleted", "delete")
    assert store.verify().ok


def test_update_leaves_nothing_of_the_old_text(ada: ScopedMemories, store: Store, where: Where, secret: Memory) -> None:
    ada.update(secret.id, text="Nothing to see here.", n_tokens=5, tags=(), meta={})
    gone = [needle for needle in needles(secret) if needle != secret.turn.encode()]
    assert store.vacuum()
    assert found_on_disk(where, *gone) == []
    assert ada.search("qvortak") == []
    assert store.verify().ok


def test_prune_and_eviction_leave_nothing_once_the_store_is_closed(
    ada: ScopedMemories, store: Store, where: Where, secret: Memory
) -> None:
    assert len(ada.prune(max_memories=0).pruned) == 121
    assert store.database.path is not None or store.vacuum()
    store.close()
    assert found_on_disk(where, *needles(secret)) == []


def test_forget_scope_leaves_not_even_its_name(store: Store, where: Where) -> None:
    scope = Scope(user="uservqx", agent="agentvqx")
    handle = store.scope(scope)
    (memory,) = handle.add([new(SECRET, session="sessionvqx", id="idvqx")])
    store.scope(BOB).add([new("unrelated")])
    attach(handle, memory, b"FILEDKV!" * 100_000)
    names = [b"uservqx", b"agentvqx", b"sessionvqx", b"idvqx", *TERMS, b"FILEDKV!" * 20]
    store.database.checkpoint()
    assert {needle for _, needle in found_on_disk(where, *names)} == set(names)
    forgotten = handle.forget_scope()
    assert forgotten.ids == ("idvqx",)
    forgotten_at_last(store, forgotten)
    assert found_on_disk(where, *names) == []
    assert store.spaces() == [BOB]
    assert handle.list() == []
    assert handle.forget_scope().ids == ()
    handle.add([new("a new beginning")])
    assert handle.count() == 1


@pytest.mark.postgresql
def test_statistics_of_the_server_have_no_samples_of_what_people_said(
    ada: ScopedMemories, where: str, secret: Memory
) -> None:
    with psycopg.connect(where, autocommit=True) as keeper:
        keeper.execute("ANALYZE")
    with psycopg.connect(servers.admin_address("memories")) as admin, admin.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_statistic WHERE starelid = 'memory'::regclass")
        assert cursor.fetchone() >= (4,)  # of the numbers
        with cursor.copy("COPY pg_statistic TO STDOUT") as copy:
            samples = b"".join(copy)
    said = [*needles(secret), *(word.encode() for word in WORDS)]
    assert [needle for needle in said if needle in samples or needle.hex().encode() in samples] == []


@pytest.mark.postgresql
def test_an_older_reader_is_waited_for_and_then_said_so(where: str) -> None:
    with Store.open(where, embedder=EMBEDDER, lock_timeout=0.2) as store:
        ada = store.scope(ADA)
        (memory,) = ada.add([new(SECRET)])
        with store.database.read() as reader:
            assert reader.scalar(sa.text("SELECT count(*) FROM kv_model")) == 0
            ada.delete(memory.id)
            with pytest.raises(StoreBusy, match="older transaction may still read"):
                store.vacuum()
        assert store.vacuum()
        assert found_on_disk(where, *TERMS) == []


def test_forget_scope_of_a_session_keeps_the_others(store: Store) -> None:
    whole = store.scope(ADA)
    whole.add([new("monday talk", session="monday", id="m"), new("tuesday talk", session="tuesday")])
    monday = store.scope(Scope(user="ada", session="monday"))
    assert monday.forget_scope().ids == ("m",)
    assert [memory.text for memory in whole.list()] == ["tuesday talk"]
    with pytest.raises(NotFound):
        whole.history("m")
    assert store.verify().ok


def test_a_deleted_chunk_leaves_the_keys_of_its_turn_and_neighbours(ada: ScopedMemories) -> None:
    ada.add([new("first turn", "t1", session="s")])
    _, second = ada.add(
        [
            new("the turn begins", "t2", session="s", chunk_no=0),
            new("and mentions a walrus", "t2", session="s", chunk_no=1),
        ]
    )
    ada.add([new("third turn", "t3", session="s")])
    assert {hit.memory.turn for hit in ada.search("walrus", threshold=None)} == {"t1", "t2", "t3"}
    ada.delete(second.id)
    assert ada.search("walrus", threshold=None) == []
    assert {hit.memory.turn for hit in ada.search("begins", threshold=None)} == {"t1", "t2", "t3"}


def test_when_turns_between_go_the_remaining_ones_become_neighbours(ada: ScopedMemories, store: Store) -> None:
    memories = ada.add([new(f"word{letter}", f"t{letter}", session="s") for letter in "abcd"])
    ada.delete([memories[1].id, memories[2].id])
    assert {hit.memory.text for hit in ada.search("worda", threshold=None)} == {"worda", "wordd"}
    assert store.verify().ok


@pytest.mark.payloads
def test_delete_takes_payloads_that_a_crash_left_without_a_row(ada: ScopedMemories, store: Store) -> None:
    (memory,) = ada.add([new("hello")])
    attach(ada, memory, b"k" * 300_000)
    assert store.payloads is not None
    (uri,) = store.payloads.walk()
    other = uri.replace("/1.", "/999.")
    store.payloads.write([(uri.replace(".kv", ".kv.tmp"), b"half of the KV"), (other, b"of another memory")])
    ada.delete(memory.id)
    assert list(store.payloads.walk()) == [other]


@pytest.mark.payloads
def test_an_unlink_that_a_crash_prevented_is_made_good_at_open(ada: ScopedMemories, store: Store, where: Where) -> None:
    (memory,) = ada.add([new("hello")])
    attach(ada, memory, b"k" * 300_000)
    store.drain_trash = lambda: False  # type: ignore[method-assign]  # dies here
    attach(ada, memory, b"l" * 300_000)
    assert store.payloads is not None
    assert len(list(store.payloads.walk())) == 2
    store.close()
    with Store.open(where, embedder=EMBEDDER) as again:
        assert again.payloads is not None
        assert len(list(again.payloads.walk())) == 1
        assert again.scope(ADA).load_kv([memory.id], fingerprint="model-a").payloads[memory.id].data[:1] == b"l"

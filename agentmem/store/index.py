"""The derived search indexes of the SQLite engine: one vec0 table per embedder and one FTS5 table.

Both are written in code, in the transaction that changes the truth (no triggers: a table rebuild would lose them), and
can be dropped and refilled at any time.

``fts_memory`` keeps its own copy of the key. A contentless table would be half the size, but its deletes leave the
terms in the file even with ``secure-delete``, and forgetting must be complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from agentmem.store.schema import Embedding, EmbeddingModel, MemoryRow, Turn

CONTEXT_CHARS = 1000
"""Of each neighbouring turn, how much of its near end goes into a chunk's key."""

# A turn without a session stands alone: NULL equals nothing, and notes added one after the other are no dialogue.
# As text, because these run for every chunk that is written, and building an expression costs more than running it.
_AROUND = """
SELECT space_id,
  (SELECT id FROM turn AS other WHERE other.space_id = turn.space_id AND other.session_id = turn.session_id
   AND (other.created_us, other.id) < (turn.created_us, turn.id) ORDER BY created_us DESC, id DESC LIMIT 1),
  (SELECT id FROM turn AS other WHERE other.space_id = turn.space_id AND other.session_id = turn.session_id
   AND (other.created_us, other.id) > (turn.created_us, turn.id) ORDER BY created_us, id LIMIT 1)
FROM turn WHERE id = ?
"""
_CHUNKS = "SELECT id, text, role, created_us FROM memory WHERE turn_id = ? ORDER BY chunk_no"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SLICE = 500  # ids per statement


def is_derived(table: str) -> bool:
    """True for the index tables and the shadow tables that they bring along."""
    return table.startswith(("fts_memory", "vec_memory_"))


def vec_table(model_id: int) -> str:
    """Name of the vec0 table of one embedder."""
    return f"vec_memory_{int(model_id)}"


def create_text_index(connection: sa.Connection) -> None:
    """Create the empty FTS5 table."""
    connection.exec_driver_sql(
        "CREATE VIRTUAL TABLE IF NOT EXISTS fts_memory USING fts5("
        "text, context, sp, tokenize='porter unicode61 remove_diacritics 2')"
    )
    connection.exec_driver_sql("INSERT INTO fts_memory(fts_memory, rank) VALUES('secure-delete', 1)")


def create_vector_index(connection: sa.Connection, model_id: int, dim: int) -> None:
    """Create the empty vec0 table of an embedder."""
    name = vec_table(model_id)
    connection.exec_driver_sql(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {name} USING vec0("
        f"memory_id integer primary key, space_id integer partition key, e float[{int(dim)}], chunk_size=64)"
    )
    # vec0 finds the chunks of a partition by scanning this shadow table, which it does not index.
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name}_part ON {name}_chunks(partition00)")


def index_vectors(connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Put (memory id, space id, vector) into the vec0 table; replaces what is there."""
    if not rows:
        return
    name = vec_table(model_id)
    connection.exec_driver_sql(f"DELETE FROM {name} WHERE memory_id = ?", [(row[0],) for row in rows])  # noqa: S608
    connection.exec_driver_sql(f"INSERT INTO {name}(memory_id, space_id, e) VALUES (?, ?, ?)", list(rows))  # noqa: S608


def unindex(connection: sa.Connection, memory_ids: Sequence[int]) -> None:
    """Take memories out of every index, those of other embedders included."""
    if not memory_ids:
        return
    keys: list[tuple[Any, ...]] = [(memory_id,) for memory_id in memory_ids]
    connection.exec_driver_sql("DELETE FROM fts_memory WHERE rowid = ?", keys)
    for model_id in connection.scalars(sa.select(EmbeddingModel.id)).all():
        connection.exec_driver_sql(f"DELETE FROM {vec_table(model_id)} WHERE memory_id = ?", keys)  # noqa: S608


def neighbours(connection: sa.Connection, turn_ids: Iterable[int]) -> set[int]:
    """The turns directly before and after each of these in its session."""
    found: set[int] = set()
    for turn_id in turn_ids:
        row = connection.exec_driver_sql(_AROUND, (turn_id,)).one()
        found.update(turn for turn in (row[1], row[2]) if turn is not None)
    return found


def text_keys(connection: sa.Connection, turn_ids: Iterable[int]) -> list[tuple[int, str, str, str]]:
    """What the text index should hold for the chunks of these turns: (memory id, text, context, space token)."""
    keys: list[tuple[int, str, str, str]] = []
    for turn_id in sorted(set(turn_ids)):
        turn = connection.exec_driver_sql(_AROUND, (turn_id,)).one_or_none()
        if turn is None:
            continue
        space_id, before, after = turn
        around = f"{_turn_text(connection, before)[-CONTEXT_CHARS:]}\n{_turn_text(connection, after)[:CONTEXT_CHARS]}"
        for memory_id, text, role, created_us in connection.exec_driver_sql(_CHUNKS, (turn_id,)):
            keys.append((memory_id, text, f"{role} {_date(created_us)}\n{around}", f"sp{space_id}"))
    return keys


def index_texts(connection: sa.Connection, turn_ids: Iterable[int]) -> None:
    """(Re)write the text keys of every chunk of these turns. Turns that are gone are skipped."""
    keys = text_keys(connection, turn_ids)
    if keys:
        connection.exec_driver_sql("DELETE FROM fts_memory WHERE rowid = ?", [(key[0],) for key in keys])
        connection.exec_driver_sql("INSERT INTO fts_memory(rowid, text, context, sp) VALUES (?, ?, ?, ?)", keys)


def rebuild(connection: sa.Connection) -> None:
    """Drop every index and fill it again from the tables."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS fts_memory")
    create_text_index(connection)
    turns = connection.scalars(sa.select(Turn.id).order_by(Turn.id)).all()
    for start in range(0, len(turns), _SLICE):
        index_texts(connection, turns[start : start + _SLICE])
    for model_id, dim in connection.execute(sa.select(EmbeddingModel.id, EmbeddingModel.dim)).all():
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {vec_table(model_id)}")
        create_vector_index(connection, model_id, dim)
        vectors = (
            sa.select(Embedding.memory_id, MemoryRow.space_id, Embedding.vec)
            .join(MemoryRow, MemoryRow.id == Embedding.memory_id)
            .where(Embedding.model_id == model_id)
            .order_by(MemoryRow.space_id, MemoryRow.id)
        )
        for batch in connection.execute(vectors).partitions(_SLICE):
            index_vectors(connection, model_id, [(row[0], row[1], row[2]) for row in batch])


def _turn_text(connection: sa.Connection, turn_id: int | None) -> str:
    if turn_id is None:
        return ""
    return " ".join(row[1] for row in connection.exec_driver_sql(_CHUNKS, (turn_id,)))


def _date(created_us: int) -> str:
    """A date in words, so that "in May 2023" finds it."""
    moment = _EPOCH + timedelta(microseconds=created_us)
    return f"{moment.day} {moment:%B %Y}"

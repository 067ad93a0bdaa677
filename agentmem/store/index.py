"""The derived search indexes: what they hold, and when it is written. How, each engine knows (``dialects.py``).

They are written in code, in the transaction that changes the truth (no triggers: a table rebuild would lose them), and
can be dropped and refilled at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from agentmem.store.dialects import TextKey, search_engine
from agentmem.store.schema import Embedding, EmbeddingModel, MemoryRow, Turn

CONTEXT_CHARS = 1000
"""Of each neighbouring turn, how much of its near end goes into a chunk's key."""

# A turn without a session stands alone: NULL equals nothing, and notes added one after the other are no dialogue.
# As text, because these run for every write, and building an expression costs more than running it.
_TURNS: sa.BindParameter[Any] = sa.bindparam("turns", expanding=True)
_AROUND = sa.text("""
SELECT id, space_id,
  (SELECT id FROM turn AS other WHERE other.space_id = turn.space_id AND other.session_id = turn.session_id
   AND (other.created_us, other.id) < (turn.created_us, turn.id) ORDER BY created_us DESC, id DESC LIMIT 1) AS before,
  (SELECT id FROM turn AS other WHERE other.space_id = turn.space_id AND other.session_id = turn.session_id
   AND (other.created_us, other.id) > (turn.created_us, turn.id) ORDER BY created_us, id LIMIT 1) AS after
FROM turn WHERE id IN :turns ORDER BY id
""").bindparams(_TURNS)
_CHUNKS = sa.text(
    "SELECT id, text, role, created_us, turn_id FROM memory WHERE turn_id IN :turns ORDER BY turn_id, chunk_no"
).bindparams(_TURNS)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SLICE = 500  # ids per statement


def is_derived(table: str) -> bool:
    """True for the index tables and the shadow tables that they bring along."""
    return table.startswith(("fts_memory", "vec_memory_"))


def create_vector_index(connection: sa.Connection, model_id: int, dim: int) -> None:
    """Create the empty index of an embedder."""
    search_engine(connection).create_vector_index(connection, model_id, dim)


def index_vectors(connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Put (memory key, space key, vector) into an embedder's index; replaces what is there."""
    if rows:
        search_engine(connection).put_vectors(connection, model_id, rows)


def unindex(connection: sa.Connection, memory_ids: Sequence[int]) -> None:
    """Take memories out of every index, those of other embedders included."""
    if not memory_ids:
        return
    engine = search_engine(connection)
    engine.remove_texts(connection, memory_ids)
    for model_id in connection.scalars(sa.select(EmbeddingModel.id)).all():
        engine.remove_vectors(connection, model_id, memory_ids)


def neighbours(connection: sa.Connection, turn_ids: Iterable[int]) -> set[int]:
    """The turns directly before and after each of these in its session."""
    return {turn for row in _around(connection, turn_ids) for turn in (row.before, row.after) if turn is not None}


def text_keys(connection: sa.Connection, turn_ids: Iterable[int]) -> Iterator[TextKey]:
    """What the text index should hold for the chunks of these turns. Turns that are gone are skipped."""
    wanted = sorted(set(turn_ids))
    for start in range(0, len(wanted), _SLICE):
        rows = _around(connection, wanted[start : start + _SLICE])
        chunks = _chunks(connection, {turn for row in rows for turn in (row.id, row.before, row.after)} - {None})
        texts = {turn: " ".join(chunk.text for chunk in some) for turn, some in chunks.items()}
        for row in rows:
            before, after = texts.get(row.before, ""), texts.get(row.after, "")
            around = f"{before[-CONTEXT_CHARS:]}\n{after[:CONTEXT_CHARS]}"
            for chunk in chunks.get(row.id, ()):
                context = f"{chunk.role} {_date(chunk.created_us)}\n{around}"
                yield chunk.id, row.space_id, chunk.text, context


def _around(connection: sa.Connection, turn_ids: Iterable[int]) -> list[sa.Row[Any]]:
    """Turns with the keys of their neighbours."""
    wanted = sorted(set(turn_ids))
    return [
        row
        for start in range(0, len(wanted), _SLICE)
        for row in connection.execute(_AROUND, {"turns": wanted[start : start + _SLICE]})
    ]


def _chunks(connection: sa.Connection, turn_ids: set[int]) -> dict[int, list[sa.Row[Any]]]:
    """Chunks in order, by turn."""
    wanted = sorted(turn_ids)
    found: dict[int, list[sa.Row[Any]]] = {}
    for start in range(0, len(wanted), _SLICE):
        for row in connection.execute(_CHUNKS, {"turns": wanted[start : start + _SLICE]}):
            found.setdefault(row.turn_id, []).append(row)
    return found


def index_texts(connection: sa.Connection, turn_ids: Iterable[int]) -> None:
    """(Re)write the text keys of every chunk of these turns. Turns that are gone are skipped."""
    keys = list(text_keys(connection, turn_ids))
    if keys:
        search_engine(connection).put_texts(connection, keys)


def rebuild_texts(connection: sa.Connection) -> None:
    """Drop the text index and fill it again from the tables."""
    engine = search_engine(connection)
    engine.drop_text_index(connection)
    engine.create_text_index(connection)
    turns = connection.scalars(sa.select(Turn.id).order_by(Turn.id)).all()
    for start in range(0, len(turns), _SLICE):
        index_texts(connection, turns[start : start + _SLICE])


def rebuild(connection: sa.Connection) -> None:
    """Drop every index and fill it again from the tables."""
    engine = search_engine(connection)
    rebuild_texts(connection)
    for model_id, dim in connection.execute(sa.select(EmbeddingModel.id, EmbeddingModel.dim)).all():
        engine.drop_vector_index(connection, model_id)
        engine.create_vector_index(connection, model_id, dim)
        vectors = (
            sa.select(Embedding.memory_id, MemoryRow.space_id, Embedding.vec)
            .join(MemoryRow, MemoryRow.id == Embedding.memory_id)
            .where(Embedding.model_id == model_id)
            .order_by(MemoryRow.space_id, MemoryRow.id)
        )
        for batch in connection.execute(vectors).partitions(_SLICE):
            index_vectors(connection, model_id, [(row[0], row[1], row[2]) for row in batch])


def _date(created_us: int) -> str:
    """A date in words, so that "in May 2023" finds it."""
    moment = _EPOCH + timedelta(microseconds=created_us)
    return f"{moment.day} {moment:%B %Y}"

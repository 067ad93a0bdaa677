"""The search indexes of SQLite: one vec0 table per embedder, a few FTS5 tables. Fulfils ``dialects.SearchEngine``.

BM25 counts in how many rows of its table each word stands, whoever they belong to: with one table for all, a space of a
thousand memories pays for a million others. So the spaces are spread over ``SHARDS`` tables; each is created with its
first space. A space that has no table is a damaged index, never an empty one.

The tables keep their own copy of the key. A contentless table would be half the size, but its deletes leave the terms
in the file even with ``secure-delete``, and forgetting must be complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Set
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa

from agentmem.store import exact, sketch, vec0_chunks
from agentmem.store.schema import MemoryRow, Space, Tally

T = TypeVar("T", bound=tuple[Any, ...])

_SLICE = 500  # ids per statement
# Built once: building an expression costs more than running it.
_TOTALS = sa.select(Tally.memories, Tally.erasures).where(Tally.space_id == sa.bindparam("space"))

KNN_MAX = 4096
"""Most neighbours that vec0 returns."""
CONTEXT_WEIGHT = 0.5
"""BM25 weight of the neighbouring turns relative to the chunk itself.

Turn recall@10 of the lexical leg on five LoCoMo dialogues (786 questions): 0.640 at 0, 0.687 at 0.15, 0.709 at 0.3,
0.722 at 0.5, 0.700 at 1."""


SHARDS = 64
"""FTS5 tables. More would be read by every process that opens the file, and written at a page each."""


LEAST_HELD = 1000
"""Vectors of a space from which on they are held in RAM; vec0 compares fewer in a millisecond."""


def vec_table(model_id: int) -> str:
    """Name of the vec0 table of one embedder."""
    return f"vec_memory_{int(model_id)}"


def text_table(space_id: int) -> str:
    """Name of the FTS5 table that holds a space."""
    return f"fts_memory_{space_id % SHARDS}"


def text_tables(connection: sa.Connection) -> list[str]:
    """The FTS5 tables that there are."""
    found = (
        "SELECT name FROM sqlite_master WHERE name GLOB 'fts_memory_*' AND sql LIKE 'CREATE VIRTUAL %' ORDER BY name"
    )
    return [row[0] for row in connection.exec_driver_sql(found)]


def add_space(connection: sa.Connection, space_id: int) -> None:
    """Create the FTS5 table of a space, unless it is there."""
    table = text_table(space_id)
    if table in text_tables(connection):
        return
    connection.exec_driver_sql(
        f"CREATE VIRTUAL TABLE {table} USING fts5(text, context, sp, tokenize='porter unicode61 remove_diacritics 2')"
    )
    connection.exec_driver_sql(f"INSERT INTO {table}({table}, rank) VALUES('secure-delete', 1)")


def create_text_index(connection: sa.Connection) -> None:
    """Create the empty FTS5 tables of the spaces that there are."""
    for space_id in connection.scalars(sa.select(Space.id)).all():
        add_space(connection, space_id)


def drop_text_index(connection: sa.Connection) -> None:
    """Remove the FTS5 tables."""
    for table in text_tables(connection):
        connection.exec_driver_sql(f"DROP TABLE {table}")


def put_texts(connection: sa.Connection, keys: Sequence[tuple[int, int, str, str]]) -> None:
    """Write keys; what was there of the same memories is replaced."""
    _delete(connection, [(key, space_id) for key, space_id, _, _ in keys])
    for table, some in _by_table(keys).items():
        connection.exec_driver_sql(
            f"INSERT INTO {table}(rowid, text, context, sp) VALUES (?, ?, ?, ?)",  # noqa: S608
            [(key, text, context, f"sp{space_id}") for key, space_id, text, context in some],
        )


def remove_texts(connection: sa.Connection, memory_ids: Sequence[int]) -> None:
    """Take memories, whose rows are there still, out of the FTS5 tables."""
    for start in range(0, len(memory_ids), _SLICE):
        chosen = MemoryRow.id.in_(memory_ids[start : start + _SLICE])
        rows = connection.execute(sa.select(MemoryRow.id, MemoryRow.space_id).where(chosen)).all()
        _delete(connection, [(row.id, row.space_id) for row in rows])


def _delete(connection: sa.Connection, keys: Sequence[tuple[int, int]]) -> None:
    for table, some in _by_table(keys).items():
        connection.exec_driver_sql(f"DELETE FROM {table} WHERE rowid = ?", [(key,) for key, _ in some])  # noqa: S608


def _by_table(keys: Sequence[T]) -> dict[str, list[T]]:
    """Keys, whose second part is a space, by the table that they belong to."""
    tables: dict[str, list[T]] = {}
    for key in keys:
        tables.setdefault(text_table(key[1]), []).append(key)
    return tables


def stray_texts(connection: sa.Connection, keys: Iterable[tuple[int, int, str, str]]) -> dict[int, str]:
    """What is wrong with the FTS5 tables, by memory key, when ``keys`` is all that they should hold."""
    indexed = {
        (row[0], table): _digest(*row[1:])
        for table in text_tables(connection)
        for row in connection.exec_driver_sql(f"SELECT rowid, text, context, sp FROM {table}")  # noqa: S608
    }
    wrong = {}
    for key, space_id, text, context in keys:
        table = text_table(space_id)
        if indexed.pop((key, table), None) != _digest(text, context, f"sp{space_id}"):
            wrong[key] = f"{table} has another key or none"
    return wrong | {key: f"{table} has a stray row {key}" for key, table in indexed}


def _digest(*parts: str | None) -> bytes:
    """Stands for a row's content: the rows of a million memories do not fit into RAM."""
    return _short(repr(parts).encode())


def _short(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def check_text_index(connection: sa.Connection) -> None:
    """Have FTS5 compare its tables with their inverted indexes, on a write transaction: it spells this as an INSERT.

    Raises:
        sqlalchemy.exc.DBAPIError: one is damaged.
    """
    for table in text_tables(connection):
        connection.exec_driver_sql(f"INSERT INTO {table}({table}, rank) VALUES('integrity-check', 1)")


def create_vector_index(connection: sa.Connection, model_id: int, dim: int) -> None:
    """Create the empty vec0 table of an embedder."""
    name = vec_table(model_id)
    connection.exec_driver_sql(
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {name} USING vec0("
        f"memory_id integer primary key, space_id integer partition key, e float[{int(dim)}], chunk_size=64)"
    )
    # vec0 finds the chunks of a partition by scanning this shadow table, which it does not index.
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name}_part ON {name}_chunks(partition00)")


def drop_vector_index(connection: sa.Connection, model_id: int) -> None:
    """Remove the vec0 table of an embedder."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {vec_table(model_id)}")


def put_vectors(connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Write (memory key, space key, float32 vector); what was there of the same memories is replaced."""
    _delete_vectors(connection, model_id, [row[0] for row in rows])
    insert = f"INSERT INTO {vec_table(model_id)}(memory_id, space_id, e) VALUES (?, ?, ?)"  # noqa: S608
    connection.exec_driver_sql(insert, list(rows))


def remove_vectors(connection: sa.Connection, model_id: int, memory_ids: Sequence[int]) -> None:
    """Take memories out of an embedder's vec0 table, and out of RAM."""
    _delete_vectors(connection, model_id, memory_ids)
    sketch.forget(connection)


def _delete_vectors(connection: sa.Connection, model_id: int, memory_ids: Sequence[int]) -> None:
    delete = f"DELETE FROM {vec_table(model_id)} WHERE memory_id = ?"  # noqa: S608
    connection.exec_driver_sql(delete, [(key,) for key in memory_ids])


def stray_vectors(
    connection: sa.Connection, model_id: int, dim: int, rows: Iterable[tuple[int, int, bytes]]
) -> dict[int, str]:
    """What is wrong with an embedder's vec0 table, by memory key, when ``rows`` is all that it should hold."""
    table = vec_table(model_id)
    indexed = {
        row[0]: (row[1], _short(row[2]))
        for row in connection.exec_driver_sql(f"SELECT memory_id, space_id, e FROM {table}")  # noqa: S608
    }
    wrong = {}
    for key, space_id, vector in rows:
        if indexed.pop(key, None) != (space_id, _short(vector)):
            wrong[key] = f"{table} has another vector or none"
    return wrong | {key: f"{table} has a stray row {key}" for key in indexed}


def lexical_leg(
    connection: sa.Connection, space_id: int, words: Sequence[str], limit: int, within: sa.Select[int] | None
) -> dict[int, float]:
    """BM25 by memory key, best ``limit``; only of ``within`` when given."""
    # Quoted, a word is a literal; \w+ leaves no quote inside.
    any_word = " OR ".join(f'"{word}"' for word in words)
    match, table = f"sp : sp{space_id} AND {{text context}} : ({any_word})", text_table(space_id)
    rowid = sa.literal_column("rowid", sa.Integer)
    rank = sa.literal_column(f"bm25({table}, 1.0, {CONTEXT_WEIGHT}, 0.0)", sa.Float)
    query = (
        sa.select(rowid, rank.label("bm25"))
        .select_from(sa.table(table))
        .where(sa.text(f"{table} MATCH :match").bindparams(match=match))
        .order_by(sa.text("bm25"))
        .limit(limit)
    )
    if within is not None:
        query = query.where(rowid.in_(within))
    return {row[0]: -row[1] for row in connection.execute(query)}


def dense_leg(
    connection: sa.Connection,
    space_id: int,
    model_id: int,
    vector: bytes,
    limit: int,
    within: sa.Select[int] | None,
    also: Set[int],
) -> dict[int, float]:
    """Cosine by memory key: the best ``limit``, only of ``within`` when given; and those of ``also``, exactly.

    vec0 compares those that ``within`` leaves, and all of a small space. Of others, vectors are held in RAM, of large
    ones their signs, which choose candidates (``sketch.py``).
    """
    totals = connection.execute(_TOTALS, {"space": space_id}).first()
    if within is not None or totals is None or totals.memories < LEAST_HELD:
        found = _by_vec0(connection, space_id, model_id, vector, limit, within)
        return found | exact.cosines(connection, model_id, vector, also - found.keys())
    of_space, count = (vec_table(model_id), space_id, totals.erasures, vector), limit * sketch.OVERSAMPLE
    if totals.memories < sketch.LEAST or len(vector) // 4 < sketch.LEAST_DIM or count > sketch.MOST:
        return sketch.nearest(connection, *of_space, limit, also)
    near = also | set(sketch.candidates(connection, *of_space, count))
    listed = ", ".join(map(str, near))
    truth = f"SELECT memory_id, vec FROM embedding WHERE model_id = ? AND memory_id IN ({listed})"  # noqa: S608
    rows = connection.exec_driver_sql(truth, (model_id,)).all()
    if not rows:  # all of them wait for their vectors
        return {}
    vectors = np.frombuffer(b"".join(row[1] for row in rows), "<f4").reshape(len(rows), -1)
    keys = np.array([row[0] for row in rows], np.int64)
    return vec0_chunks.best(keys, vectors @ np.frombuffer(vector, "<f4"), limit, also)


def _by_vec0(
    connection: sa.Connection, space_id: int, model_id: int, vector: bytes, limit: int, within: sa.Select[int] | None
) -> dict[int, float]:
    key = sa.literal_column("memory_id", sa.Integer)
    query = (
        sa.select(key, sa.literal_column("distance", sa.Float))
        .select_from(sa.table(vec_table(model_id)))
        .where(
            sa.text("e MATCH :vector AND k = :k AND space_id = :space").bindparams(
                vector=vector, k=min(limit, KNN_MAX), space=space_id
            )
        )
    )
    if within is not None:
        query = query.where(key.in_(within))
    # Unit vectors: |a-b|^2 = 2 - 2cos.
    return {row[0]: 1.0 - row[1] ** 2 / 2.0 for row in connection.execute(query)}

"""The search indexes of SQLite: one vec0 table per embedder and one FTS5 table. Fulfils ``dialects.SearchEngine``.

``fts_memory`` keeps its own copy of the key. A contentless table would be half the size, but its deletes leave the
terms in the file even with ``secure-delete``, and forgetting must be complete.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

KNN_MAX = 4096
"""Most neighbours that vec0 returns."""
CONTEXT_WEIGHT = 0.5
"""BM25 weight of the neighbouring turns relative to the chunk itself.

Turn recall@10 of the lexical leg on five LoCoMo dialogues (786 questions): 0.640 at 0, 0.687 at 0.15, 0.709 at 0.3,
0.722 at 0.5, 0.700 at 1."""


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


def drop_text_index(connection: sa.Connection) -> None:
    """Remove the FTS5 table."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS fts_memory")


def put_texts(connection: sa.Connection, keys: Sequence[tuple[int, int, str, str]]) -> None:
    """Write keys; what was there of the same memories is replaced."""
    remove_texts(connection, [key[0] for key in keys])
    connection.exec_driver_sql(
        "INSERT INTO fts_memory(rowid, text, context, sp) VALUES (?, ?, ?, ?)",
        [(key, text, context, f"sp{space_id}") for key, space_id, text, context in keys],
    )


def remove_texts(connection: sa.Connection, memory_ids: Sequence[int]) -> None:
    """Take memories out of the FTS5 table."""
    connection.exec_driver_sql("DELETE FROM fts_memory WHERE rowid = ?", [(key,) for key in memory_ids])


def stray_texts(connection: sa.Connection, keys: Sequence[tuple[int, int, str, str]]) -> dict[int, str]:
    """What is wrong with the FTS5 table, by memory key, when ``keys`` is all that it should hold."""
    rows = connection.exec_driver_sql("SELECT rowid, text, context, sp FROM fts_memory")
    indexed = {row[0]: tuple(row[1:]) for row in rows}
    wrong = {
        key: "fts_memory has another key or none"
        for key, space_id, text, context in keys
        if indexed.pop(key, None) != (text, context, f"sp{space_id}")
    }
    return wrong | {key: f"fts_memory has a stray row {key}" for key in indexed}


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
    remove_vectors(connection, model_id, [row[0] for row in rows])
    insert = f"INSERT INTO {vec_table(model_id)}(memory_id, space_id, e) VALUES (?, ?, ?)"  # noqa: S608
    connection.exec_driver_sql(insert, list(rows))


def remove_vectors(connection: sa.Connection, model_id: int, memory_ids: Sequence[int]) -> None:
    """Take memories out of an embedder's vec0 table."""
    delete = f"DELETE FROM {vec_table(model_id)} WHERE memory_id = ?"  # noqa: S608
    connection.exec_driver_sql(delete, [(key,) for key in memory_ids])


def stray_vectors(connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> dict[int, str]:
    """What is wrong with an embedder's vec0 table, by memory key, when ``rows`` is all that it should hold."""
    table = vec_table(model_id)
    indexed = {
        row[0]: (row[1], row[2])
        for row in connection.exec_driver_sql(f"SELECT memory_id, space_id, e FROM {table}")  # noqa: S608
    }
    wrong = {
        key: f"{table} has another vector or none"
        for key, space_id, vector in rows
        if indexed.pop(key, None) != (space_id, vector)
    }
    return wrong | {key: f"{table} has a stray row {key}" for key in indexed}


def lexical_leg(
    connection: sa.Connection, space_id: int, words: Sequence[str], limit: int, within: sa.Select[int] | None
) -> dict[int, float]:
    """BM25 by memory key, best ``limit``; only of ``within`` when given."""
    # Quoted, a word is a literal; \w+ leaves no quote inside.
    any_word = " OR ".join(f'"{word}"' for word in words)
    match = f"sp : sp{space_id} AND {{text context}} : ({any_word})"
    rowid = sa.literal_column("rowid", sa.Integer)
    rank = sa.literal_column(f"bm25(fts_memory, 1.0, {CONTEXT_WEIGHT}, 0.0)", sa.Float)
    query = (
        sa.select(rowid, rank.label("bm25"))
        .select_from(sa.table("fts_memory"))
        .where(sa.text("fts_memory MATCH :match").bindparams(match=match))
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
) -> dict[int, float]:
    """Cosine by memory key, best ``limit``; only of ``within`` when given."""
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

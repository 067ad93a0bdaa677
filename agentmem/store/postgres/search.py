"""The search indexes of PostgreSQL: tsvector with GIN, halfvec with HNSW. Fulfils ``dialects.SearchEngine``.

Words: folded and cut here, stemmed by the server, without its stop-words (the query's are left out here). A score is
the sum over the query's words of rarity in the space times ``ts_rank``, in the manner of BM25.

Vectors: 16 bits in the index, which halves it; what it finds is ranked by the 32-bit truth. A small space, or a small
part of one, is compared whole: an index over all spaces would find few of its neighbours there.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence, Set

import numpy as np
import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY, TSVECTOR

from agentmem.store import exact
from agentmem.store.postgres import isolation
from agentmem.store.schema import Embedding, Tally

CONTEXT_WEIGHT = 0.5
"""Weight of the neighbouring turns relative to the chunk itself; measured with SQLite's BM25 (``sqlite_search.py``)."""
EXACT_MAX = 20_000
"""So many vectors are compared one by one; only above that the HNSW index is asked."""
HNSW_MAX_DIM = 4000
"""Longer vectors have no HNSW index (a limit of pgvector) and are always compared one by one."""

_WORD = re.compile(r"[^\W_]+")
_INSERTED = 500  # rows per statement

# The policy itself asks for the words: a condition of ours could not use the index, because row-level security puts
# the policy first and "@@" is not marked leakproof. Lexemes with "#" are no words; they name spaces.
_TEXT_SCHEMA = """
DO $$ BEGIN
  CREATE TEXT SEARCH DICTIONARY agentmem_stem (TEMPLATE = snowball, LANGUAGE = english);
  CREATE TEXT SEARCH CONFIGURATION agentmem (COPY = english);
  ALTER TEXT SEARCH CONFIGURATION agentmem ALTER MAPPING REPLACE english_stem WITH agentmem_stem;
EXCEPTION WHEN unique_violation OR duplicate_object THEN NULL;
END $$;
CREATE OR REPLACE FUNCTION agentmem_visible() RETURNS tsquery LANGUAGE sql STABLE PARALLEL SAFE AS $$
  SELECT ('''#' || coalesce(current_setting('agentmem.space', true), '') || '''')::tsquery
    && coalesce(current_setting('agentmem.words', true), '')::tsquery
$$;
CREATE TABLE IF NOT EXISTS fts_memory (
  memory_id bigint PRIMARY KEY REFERENCES memory ON DELETE CASCADE, space_id bigint NOT NULL, tsv tsvector NOT NULL);
ALTER TABLE fts_memory ALTER COLUMN tsv SET STATISTICS 0;
CREATE INDEX IF NOT EXISTS fts_memory_tsv ON fts_memory USING gin (tsv) WITH (fastupdate = off);
"""
_TSV = (
    "setweight(to_tsvector('agentmem', :text), 'A') || setweight(to_tsvector('agentmem', :context), 'B') "
    "|| array_to_tsvector(ARRAY['#all', '#' || CAST(:space AS text)])"
)
_PUT_TEXT = sa.text(
    f"INSERT INTO fts_memory(memory_id, space_id, tsv) VALUES (:key, CAST(:space AS bigint), {_TSV}) "  # noqa: S608
    "ON CONFLICT (memory_id) DO UPDATE SET space_id = excluded.space_id, tsv = excluded.tsv"
)
_SAME_TEXT = sa.text(f"SELECT tsv = ({_TSV}) FROM fts_memory WHERE memory_id = :key")  # noqa: S608
_QUERIES = sa.text(
    "SELECT DISTINCT q::text FROM (SELECT plainto_tsquery('agentmem', word) AS q "
    "FROM unnest(CAST(:words AS text[])) AS word) AS asked WHERE numnode(q) > 0"
)
_TEXTS = sa.table(
    "fts_memory", sa.column("memory_id", sa.BigInteger), sa.column("space_id"), sa.column("tsv", TSVECTOR)
)


def fold(text: str) -> str:
    """A text's words, lower case and without accents, so that the server's parser has nothing to guess."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(one for one in plain if not unicodedata.combining(one))
    return " ".join(_WORD.findall(plain.lower()))


def vec_table(model_id: int) -> str:
    """Name of the vector table of one embedder."""
    return f"vec_memory_{int(model_id)}"


def add_space(connection: sa.Connection, space_id: int) -> None:
    """Nothing to do: one table holds the words of all spaces."""


def create_text_index(connection: sa.Connection) -> None:
    """Create the empty table of words, unless it is there."""
    connection.exec_driver_sql(_TEXT_SCHEMA)
    isolation.guard(connection, "fts_memory", "tsv @@ agentmem_visible()", isolation.OWN_SPACE)


def drop_text_index(connection: sa.Connection) -> None:
    """Remove it."""
    connection.exec_driver_sql("DROP TABLE IF EXISTS fts_memory")


def put_texts(connection: sa.Connection, keys: Sequence[tuple[int, int, str, str]]) -> None:
    """Write keys; what was there of the same memories is replaced."""
    connection.execute(_PUT_TEXT, [_parameters(key) for key in keys])


def remove_texts(connection: sa.Connection, memory_ids: Sequence[int]) -> None:
    """Take memories out of the table of words."""
    connection.execute(sa.text("DELETE FROM fts_memory WHERE memory_id = ANY(:keys)"), {"keys": list(memory_ids)})


def stray_texts(connection: sa.Connection, keys: Iterable[tuple[int, int, str, str]]) -> dict[int, str]:
    """What is wrong with the table of words, by memory key, when ``keys`` is all that it should hold."""
    there = set(connection.scalars(sa.text("SELECT memory_id FROM fts_memory")))
    wrong = {}
    for key in keys:
        if key[0] not in there or not connection.scalar(_SAME_TEXT, _parameters(key)):
            wrong[key[0]] = "fts_memory has another key or none"
        there.discard(key[0])
    return wrong | {key: f"fts_memory has a stray row {key}" for key in there}


def create_vector_index(connection: sa.Connection, model_id: int, dim: int) -> None:
    """Create the empty table of an embedder, unless it is there."""
    name = vec_table(model_id)
    connection.exec_driver_sql(
        f"CREATE TABLE IF NOT EXISTS {name} (memory_id bigint PRIMARY KEY REFERENCES memory ON DELETE CASCADE, "
        f"space_id bigint NOT NULL, e halfvec({int(dim)}) NOT NULL)"
    )
    connection.exec_driver_sql(f"ALTER TABLE {name} ALTER COLUMN e SET STATISTICS 0")  # as ``opening.finish``
    if dim <= 3000:  # fits into a page: comparing many is quicker when none lies elsewhere
        connection.exec_driver_sql(f"ALTER TABLE {name} ALTER COLUMN e SET STORAGE PLAIN")
    connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name}_space ON {name}(space_id)")
    if dim <= HNSW_MAX_DIM:
        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {name}_hnsw ON {name} USING hnsw (e halfvec_l2_ops)")
    isolation.guard(connection, name, isolation.OWN_SPACE)


def drop_vector_index(connection: sa.Connection, model_id: int) -> None:
    """Remove it."""
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {vec_table(model_id)}")


def put_vectors(connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> None:
    """Write (memory key, space key, float32 vector); what was there of the same memories is replaced."""
    remove_vectors(connection, model_id, [row[0] for row in rows])
    table = _vectors(model_id, len(rows[0][2]) // 4)
    values = [{"memory_id": key, "space_id": space_id, "e": _floats(vector)} for key, space_id, vector in rows]
    for start in range(0, len(values), _INSERTED):
        connection.execute(sa.insert(table), values[start : start + _INSERTED])


def remove_vectors(connection: sa.Connection, model_id: int, memory_ids: Sequence[int]) -> None:
    """Take memories out of an embedder's table."""
    delete = f"DELETE FROM {vec_table(model_id)} WHERE memory_id = ANY(:keys)"  # noqa: S608
    connection.execute(sa.text(delete), {"keys": list(memory_ids)})


def stray_vectors(
    connection: sa.Connection, model_id: int, dim: int, rows: Iterable[tuple[int, int, bytes]]
) -> dict[int, str]:
    """What is wrong with an embedder's table, by memory key, when ``rows`` is all that it should hold."""
    name = vec_table(model_id)
    with connection.execute(sa.select(_vectors(model_id, dim)), execution_options={"yield_per": 1000}) as found:
        indexed = {row[0]: (row[1], _digest(row[2])) for row in found}
    wrong = {}
    for key, space_id, vector in rows:
        if indexed.pop(key, None) != (space_id, _digest(np.frombuffer(vector, "<f4"))):
            wrong[key] = f"{name} has another vector or none"
    return wrong | {key: f"{name} has a stray row {key}" for key in indexed}


def _digest(vector: object) -> bytes:
    """Stands for a vector as it is stored, in half precision: a million of them do not fit into RAM."""
    return hashlib.blake2b(np.asarray(vector, np.float16).tobytes(), digest_size=16).digest()


def lexical_leg(
    connection: sa.Connection, space_id: int, words: Sequence[str], limit: int, within: sa.Select[int] | None
) -> dict[int, float]:
    """Score in words by memory key, best ``limit``; only of ``within`` when given."""
    queries = list(connection.scalars(_QUERIES, {"words": [fold(word) for word in words]}))
    if not queries:
        return {}
    isolation.look_for(connection, " | ".join(f"({query})" for query in queries))
    found = connection.execute(_ranked(space_id, queries, within).limit(limit))
    # The order in which the server adds up is its own; the last digits are noise.
    scores = {row[0]: round(float(row[1]), 9) for row in found}
    isolation.look_for(connection, "")
    return scores


def _ranked(space_id: int, queries: list[str], within: sa.Select[int] | None) -> sa.Select[int, float]:
    mine = [_TEXTS.c.space_id == space_id]
    if within is not None:
        mine.append(_TEXTS.c.memory_id.in_(within))
    hit = sa.select(_TEXTS.c.memory_id, _TEXTS.c.tsv).where(*mine).cte("hit").prefix_with("MATERIALIZED")
    word = sa.func.unnest(sa.cast(queries, ARRAY(sa.Text))).column_valued("word")
    asked = sa.select(sa.cast(word, TSQUERY).label("q")).cte("asked")
    rank = sa.func.ts_rank(sa.cast([0.0, 0.0, CONTEXT_WEIGHT, 1.0], ARRAY(sa.REAL)), hit.c.tsv, asked.c.q, 1)
    df = sa.func.count().over(partition_by=asked.c.q)  # of a subquery the planner makes one run per pair
    pairs = sa.select(hit.c.memory_id, rank.label("rank"), df.label("df"))
    pair = pairs.join_from(hit, asked, hit.c.tsv.op("@@")(asked.c.q)).cte("pair")
    n = sa.func.coalesce(sa.select(Tally.memories).where(Tally.space_id == space_id).scalar_subquery(), 0)
    idf = sa.func.ln(1.0 + (n - pair.c.df + 0.5) / (pair.c.df + 0.5))
    score = sa.func.sum(idf * pair.c.rank, type_=sa.Float).label("score")
    ranked = sa.select(pair.c.memory_id, score).group_by(pair.c.memory_id)
    return ranked.order_by(score.desc(), pair.c.memory_id.desc())


def dense_leg(
    connection: sa.Connection,
    space_id: int,
    model_id: int,
    vector: bytes,
    limit: int,
    within: sa.Select[int] | None,
    also: Set[int],
) -> dict[int, float]:
    """Cosine by memory key: the best ``limit``, only of ``within`` when given; and those of ``also``, exactly."""
    query = np.frombuffer(vector, "<f4")
    table = _vectors(model_id, query.size)
    mine = [table.c.space_id == space_id]
    several = sa.select(Tally.memories).where(Tally.space_id == space_id)
    if within is not None:
        mine.append(table.c.memory_id.in_(within))
        several = sa.select(sa.func.count()).select_from(within.limit(EXACT_MAX + 1).subquery())
    distance = table.c.e.l2_distance(query.tolist())
    if (connection.scalar(several) or 0) <= EXACT_MAX or query.size > HNSW_MAX_DIM:
        distance = distance + 0.0  # no longer the index's own order
    else:
        connection.exec_driver_sql("SET LOCAL hnsw.iterative_scan = strict_order")
        connection.exec_driver_sql("SET LOCAL hnsw.ef_search = 200")
        # The planner believes that the policy leaves a hundredth of the rows, and would rather sort them all.
        connection.exec_driver_sql("SET LOCAL enable_sort = off")
    # 16 bits put neighbours in a slightly wrong order: some more are fetched, and ranked by the truth.
    near = sa.select(table.c.memory_id).where(*mine).order_by(distance).limit(limit + limit // 2 + 10).subquery()
    truth = sa.select(Embedding.memory_id, Embedding.vec).join(near, near.c.memory_id == Embedding.memory_id)
    rows = connection.execute(truth.where(Embedding.model_id == model_id)).all()
    connection.exec_driver_sql("SET LOCAL enable_sort = on")
    cosines = {key: float(np.frombuffer(packed, "<f4") @ query) for key, packed in rows}
    best = sorted(cosines, key=lambda key: (-cosines[key], -key))[:limit]
    found = {key: cosines[key] for key in best}
    return found | exact.cosines(connection, model_id, vector, also - found.keys())


def _vectors(model_id: int, dim: int) -> sa.Table:
    return sa.Table(
        vec_table(model_id),
        sa.MetaData(),
        sa.Column("memory_id", sa.BigInteger),
        sa.Column("space_id", sa.BigInteger),
        sa.Column("e", HALFVEC(dim)),
    )


def _floats(vector: bytes) -> list[float]:
    floats: list[float] = np.frombuffer(vector, "<f4").tolist()
    return floats


def _parameters(key: tuple[int, int, str, str]) -> dict[str, object]:
    memory_id, space_id, text, context = key
    return {"key": memory_id, "space": str(space_id), "text": fold(text), "context": fold(context)}

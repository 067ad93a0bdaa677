"""Hybrid search of one scope: vec0 (dense) and FTS5 (lexical) legs, joined by the sum of their z-scores.

This file and ``index.py`` hold what is SQLite's own; another database brings its own two legs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from agentmem.records import Explanation
from agentmem.store.index import vec_table
from agentmem.store.places import Place
from agentmem.store.rows import SLICE
from agentmem.store.schema import Embedding, MemoryRow
from agentmem.store.stopwords import STOP_WORDS

POOL = 50
"""Candidates taken from each leg."""
KNN_MAX = 4096
"""Most neighbours that vec0 returns."""
MAX_WORDS = 48
"""Words of a query that are looked up; the rest of a long query adds time, not precision."""
CONTEXT_WEIGHT = 0.5
"""BM25 weight of the neighbouring turns relative to the chunk itself.

Turn recall@10 of the lexical leg on five LoCoMo dialogues (786 questions): 0.640 at 0, 0.687 at 0.15, 0.709 at 0.3,
0.722 at 0.5, 0.700 at 1."""
DEFAULT_THRESHOLD = 3.0
"""Least fused score that is recalled: about "stands out by three standard deviations"."""

Scores = npt.NDArray[np.float64]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """One memory's scores. ``lexical`` is BM25, larger is better; ``dense`` is the cosine; None: not in that leg."""

    key: int
    lexical: float | None
    dense: float | None
    lexical_z: float
    dense_z: float

    @property
    def score(self) -> float:
        """What results are ranked by."""
        return self.lexical_z + self.dense_z

    def explain(self, threshold: float | None) -> Explanation:
        """The record of these scores."""
        return Explanation(
            lexical=self.lexical,
            dense=self.dense,
            lexical_z=self.lexical_z,
            dense_z=self.dense_z,
            threshold=threshold,
        )


def query_words(text: str) -> list[str]:
    """The words to look up: each once, no stop-words unless there are only stop-words, at most 48."""
    words = list(dict.fromkeys(_WORD.findall(text.lower())))
    return ([word for word in words if word not in STOP_WORDS] or words)[:MAX_WORDS]


def lexical_leg(
    connection: sa.Connection, place: Place, text: str, limit: int, within: sa.Select[int] | None
) -> dict[int, float]:
    """BM25 by memory key, best ``limit``; only of ``within`` when given."""
    words = query_words(text)
    if not words:
        return {}
    # Quoted, a word is a literal; \w+ leaves no quote inside.
    any_word = " OR ".join(f'"{word}"' for word in words)
    match = f"sp : sp{place.space_id} AND {{text context}} : ({any_word})"
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
    place: Place,
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
                vector=vector, k=min(limit, KNN_MAX), space=place.space_id
            )
        )
    )
    if within is not None:
        query = query.where(key.in_(within))
    # Unit vectors: |a-b|^2 = 2 - 2cos.
    return {row[0]: 1.0 - row[1] ** 2 / 2.0 for row in connection.execute(query)}


def cosines(connection: sa.Connection, model_id: int, vector: bytes, keys: Collection[int]) -> dict[int, float]:
    """Exact cosines of memories that the lexical leg found and the dense leg did not return."""
    query, wanted = np.frombuffer(vector, "<f4"), list(keys)
    found: dict[int, float] = {}
    for start in range(0, len(wanted), SLICE):
        some = wanted[start : start + SLICE]
        rows = connection.execute(
            sa.select(Embedding.memory_id, Embedding.vec).where(
                Embedding.model_id == model_id, Embedding.memory_id.in_(some)
            )
        )
        found.update({key: float(np.frombuffer(packed, "<f4") @ query) for key, packed in rows})
    return found


def fuse(
    lexical: Mapping[int, float], dense: Mapping[int, float], lexical_floor: float, noise: float
) -> list[Candidate]:
    """Candidates of both legs, best first; ties by newest.

    Each leg is standardised over the union of candidates. So that a handful of candidates (a young store) does not
    make nonsense of mean and deviation, the union is filled up with memories that do not stand out: for the lexical
    leg ``POOL`` more that score ``lexical_floor``, for the dense leg the median up to ``POOL``. Hence a memory that
    alone has a word in common always stands out. Dense differences below ``noise`` do not count as standing out.

    Args:
        lexical: BM25 by key.
        dense: cosine by key; a memory without an embedding counts as the leg's worst.
        lexical_floor: BM25 of those that the lexical leg did not return.
        noise: deviation of cosines between unrelated texts, for this embedder.
    """
    keys = sorted(set(lexical) | set(dense), reverse=True)
    worst = min(dense.values(), default=0.0)
    words = np.array([lexical.get(key, lexical_floor) for key in keys])
    likeness = np.array([dense.get(key, worst) for key in keys])
    middle = float(np.median(likeness)) if keys else 0.0
    lexical_z = _standardise(words, np.full(POOL, lexical_floor), 0.0)
    dense_z = _standardise(likeness, np.full(max(0, POOL - len(keys)), middle), noise)
    found = [
        Candidate(key, lexical.get(key), dense.get(key), float(x), float(y))
        for key, x, y in zip(keys, lexical_z, dense_z, strict=True)
    ]
    return sorted(found, key=lambda candidate: -candidate.score)


def _standardise(values: Scores, background: Scores, least_spread: float) -> Scores:
    everything = np.concatenate([values, background])
    spread = max(float(everything.std()) if everything.size else 0.0, least_spread)
    if spread < 1e-9:  # all alike; the smallest BM25 there is, 1e-6, is well above this
        return np.zeros_like(values)
    standardised: Scores = (values - everything.mean()) / spread
    return standardised


def search(
    connection: sa.Connection,
    place: Place,
    text: str,
    model_id: int | None,
    vector: bytes | None,
    *,
    conditions: list[sa.ColumnElement[bool]],
    exclude: Collection[int],
    noise: float,
) -> list[Candidate]:
    """All candidates of both legs, best first, without those to exclude.

    ``conditions`` narrow the scope further (session and filters); without any, the space's own partitions do it.
    """
    narrow = list(conditions)
    if place.session_id is not None:
        narrow.extend(place.conditions())
    limit = POOL + len(exclude)
    if limit > KNN_MAX:
        # Written out as numbers: they may be more than a statement can have parameters.
        narrow.append(MemoryRow.id.not_in(sa.bindparam("gone", list(exclude), expanding=True, literal_execute=True)))
        limit = POOL
    within = sa.select(MemoryRow.id).where(MemoryRow.space_id == place.space_id, *narrow) if narrow else None
    lexical = lexical_leg(connection, place, text, limit, within)
    exhausted = len(lexical) < limit
    dense: dict[int, float] = {}
    if model_id is not None and vector is not None:
        dense = dense_leg(connection, place, model_id, vector, limit, within)
        dense |= cosines(connection, model_id, vector, set(lexical) - set(dense))
    for key in exclude:
        lexical.pop(key, None)
        dense.pop(key, None)
    # A leg that was cut short says nothing about the rest but that they are no better than its last.
    floor = 0.0 if exhausted else min(lexical.values(), default=0.0)
    return fuse(lexical, dense, floor, noise)

"""Hybrid search of one scope: a dense and a lexical leg, joined by the sum of their z-scores.

The two legs are the database engine's own: see ``dialects.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from agentmem.records import Explanation
from agentmem.store.dialects import search_engine
from agentmem.store.places import Place
from agentmem.store.schema import MemoryRow
from agentmem.store.sqlite_search import KNN_MAX
from agentmem.store.stopwords import STOP_WORDS

POOL = 50
"""Candidates taken from each leg."""
MAX_WORDS = 48
"""Words of a query that are looked up; the rest of a long query adds time, not precision."""
DEFAULT_THRESHOLD = 3.0
"""Least fused score that is recalled: about "stands out by three standard deviations"."""

Scores = npt.NDArray[np.float64]

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Candidate:
    """One memory's scores. ``lexical`` is BM25 or its like, ``dense`` the cosine; None: not in that leg."""

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
    engine, words = search_engine(connection), query_words(text)
    lexical = engine.lexical_leg(connection, place.space_id, words, limit, within) if words else {}
    exhausted = len(lexical) < limit
    dense: dict[int, float] = {}
    if model_id is not None and vector is not None:
        dense = engine.dense_leg(connection, place.space_id, model_id, vector, limit, within, lexical.keys())
    for key in exclude:
        lexical.pop(key, None)
        dense.pop(key, None)
    # A leg that was cut short says nothing about the rest but that they are no better than its last.
    floor = 0.0 if exhausted else min(lexical.values(), default=0.0)
    return fuse(lexical, dense, floor, noise)

"""What a database engine brings of its own for search, and which one a connection belongs to.

Everything else is SQLAlchemy Core, the same for all. Two modules fulfil ``SearchEngine``: ``sqlite_search`` (vec0 and
FTS5) and ``postgres.search`` (pgvector and tsvector).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Protocol

import sqlalchemy as sa

from agentmem.store import sqlite_search

TextKey = tuple[int, int, str, str]
"""What the text index holds of a chunk: memory key, space key, text, context."""


class SearchEngine(Protocol):
    """The derived indexes of one engine: one for text, one per embedder for vectors; and how they are searched."""

    def add_space(self, connection: sa.Connection, space_id: int) -> None:
        """Make room for a new space in the text index."""

    def create_text_index(self, connection: sa.Connection) -> None:
        """Create the text index, empty, unless it is there."""

    def drop_text_index(self, connection: sa.Connection) -> None:
        """Remove it."""

    def put_texts(self, connection: sa.Connection, keys: Sequence[TextKey]) -> None:
        """Write keys; what was there of the same memories is replaced."""

    def remove_texts(self, connection: sa.Connection, memory_ids: Sequence[int]) -> None:
        """Take memories, whose rows are there still, out of the text index."""

    def stray_texts(self, connection: sa.Connection, keys: Iterable[TextKey]) -> dict[int, str]:
        """What is wrong with the text index, by memory key, when ``keys`` is all that it should hold."""

    def create_vector_index(self, connection: sa.Connection, model_id: int, dim: int) -> None:
        """Create the vector index of an embedder, empty, unless it is there."""

    def drop_vector_index(self, connection: sa.Connection, model_id: int) -> None:
        """Remove it."""

    def put_vectors(self, connection: sa.Connection, model_id: int, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Write (memory key, space key, float32 vector); what was there of the same memories is replaced."""

    def remove_vectors(self, connection: sa.Connection, model_id: int, memory_ids: Sequence[int]) -> None:
        """Take memories out of an embedder's index."""

    def stray_vectors(
        self, connection: sa.Connection, model_id: int, dim: int, rows: Iterable[tuple[int, int, bytes]]
    ) -> dict[int, str]:
        """What is wrong with an embedder's index, by memory key, when ``rows`` is all that it should hold."""

    def lexical_leg(
        self, connection: sa.Connection, space_id: int, words: Sequence[str], limit: int, within: sa.Select[int] | None
    ) -> dict[int, float]:
        """Score in words by memory key, larger is better, best ``limit``; only of ``within`` when given."""

    def dense_leg(
        self,
        connection: sa.Connection,
        space_id: int,
        model_id: int,
        vector: bytes,
        limit: int,
        within: sa.Select[int] | None,
        also: Set[int],
    ) -> dict[int, float]:
        """Cosine by memory key: the best ``limit``, only of ``within`` when given; and those of ``also``, exactly."""


def on_postgres(connection: sa.Connection) -> bool:
    """True on PostgreSQL."""
    return connection.dialect.name == "postgresql"


def search_engine(connection: sa.Connection) -> SearchEngine:
    """The indexes of the connection's database."""
    if on_postgres(connection):
        from agentmem.store.postgres import search  # late: the drivers are an extra

        return search
    return sqlite_search

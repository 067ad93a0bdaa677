"""The tables that are the truth. Search indexes (``vec_memory_<id>``, ``fts_memory``) are derived: see ``index.py``.

Times are UTC microseconds as integers. Rows that people can name carry ``uid`` (unique within a space); ``id`` is the
database's own key, never reused (AUTOINCREMENT), because payload files and index rows are named by it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""64-bit key; on SQLite it must be spelled INTEGER to be the rowid."""

_DATED = sa.text("expires_us IS NOT NULL")
_SERIAL = {"sqlite_autoincrement": True}


def totalled(column: sa.SQLColumnExpression[int]) -> sa.ColumnElement[int]:
    """The sum of a column, 0 of no rows, as an integer (PostgreSQL's own sum of 64-bit integers is a decimal)."""
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


class Base(DeclarativeBase):
    """Metadata of every table; migrations are compared with it."""


class SchemaMeta(Base):
    """Small facts about the file itself."""

    __tablename__ = "schema_meta"
    key: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[str] = mapped_column(sa.Text)


class Space(Base):
    """One (user, agent): the unit that is searched, budgeted and isolated."""

    __tablename__ = "space"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    user_key: Mapped[str] = mapped_column(sa.Text)
    agent_key: Mapped[str] = mapped_column(sa.Text)
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    __table_args__ = (sa.UniqueConstraint("user_key", "agent_key"), _SERIAL)


class SessionRow(Base):
    """A labelled session of a space. Memories without a label belong to none."""

    __tablename__ = "session"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    label: Mapped[str] = mapped_column(sa.Text)
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    __table_args__ = (sa.UniqueConstraint("space_id", "label"), _SERIAL)


class Turn(Base):
    """Groups the chunks of one turn; (created_us, id) orders the turns of a session."""

    __tablename__ = "turn"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.Text)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    session_id: Mapped[int | None] = mapped_column(BigId, sa.ForeignKey("session.id"))
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    __table_args__ = (
        sa.UniqueConstraint("space_id", "uid"),
        sa.Index("ix_turn_order", "space_id", "session_id", "created_us", "id"),
        _SERIAL,
    )


class MemoryRow(Base):
    """One chunk: its text and where it came from."""

    __tablename__ = "memory"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    uid: Mapped[str] = mapped_column(sa.Text)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    session_id: Mapped[int | None] = mapped_column(BigId, sa.ForeignKey("session.id"))
    turn_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("turn.id"))
    chunk_no: Mapped[int] = mapped_column(sa.Integer)
    role: Mapped[str] = mapped_column(sa.String(16))
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    n_tokens: Mapped[int] = mapped_column(sa.Integer)
    text: Mapped[str] = mapped_column(sa.Text)
    text_sha256: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    pinned: Mapped[bool] = mapped_column(sa.Boolean)
    meta: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    expires_us: Mapped[int | None] = mapped_column(sa.BigInteger)
    """From then on it is not there; the next write takes it out of the files (``expiry.py``)."""
    __table_args__ = (
        sa.UniqueConstraint("space_id", "uid"),
        sa.UniqueConstraint("turn_id", "chunk_no"),
        # Covering: eviction sorts a million memories without touching the pages that hold their texts.
        sa.Index("ix_memory_created", "space_id", "created_us", "pinned"),
        sa.Index("ix_memory_session", "session_id"),
        # Only of those that expire: asking whether some have is one look into an index that is mostly empty.
        sa.Index("ix_memory_expires", "expires_us", sqlite_where=_DATED, postgresql_where=_DATED),
        sa.Index("ix_memory_space_expires", "space_id", "expires_us", sqlite_where=_DATED, postgresql_where=_DATED),
        _SERIAL,
    )


class MemoryTag(Base):
    """One tag of one memory."""

    __tablename__ = "memory_tag"
    memory_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(sa.Text, primary_key=True)


class MemoryUsage(Base):
    """Use counters, apart from the text so that crediting a read rewrites a narrow row."""

    __tablename__ = "memory_usage"
    memory_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True)
    uses: Mapped[int] = mapped_column(sa.Integer)
    attention: Mapped[float] = mapped_column(sa.Float)
    score: Mapped[float] = mapped_column(sa.Float)
    """Usage frequency as of ``score_us``; it halves every half-life after that."""
    score_us: Mapped[int] = mapped_column(sa.BigInteger)
    last_us: Mapped[int | None] = mapped_column(sa.BigInteger)
    recent_turns: Mapped[list[str]] = mapped_column(sa.JSON)
    """Digests of the turns credited last, so that a turn is credited once, whichever process reports it."""
    recent_reads: Mapped[list[list[float]]] = mapped_column(sa.JSON, server_default="[]")
    """The newest reads, oldest first: pairs of time (microseconds) and attention share."""


class EmbeddingModel(Base):
    """An embedder in use; its vec0 table is ``vec_memory_<id>``."""

    __tablename__ = "embedding_model"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text)
    dim: Mapped[int] = mapped_column(sa.Integer)
    __table_args__ = (sa.UniqueConstraint("name", "dim"), _SERIAL)


class Embedding(Base):
    """The truth of a vector: little-endian float32, L2-normalised."""

    __tablename__ = "embedding"
    memory_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True)
    model_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("embedding_model.id"), primary_key=True)
    vec: Mapped[bytes] = mapped_column(sa.LargeBinary)
    __table_args__ = (sa.Index("ix_embedding_model", "model_id", "memory_id"),)


class KVModel(Base):
    """A fingerprint that KV was encoded under."""

    __tablename__ = "kv_model"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(sa.Text, unique=True)
    __table_args__ = (_SERIAL,)


class KVPayload(Base):
    """A memory's KV under one fingerprint: inline bytes, or a file below the payload folder. An evictable cache."""

    __tablename__ = "kv_payload"
    memory_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True)
    kv_model_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("kv_model.id"), primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    codec: Mapped[str] = mapped_column(sa.String(32))
    nbytes: Mapped[int] = mapped_column(sa.BigInteger)
    sha256: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    crc32: Mapped[int] = mapped_column(sa.BigInteger)
    uri: Mapped[str | None] = mapped_column(sa.Text)
    data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    __table_args__ = (
        sa.CheckConstraint("(data IS NULL) <> (uri IS NULL)", name="one_home"),
        # Covering: budgets are summed without touching the pages that hold the bytes.
        sa.Index("ix_kv_payload_budget", "space_id", "memory_id", "nbytes"),
    )


class CodebookRow(Base):
    """Codebooks of product-quantised KV under one fingerprint: means over many memories' vectors. A cache."""

    __tablename__ = "codebook"
    fingerprint: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    sha256: Mapped[bytes] = mapped_column(sa.LargeBinary(32))
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    data: Mapped[bytes] = mapped_column(sa.LargeBinary)


class StreamRow(Base):
    """What is committed of a session's stream, whose bytes are where ``stream_home.py`` says. An evictable cache."""

    __tablename__ = "stream"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    session_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("session.id"), unique=True)
    fingerprint: Mapped[str] = mapped_column(sa.Text)
    record_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    index_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    generation: Mapped[int] = mapped_column(sa.BigInteger)
    """Number of commits: a writer whose number is not this one has missed some."""
    n_records: Mapped[int] = mapped_column(sa.BigInteger)
    n_tokens: Mapped[int] = mapped_column(sa.BigInteger)
    index_crc32: Mapped[int] = mapped_column(sa.BigInteger)
    """Running checksum of the index entries, which hold the checksums of the records."""
    tail_uri: Mapped[str | None] = mapped_column(sa.Text)
    tail_sha256: Mapped[bytes | None] = mapped_column(sa.LargeBinary(32))
    nbytes: Mapped[int] = mapped_column(sa.BigInteger)
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    updated_us: Mapped[int] = mapped_column(sa.BigInteger)
    meta: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    __table_args__ = (sa.Index("ix_stream_budget", "space_id", "nbytes"), _SERIAL)


class StreamRecord(Base):
    """A sealed record of a stream in a PostgreSQL store: inline bytes, or an object in its bucket. Never changed."""

    __tablename__ = "stream_record"
    stream_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("stream.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(BigId, primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    entry: Mapped[bytes] = mapped_column(sa.LargeBinary)
    """Index entry and checksums, as ``stream_files.py`` has them."""
    uri: Mapped[str | None] = mapped_column(sa.Text)
    data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
    __table_args__ = (sa.CheckConstraint("(data IS NULL) <> (uri IS NULL)", name="one_home"),)


class StreamTail(Base):
    """A part of the tail of a stream in a PostgreSQL store that has no bucket. Replaced by every commit."""

    __tablename__ = "stream_tail"
    stream_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("stream.id", ondelete="CASCADE"), primary_key=True)
    part: Mapped[int] = mapped_column(BigId, primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"))
    data: Mapped[bytes] = mapped_column(sa.LargeBinary)


class Tally(Base):
    """Running totals of a space (``tally.py``), so that budgets need no counting."""

    __tablename__ = "tally"
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"), primary_key=True)
    memories: Mapped[int] = mapped_column(sa.BigInteger)
    kv_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    """Of memories and streams."""
    erasures: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    """Grows whenever a memory or its KV is removed: by it, hot tiers know that they hold something that is gone."""


class LogRow(Base):
    """One entry of the log (``log.py``): a plain value under a key that sorts as bytes. No memory, never recalled."""

    __tablename__ = "log_entry"
    space_id: Mapped[int] = mapped_column(BigId, sa.ForeignKey("space.id"), primary_key=True)
    key: Mapped[bytes] = mapped_column(sa.LargeBinary, primary_key=True)
    revision: Mapped[int] = mapped_column(sa.BigInteger)
    """How often the value was set."""
    value: Mapped[Any] = mapped_column(sa.JSON)
    created_us: Mapped[int] = mapped_column(sa.BigInteger)
    updated_us: Mapped[int] = mapped_column(sa.BigInteger)
    expires_us: Mapped[int | None] = mapped_column(sa.BigInteger)
    __table_args__ = (
        sa.Index("ix_log_entry_expires", "space_id", "expires_us", sqlite_where=_DATED, postgresql_where=_DATED),
    )


class KVTrash(Base):
    """Payload files and stream folders that no row names any more, waiting to be unlinked. Redone after a crash."""

    __tablename__ = "kv_trash"
    uri: Mapped[str] = mapped_column(sa.Text, primary_key=True)


class EventRow(Base):
    """The audit: what happened to a memory and why; never its content. Outlives the memory."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    space_id: Mapped[int] = mapped_column(BigId)
    session_id: Mapped[int | None] = mapped_column(BigId)
    memory_uid: Mapped[str] = mapped_column(sa.Text)
    at_us: Mapped[int] = mapped_column(sa.BigInteger)
    action: Mapped[str] = mapped_column(sa.String(16))
    reason: Mapped[str] = mapped_column(sa.Text)
    __table_args__ = (
        sa.Index("ix_event_memory", "space_id", "memory_uid"),
        # Covering: what happened over time is counted without touching the rows.
        sa.Index("ix_event_time", "space_id", "at_us", "action"),
        _SERIAL,
    )

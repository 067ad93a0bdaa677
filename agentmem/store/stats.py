"""A scope in numbers."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from agentmem.records import Stats
from agentmem.store.inputs import from_us
from agentmem.store.schema import KVPayload, MemoryRow, MemoryUsage, StreamRow, totalled


def count_up(
    connection: sa.Connection,
    conditions: Sequence[sa.ColumnElement[bool]],
    streams: Sequence[sa.ColumnElement[bool]],
    file_bytes: int,
) -> Stats:
    """Sums over the memories that fulfil ``conditions``, and over the streams that fulfil ``streams``."""
    row = connection.execute(
        sa.select(
            sa.func.count(MemoryRow.id).label("memories"),
            totalled(sa.cast(MemoryRow.pinned, sa.Integer)).label("pinned"),
            totalled(MemoryRow.n_tokens).label("tokens"),
            totalled(sa.func.octet_length(MemoryRow.text)).label("text_bytes"),
            totalled(MemoryUsage.uses).label("uses"),
            sa.func.min(MemoryRow.created_us).label("oldest"),
            sa.func.max(MemoryRow.created_us).label("newest"),
        )
        .join(MemoryUsage, MemoryUsage.memory_id == MemoryRow.id)
        .where(*conditions)
    ).one()
    kv = connection.execute(
        sa.select(
            totalled(KVPayload.nbytes).label("kv_bytes"),
            sa.func.count(sa.distinct(KVPayload.memory_id)).label("warm"),
        )
        .join(MemoryRow, MemoryRow.id == KVPayload.memory_id)
        .where(*conditions)
    ).one()
    stream = connection.execute(
        sa.select(
            sa.func.count(StreamRow.id).label("streams"),
            totalled(StreamRow.nbytes).label("nbytes"),
        ).where(*streams)
    ).one()
    return Stats(
        memories=row.memories,
        pinned=row.pinned,
        tokens=row.tokens,
        text_bytes=row.text_bytes,
        kv_bytes=kv.kv_bytes + stream.nbytes,
        warm=kv.warm,
        cold=row.memories - kv.warm,
        uses=row.uses,
        oldest=None if row.oldest is None else from_us(row.oldest),
        newest=None if row.newest is None else from_us(row.newest),
        file_bytes=file_bytes,
        streams=stream.streams,
        stream_bytes=stream.nbytes,
    )

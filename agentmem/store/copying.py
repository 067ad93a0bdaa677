"""A whole store into an empty one, of the same engine or another: every row with its key, every KV payload's bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from agentmem.errors import InvalidInput
from agentmem.store import index, tally
from agentmem.store.dialects import on_postgres
from agentmem.store.payloads import INLINE_MAX
from agentmem.store.places import see_all
from agentmem.store.rows import SLICE
from agentmem.store.schema import (
    Base,
    EmbeddingModel,
    KVPayload,
    KVTrash,
    MemoryRow,
    SchemaMeta,
    Space,
    StreamRecord,
    StreamRow,
    StreamTail,
)

if TYPE_CHECKING:
    from agentmem.store.store import Store

Progress = Callable[[int, int], None] | None

_OWN = {one.__tablename__ for one in (SchemaMeta, KVTrash, StreamRow, StreamRecord, StreamTail, KVPayload)}
"""Facts about a store's own files and buckets, streams (a cache that is encoded anew), and KV, which is moved below."""
_AT_ONCE = 16  # payloads in RAM


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    memories: int
    payloads: int
    damaged: int
    """KV payloads that failed their checksum or were gone: cold in the copy, to be encoded anew."""
    streams: int
    """Streams of sessions that stayed behind; they are encoded anew from the text."""


def copy(source: Store, target: Store, progress: Progress = None) -> Copied:
    """Copy everything of one store into another, in one transaction; the source is read as one snapshot.

    Both are opened without an embedder. ``progress`` is called with (rows done, rows in all).

    Raises:
        InvalidInput: the target is not empty; it was left alone.
        StoreFull, StoreError: nothing was copied.
    """
    source.flush_uses()
    target.put_off_sweep()  # which would take payloads for leftovers until the rows that name them are committed
    written: list[str] = []
    try:
        with source.database.read() as reader, target.write() as writer:
            see_all(reader)
            see_all(writer)
            for table in (Space, EmbeddingModel):
                if writer.scalar(sa.select(sa.func.count()).select_from(table)):
                    raise InvalidInput(f"{target.database.name} is not empty; copy into a store that is new")
            copied = _copy(reader, writer, source, target, written, progress)
    except BaseException:
        target.discard(written)
        raise
    return copied


def _copy(
    reader: sa.Connection, writer: sa.Connection, source: Store, target: Store, written: list[str], progress: Progress
) -> Copied:
    tables = [table for table in Base.metadata.sorted_tables if table.name not in _OWN]
    counts = {t.name: reader.scalar(sa.select(sa.func.count()).select_from(t)) or 0 for t in tables}
    total = sum(counts.values()) + (reader.scalar(sa.select(sa.func.count()).select_from(KVPayload)) or 0)
    done = 0
    for table in tables:
        for rows in _batches(reader, sa.select(table), SLICE):
            writer.execute(sa.insert(table), rows)
            done += len(rows)
            if progress is not None:
                progress(done, total)
    payloads = damaged = 0
    query = sa.select(KVPayload.__table__, MemoryRow.turn_id).join(MemoryRow, MemoryRow.id == KVPayload.memory_id)
    for rows in _batches(reader, query, _AT_ONCE):
        for row in rows:
            if _put_payload(writer, source, target, row, written):
                payloads += 1
            else:
                damaged += 1
        done += len(rows)
        if progress is not None:
            progress(done, total)
    if on_postgres(writer):
        _advance_sequences(writer)
    index.rebuild(writer)
    streams = reader.scalar(sa.select(sa.func.count()).select_from(StreamRow)) or 0
    if damaged or streams:
        tally.recount(writer)  # the totals that were copied count what stayed behind
    return Copied(counts[MemoryRow.__tablename__], payloads, damaged, streams)


def _batches(connection: sa.Connection, query: sa.Select[Any], size: int) -> Iterator[list[dict[str, Any]]]:
    with connection.execute(query, execution_options={"yield_per": size}) as result:
        for rows in result.mappings().partitions(size):
            yield [dict(row) for row in rows]


def _put_payload(writer: sa.Connection, source: Store, target: Store, row: dict[str, Any], written: list[str]) -> bool:
    data = row["data"]
    if data is None and source.payloads is not None:
        data = source.payloads.read(row["uri"])
    if data is None or hashlib.sha256(data).digest() != row["sha256"]:
        return False
    uri = None
    if target.payloads is not None and len(data) > INLINE_MAX:
        uri = target.payloads.place(row.pop("turn_id"), row["memory_id"], "copy")
        written.append(uri)
        target.payloads.write([(uri, data)])  # whole and durable before a row names it
    row.pop("turn_id", None)
    values = row | {"uri": uri, "data": None if uri else bytes(data)}
    writer.execute(sa.insert(KVPayload).values(values))
    return True


def _advance_sequences(connection: sa.Connection) -> None:
    """Rows came with their keys; the next new row must not be given one of them."""
    for table in Base.metadata.sorted_tables:
        if "id" in table.columns:
            connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), "  # noqa: S608
                f"(SELECT coalesce(max(id), 0) + 1 FROM {table.name}), false)"
            )

"""What the stream tests share: records whose bytes say which they are."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from agentmem.store import ScopedMemories, Store, StoredStream
from agentmem.store.places import see_all
from agentmem.store.schema import StreamRecord, StreamTail
from agentmem.store.stream_files import PIECE

RECORD = 2 * PIECE + 777
INDEX = 40


def pattern(length: int, *what: object) -> bytes:
    """Bytes that no other ``what`` has."""
    seed = hashlib.sha256(repr(what).encode()).digest()
    return (seed * (length // len(seed) + 1))[:length]


def record(number: int, salt: object = 0, size: int = RECORD) -> bytes:
    return pattern(size, "record", number, salt)


def entry(number: int, salt: object = 0, size: int = INDEX) -> bytes:
    return pattern(size, "entry", number, salt)


def open_stream(handle: ScopedMemories, session: str = "s", **more: object) -> StoredStream:
    options = {"fingerprint": "model-a", "record_bytes": RECORD, "index_bytes": INDEX} | more
    return handle.open_stream(session, **options)  # type: ignore[arg-type]


def extend(stream: StoredStream, count: int, salt: object = 0) -> None:
    """Append that many records; their content follows from their number and the salt."""
    for _ in range(count):
        number = stream.n_records
        stream.append(record(number, salt, stream.record_bytes), entry(number, salt, stream.index_bytes))


def stored(handle: ScopedMemories, session: str = "s", count: int = 3, tail: bytes = b"tail" * 1000) -> StoredStream:
    """A stream of ``count`` committed records."""
    stream = open_stream(handle, session)
    extend(stream, count, session)
    stream.commit(tail, 128 * count, {"turns": {"t": 0}})
    return stream


def kept_bytes(store: Store) -> int:
    """Bytes of all streams that a store holds, wherever."""
    if store.files is not None:
        return sum(file.stat().st_size for file in store.files.root.glob("streams/*/*"))
    with store.database.read() as connection:
        see_all(connection)
        lengths = (
            sa.func.length(StreamRecord.entry),
            sa.func.length(StreamRecord.data),
            sa.func.length(StreamTail.data),
        )
        rows = sum(connection.scalar(sa.select(sa.func.sum(length))) or 0 for length in lengths)
    objects = [] if store.payloads is None else [uri for uri in store.payloads.walk() if uri.startswith("streams/")]
    return int(rows) + sum(len(store.payloads.read(uri) or b"") for uri in objects)

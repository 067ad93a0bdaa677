"""The bytes of a stream in a PostgreSQL store: rows, or objects in its bucket, from which any worker can go on.

Sealed records never change. What was written or read here is kept in two files without a name (``StreamFiles``), of
which the operating system frees every byte when the stream is closed or the process dies. New records, index entries
and tail are written in the transaction of the commit, or as objects before it: what is not committed is nowhere.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from agentmem.errors import StoreError, StoreUnavailable
from agentmem.store.objects import AT_ONCE
from agentmem.store.payloads import INLINE_MAX
from agentmem.store.places import see_space
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.retry import retried
from agentmem.store.schema import StreamRecord, StreamTail
from agentmem.store.stream_files import Bytes, StreamFiles
from agentmem.store.stream_home import Kept
from agentmem.store.writing import stream_folder

if TYPE_CHECKING:
    from agentmem.store.store import Store

PART = 8 * 2**20
"""Bytes of a tail in one row: a field of PostgreSQL ends at 1 GiB, and a part is in RAM several times over."""

_IN_PARTS = {"yield_per": 4096}  # index entries in RAM


class RowHome:
    """Fulfils ``StreamHome``."""

    def __init__(
        self, store: Store, database: PostgresDatabase, key: int, space_id: int, record_bytes: int, index_bytes: int
    ):
        try:
            self.files = StreamFiles.open(None, record_bytes, index_bytes, create=True)
        except OSError as error:
            raise StoreError(
                f"cannot keep a copy of a stream in {tempfile.gettempdir()} ({error}); set TMPDIR to a folder with room"
            ) from error
        self.patience = store.patience  # for retry.py
        self._store = store
        self._database = database
        self._key = key
        self._space_id = space_id
        self._n_committed = 0
        self._here: set[int] = set()
        """Committed records that the files have."""
        self._release: weakref.finalize[[], RowHome] | None = None

    @retried
    def load(self, n_records: int) -> str | None:
        """Copy the index entries."""
        columns = (StreamRecord.number, StreamRecord.entry)
        mine = (StreamRecord.stream_id == self._key, StreamRecord.number < n_records)
        query = sa.select(*columns).where(*mine).order_by(StreamRecord.number)
        at = 0
        with self._read() as connection, connection.execute(query, execution_options=_IN_PARTS) as result:
            for rows in result.partitions():
                if [row.number for row in rows] != list(range(at, at + len(rows))):
                    break
                self.files.put_entries(at, b"".join(row.entry for row in rows))
                at += len(rows)
        self._n_committed = n_records
        return None if at == n_records else "some of its records are missing"

    @retried
    def fetch(self, number: int) -> bool:
        """Copy a record, unless that was done."""
        if number >= self._n_committed or number in self._here:
            return True
        mine = (StreamRecord.stream_id == self._key, StreamRecord.number == number)
        with self._read() as connection:
            row = connection.execute(sa.select(StreamRecord.uri, StreamRecord.data).where(*mine)).one_or_none()
        data = None if row is None else row.data
        if row is not None and row.uri is not None and self._store.payloads is not None:
            data = self._store.payloads.read(row.uri)
        if data is None or len(data) != self.files.record_bytes:
            return False
        self.files.put_record(number, data)
        self._here.add(number)
        return True

    def tail(self, uri: str | None) -> bytes | bytearray | None:
        """The tail of the last commit; None when its object is gone."""
        if uri is not None:
            return None if self._store.payloads is None else self._store.payloads.read(uri)
        return b"".join(self._parts())

    def tail_sha256(self, uri: str | None) -> bytes | None:
        """Its digest, a part in RAM at a time."""
        if uri is not None:
            return None if self._store.payloads is None else self._store.payloads.sha256(uri)
        digest = hashlib.sha256()
        for part in self._parts():
            digest.update(part)
        return digest.digest()

    @contextmanager
    def keep(self, first: int, last: int, tail: Bytes) -> Iterator[Kept]:
        """Write what belongs in the bucket; the rest is left to the transaction."""
        bucket, written = self._store.payloads, dict[int, str]()
        tail_uri = None
        try:
            if bucket is not None and self.files.record_bytes > INLINE_MAX:
                for start in range(first, last, AT_ONCE):
                    some = {number: self._place("record") for number in range(start, min(start + AT_ONCE, last))}
                    written |= some
                    bucket.write([(uri, self._record(number)) for number, uri in some.items()])
            if bucket is not None and memoryview(tail).nbytes > INLINE_MAX:
                tail_uri = self._place("tail")
                bucket.write([(tail_uri, tail)])
            yield Kept(tail_uri, lambda connection: self._insert(connection, first, last, written, tail_uri, tail))
        except StoreUnavailable:  # perhaps nobody knows whether rows name them; the sweep does, later
            raise
        except BaseException:
            self._store.discard([*written.values(), *([tail_uri] if tail_uri else [])])
            raise
        self._n_committed = last
        self._here.update(range(first, last))

    def left_over(self, tail_uri: str | None) -> list[str]:
        """None: a writer that dies leaves no rows, and its objects to the sweep."""
        return []

    @retried
    def lock(self) -> bool:
        """A lock of the server's, which releases it when the process dies. Politeness: generations decide."""
        release = self._database.hold(stream_folder(self._key))
        if release is None:
            return False
        self._release = weakref.finalize(self, release)
        self._release.atexit = False  # the server sees us go
        return True

    def unlock(self) -> None:
        """Let others write."""
        if self._release is not None:
            self._release()
            self._release = None

    def close(self) -> None:
        """Let others write, and the copy go."""
        self.unlock()
        self.files.close()

    def _place(self, what: str) -> str:
        return f"{stream_folder(self._key)}/{secrets.token_hex(12)}.{what}"

    def _record(self, number: int) -> bytearray:
        data = self.files.read(number, 0, self.files.record_bytes)
        if data is None:
            raise StoreError(f"the copy of a stream in {tempfile.gettempdir()} is damaged; nothing was stored")
        return data

    def _insert(
        self,
        connection: sa.Connection,
        first: int,
        last: int,
        written: dict[int, str],
        tail_uri: str | None,
        tail: Bytes,
    ) -> None:
        mine = {"stream_id": self._key, "space_id": self._space_id}
        for number in range(first, last):  # one by one: a batch would be in RAM whole
            uri = written.get(number)
            data = None if uri else bytes(self._record(number))
            values = mine | {"number": number, "entry": bytes(self.files.entries(number, 1) or b"")}
            connection.execute(sa.insert(StreamRecord).values(values | {"uri": uri, "data": data}))
        connection.execute(sa.delete(StreamTail).where(StreamTail.stream_id == self._key))
        view = memoryview(tail).cast("B")
        for part, start in enumerate(range(0, 0 if tail_uri else len(view), PART)):
            values = mine | {"part": part, "data": bytes(view[start : start + PART])}
            connection.execute(sa.insert(StreamTail).values(values))

    def _parts(self) -> Iterator[bytes]:
        number = 0
        while (part := self._part(number)) is not None:
            yield part
            number += 1

    @retried
    def _part(self, number: int) -> bytes | None:
        query = sa.select(StreamTail.data).where(StreamTail.stream_id == self._key, StreamTail.part == number)
        with self._read() as connection:
            return connection.scalar(query)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._database.read() as connection:
            see_space(connection, self._space_id)
            yield connection

"""A session's stream: its whole context as records of KV, for a recipe that reads beyond the window (``infllm``).

The store knows no tensors: a record, an index entry and the tail are bytes of the engine's own layout, and lie where
``stream_home.py`` says. What counts as stored is the row; files may be longer (a process died in between), and are cut
before the next append. Like all KV a stream is a cache of text: one that is damaged, foreign or gone begins anew,
empty, and is encoded again.
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import sqlalchemy as sa

from agentmem.errors import Closed, InvalidInput, PayloadDamaged, StoreBusy, StoreError, StoreFull, StreamChanged
from agentmem.records import Scope
from agentmem.store import expiry, tally, tidying, writing
from agentmem.store.engine import no_space
from agentmem.store.inputs import check_int, check_meta, now_us
from agentmem.store.places import find_place, see_space
from agentmem.store.retry import retried
from agentmem.store.schema import KVTrash, StreamRow
from agentmem.store.stream_files import Bytes
from agentmem.store.stream_home import Kept, StreamHome

if TYPE_CHECKING:
    from agentmem.store.store import Store

MAX_STREAM_META = 16 * 2**20
"""Longest ``meta`` of a stream, in bytes of JSON."""


@dataclass(frozen=True)
class Committed:
    """What the row of a stream says."""

    generation: int
    n_records: int
    n_tokens: int
    index_crc32: int
    tail_uri: str | None
    tail_sha256: bytes | None
    meta: dict[str, Any]


class StoredStream:
    """One session's stream, opened. Safe to share between threads; of several processes one at a time appends.

    The first ``append`` or ``commit`` makes this process the stream's writer, until ``commit``, ``rollback`` or
    ``close``. Ask ``is_current`` before a turn: it is False once the stream was continued elsewhere, or dropped
    because something of its session was forgotten. Its blocks must not be read then; open the session again.

    Any call may raise StoreUnavailable when the store is on PostgreSQL and the server or the bucket does not answer;
    of a commit that ends so, the message says whether it is known to have failed.
    """

    def __init__(
        self,
        store: Store,
        key: int,
        space_id: int,
        scope: Scope,
        session: str,
        home: StreamHome,
        committed: Committed,
        why_empty: str | None,
    ):
        self.session = session
        self.why_empty = why_empty
        """Why nothing of a stream that was stored could be used; None when it is simply new, or not empty."""
        self._store = store
        self._key = key
        self._space_id = space_id
        self._scope = scope
        self._home = home
        self._files = home.files
        self._committed = committed
        self._n_records = committed.n_records
        self._crc32 = committed.index_crc32
        self._lock = threading.RLock()
        self._writing = False
        self._closed = False
        self._pid = os.getpid()
        self.patience = store.patience  # for retry.py
        store.streams.add(self)

    @property
    def record_bytes(self) -> int:
        """Bytes of one record."""
        return self._files.record_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of one index entry."""
        return self._files.index_bytes

    @property
    def n_records(self) -> int:
        """Records that can be read, those that are not committed yet included."""
        return self._n_records

    @property
    def n_tokens(self) -> int:
        """Tokens of the stream as of the last commit, its tail included."""
        return self._committed.n_tokens

    @property
    def meta(self) -> dict[str, Any]:
        """What the last commit noted."""
        return self._committed.meta

    @retried
    def is_current(self) -> bool:
        """True while the stream stored is the one that was opened or last committed here, and nothing of it expired."""
        with self._store.database.read() as connection:
            see_space(connection, self._space_id)
            if expiry.in_session_of(connection, self._key, now_us()):
                return False
            generation = connection.scalar(sa.select(StreamRow.generation).where(StreamRow.id == self._key))
        return generation == self._committed.generation

    def tail(self) -> bytes | bytearray | None:
        """The tail of the last commit; None before the first.

        Raises:
            StreamChanged: another process replaced or dropped it.
            PayloadDamaged: it is not what was written; the stream was dropped.
        """
        with self._open():
            if self._committed.tail_sha256 is None:
                return None
            data = self._home.tail(self._committed.tail_uri)
            if data is None or hashlib.sha256(data).digest() != self._committed.tail_sha256:
                self._damaged("its tail")
            return data

    def index(self) -> bytearray:
        """All index entries, one after the other: ``n_records * index_bytes`` bytes, read from the file each time.

        Raises:
            PayloadDamaged: they are not what was written; the stream was dropped.
        """
        with self._open():
            found = self._files.index(self._n_records, self._crc32)
            if found is None:
                self._damaged("its index")
            return found

    def read(self, number: int, offset: int = 0, length: int | None = None) -> bytearray:
        """``length`` bytes of record ``number`` from ``offset`` (None: to its end), in a buffer of the caller's own.

        Raises:
            InvalidInput: there is no such record or slice.
            PayloadDamaged: it is not what was written; the stream was dropped.
        """
        check_int(number, "number", 0, max(self._n_records - 1, 0))
        check_int(offset, "offset", 0, self.record_bytes)
        length = self.record_bytes - offset if length is None else length
        check_int(length, "length", 0, self.record_bytes - offset)
        with self._open():
            if number >= self._n_records:
                raise InvalidInput(f"there is no record {number}; the stream has {self._n_records}")
            with self._disk():
                there = self._home.fetch(number)
            data = self._files.read(number, offset, length) if there else None
            if data is None:
                self._damaged(f"record {number}")
            return data

    def append(self, record: Bytes, index: Bytes) -> None:
        """Write one more record and its index entry. Both can be read here at once, and are kept by ``commit``.

        Raises:
            InvalidInput: not bytes of the sizes agreed; nothing was written.
            StoreBusy: another writer (process, or stream object) has appended and not committed yet.
            StreamChanged: the stream was continued elsewhere, or dropped; open it again.
            StoreFull: no room on the disk or in the KV budget; the records before are still there.
        """
        _check_bytes(record, "record", self.record_bytes)
        _check_bytes(index, "index", self.index_bytes)
        with self._open():
            self._begin()
            self._check_budget((self._n_records + 1) * self._files.nbytes_each)
            with self._disk():
                entry = self._files.write(self._n_records, record, index)
            self._crc32 = zlib.crc32(entry, self._crc32)
            self._n_records += 1

    def commit(self, tail: Bytes, n_tokens: int, meta: Mapping[str, Any]) -> None:
        """Make what was appended last, with a new tail: files first, then one transaction.

        After a kill at any moment the stream is as of the last commit that returned, or of this one. Streams and KV
        of others are evicted when the KV budget asks for it, this one never.

        Args:
            tail: whatever else it takes to go on.
            n_tokens: length of the stream, the tail's tokens included.
            meta: plain JSON, at most 16 MiB.

        Raises:
            InvalidInput, StoreBusy, StreamChanged, StoreFull: as ``append``. Not committed; except after
                StreamChanged it can be tried again.
        """
        _check_bytes(tail, "tail", None)
        check_int(n_tokens, "n_tokens", 0, 2**62)
        noted = check_meta(meta, MAX_STREAM_META)
        with self._open():
            self._begin()
            old = self._committed
            nbytes = self._n_records * self._files.nbytes_each + memoryview(tail).nbytes
            self._check_budget(nbytes)
            digest = hashlib.sha256(tail).digest()
            try:
                with self._disk(), self._home.keep(old.n_records, self._n_records, tail) as kept:
                    new = Committed(
                        old.generation + 1, self._n_records, n_tokens, self._crc32, kept.tail_uri, digest, noted
                    )
                    self._record(kept, old, new, nbytes)
            except StreamChanged:
                self.close()
                raise
            self._committed = new
            self._end()
        self._store.drain_trash()

    def rollback(self) -> None:
        """Forget what was appended since the last commit, and let others write."""
        with self._open():
            if self._writing:
                self._n_records, self._crc32 = self._committed.n_records, self._committed.index_crc32
                with self._disk():
                    self._files.cut(self._n_records)
                self._end()

    def drop(self) -> None:
        """Remove the stream from the store, and close it."""
        with self._lock:
            self._drop()
            self.close()
        self._store.drain_trash()

    def close(self) -> None:
        """Close the files; what was not committed is lost. Closing twice is fine."""
        with self._lock:
            self._closed = True
            self._home.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Closed(f"the stream of session {self.session!r} was closed; open it again")
            yield

    def _begin(self) -> None:
        """Become the stream's writer, unless we are, and leave nothing behind the last commit."""
        if self._writing:
            return
        if os.getpid() != self._pid:
            raise StreamChanged(f"the stream of session {self.session!r} was opened before a fork; open it again")
        if not self._home.lock():
            raise StoreBusy(f"session {self.session!r} is being written by another process; try again when it is done")
        try:
            if not self.is_current():
                self.close()
                raise self._changed()
            self._clear()
        except BaseException:
            if not self._closed:
                self._home.unlock()
            raise
        self._writing = True

    def _end(self) -> None:
        self._writing = False
        self._home.unlock()

    def _clear(self) -> None:
        """Remove what a writer left that was killed before its commit. Our lock means that none is under way."""
        n_records, tails = self._committed.n_records, self._home.left_over(self._committed.tail_uri)
        if not tails and not self._files.longer_than(n_records):
            return
        # Its transaction may be whole in the log and not yet visible: when every process dies, recovery would find it,
        # and its row would name the bytes that are removed here. A commit of ours takes its place in the log.
        new = replace(self._committed, generation=self._committed.generation + 1)
        with self._store.write() as connection:
            find_place(connection, self._scope)
            self._set(connection, self._committed, generation=new.generation)
        self._committed = new
        with self._disk():
            self._files.cut(n_records)
        if self._store.payloads is not None:
            self._store.payloads.unlink(*tails)

    @retried
    def _record(self, kept: Kept, old: Committed, new: Committed, nbytes: int) -> None:
        """The transaction of a commit."""
        now = now_us()
        with self._store.write() as connection:
            find_place(connection, self._scope)
            self._set(connection, old, **vars(new), nbytes=nbytes, updated_us=now)
            kept.insert(connection)
            if old.tail_uri is not None:
                connection.execute(sa.insert(KVTrash).values(uri=old.tail_uri))
            tidying.enforce(connection, self._store.policy, self._space_id, now, keep=self._key)

    @retried
    def _drop(self) -> None:
        with self._store.write() as connection:
            find_place(connection, self._scope)
            writing.drop_streams(connection, StreamRow.id == self._key)

    def _set(self, connection: sa.Connection, old: Committed, **values: Any) -> None:
        mine = (StreamRow.id == self._key, StreamRow.generation == old.generation)
        before = connection.scalar(sa.select(StreamRow.nbytes).where(*mine))
        if before is None or not connection.execute(sa.update(StreamRow).where(*mine).values(values)).rowcount:
            raise self._changed()
        tally.change(connection, self._space_id, kv_bytes=values.get("nbytes", before) - before)

    def _check_budget(self, nbytes: int) -> None:
        """A stream that is over the budget all alone is refused: evicting the others would not help."""
        policy = self._store.policy
        budget = min((b for b in (policy.space_kv_bytes, policy.total_kv_bytes) if b is not None), default=nbytes)
        if nbytes > budget:
            raise StoreFull(
                f"the stream of session {self.session!r} would take {nbytes:,} bytes, the KV budget is {budget:,}; "
                "raise space_kv_bytes and total_kv_bytes of the EvictionPolicy, or begin another session"
            )

    def _changed(self) -> StreamChanged:
        return StreamChanged(
            f"the stream of session {self.session!r} was continued by another process, or dropped because something "
            "of its session was forgotten; nothing was written: open it again"
        )

    def _damaged(self, what: str) -> NoReturn:
        if not self.is_current():
            self.close()
            raise self._changed()
        self.drop()
        raise PayloadDamaged(
            f"{what} of the stream of session {self.session!r} is damaged; the stream was dropped: open it again and "
            "encode the session's text anew"
        )

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if no_space(error):
                raise StoreFull(
                    f"no room to write the stream of session {self.session!r}; free some space and try again"
                ) from error
            raise StoreError(
                f"cannot write the stream of session {self.session!r} ({error}); check the disk and its permissions"
            ) from error


def _check_bytes(data: object, what: str, size: int | None) -> None:
    if not isinstance(data, Bytes):
        raise InvalidInput(f"{what} must be bytes, not {type(data).__name__}")
    if size is not None and memoryview(data).nbytes != size:
        raise InvalidInput(f"{what} must be of {size} bytes, as the stream was opened for, not {len(data)}")

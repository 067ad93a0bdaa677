"""The bytes of one stream: a file of fixed-size records, and one of their index entries and checksums. Append-only.

Records are read by pread, never mapped: the pages of a mapping would count as this process's memory. Beside the two
lie the tails (one, but for a commit in progress), which ``PayloadFiles`` writes and reads.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
import zlib
from pathlib import Path
from typing import Self

import numpy as np

if sys.platform != "win32":
    import fcntl

PIECE = 32 * 1024
"""Bytes under one checksum (CRC-32): a slice is read with the rest of its first and of its last piece."""

_AT_ONCE = 4 * 2**20  # bytes of index read in one go

Bytes = bytes | bytearray | memoryview


class StreamFiles:
    """Two open files. Not safe to share between threads: ``StoredStream`` holds a lock around every call.

    An index entry on disk is the caller's ``index_bytes``, then the checksum of each piece of the record.
    """

    def __init__(self, records: int, index: int, record_bytes: int, index_bytes: int):
        self._records = records
        self._index = index
        self.record_bytes = record_bytes
        self.index_bytes = index_bytes
        self._sums_bytes = 4 * -(-record_bytes // PIECE)
        self._sums = bytearray()
        """Checksums of the records written or loaded so far."""
        self._close = weakref.finalize(self, _close, records, index)

    @classmethod
    def open(cls, folder: Path | None, record_bytes: int, index_bytes: int, *, create: bool) -> Self:
        """The files of a folder; of None, two that have no name and go when they are closed.

        Raises:
            FileNotFoundError: one is missing and ``create`` is False, or there is no such folder.
            OSError: they cannot be read and written.
        """
        if folder is None:
            return cls(_unnamed(), _unnamed(), record_bytes, index_bytes)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        records = os.open(folder / "records", flags, 0o600)
        try:
            index = os.open(folder / "index", flags, 0o600)
        except OSError:
            os.close(records)
            raise
        return cls(records, index, record_bytes, index_bytes)

    @property
    def nbytes_each(self) -> int:
        """Bytes on disk of one record and its index entry."""
        return self.record_bytes + self._entry_bytes

    @property
    def _entry_bytes(self) -> int:
        return self.index_bytes + self._sums_bytes

    def longer_than(self, n_records: int) -> bool:
        """True when there are bytes behind so many records."""
        return (
            os.fstat(self._records).st_size > n_records * self.record_bytes
            or os.fstat(self._index).st_size > n_records * self._entry_bytes
        )

    def holds(self, n_records: int) -> bool:
        """True when neither file is shorter than so many records."""
        return (
            os.fstat(self._records).st_size >= n_records * self.record_bytes
            and os.fstat(self._index).st_size >= n_records * self._entry_bytes
        )

    def load(self, n_records: int) -> int | None:
        """Load the checksums of the first ``n_records``. Returns the CRC-32 of their entries; None: file too short."""
        self._sums, running = bytearray(), 0
        for start, count in self._batches(n_records):
            entries = self.entries(start, count)
            if entries is None:
                return None
            running = zlib.crc32(entries, running)
            self._sums += _columns(entries, count)[:, self.index_bytes :].tobytes()
        return running

    def index(self, n_records: int, crc32: int) -> bytearray | None:
        """The caller's part of the first ``n_records`` entries, one after the other; None: not what ``crc32`` is of."""
        found, running = bytearray(n_records * self.index_bytes), 0
        for start, count in self._batches(n_records):
            entries = self.entries(start, count)
            if entries is None:
                return None
            running = zlib.crc32(entries, running)
            part = _columns(entries, count)[:, : self.index_bytes].tobytes()
            found[start * self.index_bytes : start * self.index_bytes + len(part)] = part
        return found if running == crc32 else None

    def write(self, number: int, record: Bytes, index: Bytes) -> bytes:
        """Write record ``number``, the one after the last, and its entry. Returns the entry.

        Raises:
            OSError: no room, or the disk refused.
        """
        view = memoryview(record).cast("B")
        sums = [zlib.crc32(view[at : at + PIECE]) for at in range(0, len(view), PIECE)]
        packed = np.array(sums, "<u4").tobytes()
        entry = bytes(index) + packed
        _write(self._records, view, number * self.record_bytes)
        _write(self._index, memoryview(entry), number * self._entry_bytes)
        self._sums[number * self._sums_bytes :] = packed
        return entry

    def entries(self, start: int, count: int) -> bytearray | None:
        """``count`` entries as they are on disk, one after the other; None when the file ends before."""
        return _read(self._index, count * self._entry_bytes, start * self._entry_bytes)

    def put_entries(self, start: int, entries: Bytes) -> None:
        """Write entries that ``entries`` read elsewhere, of records that are put later. ``load`` makes them count."""
        _write(self._index, memoryview(entries).cast("B"), start * self._entry_bytes)

    def put_record(self, number: int, record: Bytes) -> None:
        """Write a record whose entry is there."""
        _write(self._records, memoryview(record).cast("B"), number * self.record_bytes)

    def read(self, number: int, offset: int, length: int) -> bytearray | None:
        """A slice of a record, in a buffer of the caller's own. None: it is not what was written."""
        first, last = offset // PIECE, -(-(offset + length) // PIECE)
        start, end = first * PIECE, min(last * PIECE, self.record_bytes)
        data = _read(self._records, end - start, number * self.record_bytes + start)
        if data is None:
            return None
        at = number * self._sums_bytes
        sums = np.frombuffer(bytes(self._sums[at + 4 * first : at + 4 * last]), "<u4")
        view = memoryview(data)
        if any(zlib.crc32(view[i * PIECE : (i + 1) * PIECE]) != sums[i] for i in range(last - first)):
            return None
        return data if len(data) == length else data[offset - start : offset - start + length]

    def cut(self, n_records: int) -> None:
        """Forget every record after the first ``n_records``."""
        os.ftruncate(self._records, n_records * self.record_bytes)
        os.ftruncate(self._index, n_records * self._entry_bytes)
        del self._sums[n_records * self._sums_bytes :]

    def sync(self) -> None:
        """Return when everything written is durable."""
        os.fsync(self._records)
        os.fsync(self._index)

    def lock(self) -> bool:
        """Become the only writer; False when there is another one. The kernel releases it when the process dies."""
        if sys.platform != "win32":
            try:
                fcntl.flock(self._records, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def unlock(self) -> None:
        """Let others write."""
        if sys.platform != "win32":
            fcntl.flock(self._records, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close both. Closing twice is fine."""
        self._close()

    def _batches(self, n_records: int) -> list[tuple[int, int]]:
        """(first, count) of index entries to be read at once."""
        step = max(1, _AT_ONCE // self._entry_bytes)
        return [(start, min(step, n_records - start)) for start in range(0, n_records, step)]


def _columns(entries: bytearray, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.frombuffer(entries, np.uint8).reshape(count, -1)


def _read(handle: int, length: int, at: int) -> bytearray | None:
    """So many bytes, or None when the file ends before."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        count = os.preadv(handle, [view[done:]], at + done)
        if not count:
            return None
        done += count
    return data


def _write(handle: int, data: memoryview, at: int) -> None:
    while data:
        count = os.pwrite(handle, data, at)
        data, at = data[count:], at + count


def _unnamed() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _close(*handles: int) -> None:
    for handle in handles:
        os.close(handle)

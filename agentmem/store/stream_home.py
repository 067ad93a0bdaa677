"""Where the bytes of a stream are stored: in files beside the database, or (``postgres/streams.py``) in its rows.

Both are read through open ``StreamFiles``: those that are stored themselves, or a copy on this machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import sqlalchemy as sa

from agentmem.store.stream_files import Bytes, StreamFiles
from agentmem.store.writing import stream_folder

if TYPE_CHECKING:
    from agentmem.store.store import Store


@dataclass(frozen=True)
class Kept:
    """A commit that is whole and durable but for its rows."""

    tail_uri: str | None
    insert: Callable[[sa.Connection], None]
    """Writes the rows that hold or name its bytes, if there are any, once the stream's own row is written."""


class StreamHome(Protocol):
    """The stored bytes of one stream. Not safe to share between threads: ``StoredStream`` holds a lock."""

    @property
    def files(self) -> StreamFiles:
        """What is read and written."""

    def load(self, n_records: int) -> str | None:
        """Have the index entries of the first ``n_records`` in the files; or say what is missing."""

    def fetch(self, number: int) -> bool:
        """Have a committed record in the files. False: it is gone."""

    def tail(self, uri: str | None) -> bytes | bytearray | None:
        """The tail of the last commit."""

    def tail_sha256(self, uri: str | None) -> bytes | None:
        """Its digest; the tail need not fit into RAM."""

    def keep(self, first: int, last: int, tail: Bytes) -> AbstractContextManager[Kept]:
        """Make records ``first`` to ``last`` (not included) and a tail durable; removed again when the block raises."""

    def left_over(self, tail_uri: str | None) -> list[str]:
        """Uris of tails that nobody committed."""

    def lock(self) -> bool:
        """Become the only writer; False when there is another one. Ends with the process."""

    def unlock(self) -> None:
        """Let others write."""

    def close(self) -> None:
        """Close the files and let others write. Closing twice is fine."""


class FileHome:
    """A folder of the store; or, of a store in memory, two files without a name and a tail in RAM."""

    def __init__(self, store: Store, key: int, files: StreamFiles):
        self.files = files
        self._store = store
        self._folder = stream_folder(key)
        self._tail: bytes | None = None

    def load(self, n_records: int) -> str | None:
        """The files are what is stored; they may be too short."""
        return None if self.files.holds(n_records) else "its files are shorter than what was committed"

    def fetch(self, number: int) -> bool:
        """Always there."""
        return True

    def tail(self, uri: str | None) -> bytes | bytearray | None:
        """The tail of the last commit; None when its file is gone."""
        return self._tail if uri is None or self._store.files is None else self._store.files.read(uri)

    def tail_sha256(self, uri: str | None) -> bytes | None:
        """Digest of the tail's file; None when it is gone."""
        return None if uri is None or self._store.files is None else self._store.files.sha256(uri)

    @contextmanager
    def keep(self, first: int, last: int, tail: Bytes) -> Iterator[Kept]:
        """Sync what was appended, and write the tail."""
        if self._store.files is None:
            yield Kept(None, _nothing)
            self._tail = bytes(tail)
            return
        uri = f"{self._folder}/{secrets.token_hex(6)}.tail"
        try:
            self.files.sync()
            self._store.files.write([(uri, tail)])  # its folder is synced, with the names of the other files
            yield Kept(uri, _nothing)
        except BaseException:
            self._store.discard([uri])
            raise

    def left_over(self, tail_uri: str | None) -> list[str]:
        """Tails in the folder but the committed one."""
        inside = [] if self._store.files is None else self._store.files.inside(self._folder)
        return [uri for uri in inside if ".tail" in uri and uri != tail_uri]

    def lock(self) -> bool:
        """A lock on the file of records; the kernel releases it when the process dies."""
        return self.files.lock()

    def unlock(self) -> None:
        """Let others write."""
        self.files.unlock()

    def close(self) -> None:
        """Close the files."""
        self.files.close()


def _nothing(connection: sa.Connection) -> None:
    """The files are all there is."""

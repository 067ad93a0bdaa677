"""One SQLite file: driver, connections, transactions, and the queue that writers stand in.

Writers take a file lock, then ``BEGIN IMMEDIATE``: SQLite's own busy handler sleeps without a queue, so that one hot
writer starves the others. Readers take neither; they see the snapshot of their first statement.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import sqlite_vec
from pysqlite3 import dbapi2 as driver
from sqlalchemy.pool import StaticPool

from agentmem.errors import StoreBusy, StoreError, StoreFull, StoreOpenError
from agentmem.store.connections import Connections

if sys.platform != "win32":
    import fcntl

APPLICATION_ID = 0x61674D4D
"""``agMM`` in the file header: a database of another program is refused before anything is written to it."""

OLDEST_SQLITE = (3, 51, 3)
"""Earlier versions can corrupt a WAL database that two connections checkpoint at once (sqlite.org/wal.html)."""

PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",
    "cache_size=-65536",
    "mmap_size=2147418112",  # the most that SQLite maps
    "journal_size_limit=67108864",
    "temp_store=MEMORY",
)

# Primary result codes of SQLite (sqlite.org/rescode.html).
_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _NOTADB = 5, 6, 8, 10, 11, 13, 26
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def check_driver(version: tuple[int, ...] = driver.sqlite_version_info) -> None:
    """Refuse a SQLite that is too old.

    Raises:
        StoreOpenError: the linked SQLite is older than 3.51.3.
    """
    if version < OLDEST_SQLITE:
        found, needed = (".".join(map(str, v)) for v in (version, OLDEST_SQLITE))
        raise StoreOpenError(
            f"SQLite {found} can corrupt a store that several processes write; {needed} or newer is needed: "
            "upgrade the pysqlite3 package"
        )


def no_space(error: OSError) -> bool:
    """True when the operating system refused a write for lack of room."""
    return error.errno in _NO_SPACE


def refused(error: OSError, path: Path) -> StoreError:
    """The exception that users see when the operating system refuses a file of the store."""
    if no_space(error):
        return StoreFull(f"no room for {path} ({error}); nothing was changed: free some space and try again")
    return StoreError(f"cannot open {path} ({error}); check its permissions, and how many files are open")


def translate(error: Exception, where: str) -> StoreError:
    """The exception that users see for a driver error; ``where`` names the file."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    primary, text = code & 0xFF, str(error)
    if primary in (_BUSY, _LOCKED):
        return StoreBusy(f"{where} is locked by another process ({text}); try again")
    if primary == _FULL:
        return StoreFull(f"no room to write {where} ({text}); nothing was changed: free some space and try again")
    if primary == _IOERR:  # the driver does not say which; a quota and a file-size limit end here too
        return StoreError(f"the disk refused {where} ({text}); nothing was changed: check the disk, quota and limits")
    if primary in (_CORRUPT, _NOTADB):
        return StoreError(f"{where} is damaged ({text}); restore a backup, or export what can be read")
    if primary == _READONLY:
        return StoreError(f"{where} cannot be written ({text}); check the file's permissions")
    return StoreError(f"{where}: {text}")


class FileLock:
    """An advisory lock on ``<db>.lock``, released by the kernel when its holder dies."""

    def __init__(self, path: Path, timeout: float):
        self.path = path
        self.timeout = timeout

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            StoreBusy: another process held it for longer than the timeout.
        """
        if sys.platform == "win32":
            yield  # SQLite's own lock still holds; only the fair queue is missing.
            return
        try:
            handle = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise refused(error, self.path) from error
        try:
            deadline = time.monotonic() + self.timeout
            pause = 0.0005
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    raise StoreBusy(
                        f"{self.path} was held by another process for more than {self.timeout:g} s; "
                        "try again, or open the store with a longer lock_timeout"
                    )
                time.sleep(pause)
                pause = min(pause * 2, 0.01)
            try:
                yield
            finally:
                # Explicit: a child forked meanwhile shares this open file and would keep the lock alive.
                fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            os.close(handle)


class Database(Connections):
    """Connections to one file, or to one throwaway database in RAM (``path=None``)."""

    _errors = (sa.exc.DBAPIError, driver.Error)  # the latter of statements that go past SQLAlchemy

    def __init__(self, path: Path | None, lock_timeout: float):
        check_driver()
        super().__init__(str(path) if path else "the store in memory", lock_timeout)
        self.path = path
        # One connection in RAM cannot run two transactions at once; for a file this only queues our own writers.
        self._mutex = threading.RLock()
        self._depth = 0
        self._schema_version: int | None = None
        self._on_new_schema: Callable[[sa.Connection], None] | None = None
        self._file_lock = FileLock(Path(f"{path}.lock"), lock_timeout) if path else None
        url = sa.URL.create("sqlite", database=str(path) if path else ":memory:")
        arguments: dict[str, Any] = {"isolation_level": None, "timeout": lock_timeout, "check_same_thread": False}
        if path:
            self._engine = sa.create_engine(url, module=driver, connect_args=arguments)
        else:
            self._engine = sa.create_engine(url, module=driver, connect_args=arguments, poolclass=StaticPool)
        sa.event.listen(self._engine, "connect", _prepare)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(write=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: one snapshot.

        Raises:
            Closed: after close().
            StoreError: the database cannot be read.
        """
        mutex = nullcontext() if self.path else self._exclusive()
        with self._guard(), mutex, self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction, committed when the block ends and rolled back when it raises.

        Raises:
            Closed: after close().
            StoreBusy: another process held the lock for too long.
            StoreFull: no room; rolled back.
            StoreError: the database cannot be written.
        """
        with self._guard(), self.lock(), self._writer.begin() as connection:
            self._look_at_schema(connection)
            yield connection

    def watch_schema(self, check: Callable[[sa.Connection], None]) -> None:
        """Have ``check`` called in the first write after anything changed the schema; it may refuse by raising."""
        self._on_new_schema = check

    def _look_at_schema(self, connection: sa.Connection) -> None:
        """Another process may have migrated the file under us: SQLite counts the changes of a schema."""
        if self._on_new_schema is None:
            return
        version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
        if version != self._schema_version:
            self._on_new_schema(connection)
            self._schema_version = version

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The writers' lock alone. A thread that holds it may take it again (and write)."""
        with self._exclusive():
            if self._file_lock is None or self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            with self._file_lock():
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1

    def checkpoint(self, wait: float = 2.0) -> bool:
        """Move everything from the write-ahead log into the file and empty the log.

        Until it has succeeded, deleted content can still be read from the file's old pages.

        Returns:
            False when a reader of an old snapshot stood in the way for ``wait`` seconds.
        """
        if self.path is None:
            return True
        deadline = time.monotonic() + wait
        with self._guard(), self.lock():
            raw = self._engine.raw_connection()
            try:
                cursor = raw.cursor()
                cursor.execute("PRAGMA busy_timeout=0")
                try:
                    while cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                        if time.monotonic() > deadline:
                            return False
                        time.sleep(0.01)
                finally:
                    cursor.execute(f"PRAGMA busy_timeout={int(self.lock_timeout * 1000)}")
                    cursor.close()
            finally:
                raw.close()
        return True

    def _translate(self, error: Exception) -> StoreError:
        original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        return translate(original if isinstance(original, Exception) else error, self.name)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One thread of this process at a time."""
        if not self._mutex.acquire(timeout=self.lock_timeout):
            raise StoreBusy(f"{self.name} was held by another thread for more than {self.lock_timeout:g} s; try again")
        try:
            yield
        finally:
            self._mutex.release()

    def _forget_parent(self) -> None:
        """Closing them would drop the parent's locks."""
        self._engine.dispose(close=False)
        self._mutex = threading.RLock()
        self._depth = 0


def _prepare(connection: Any, _record: object) -> None:
    try:
        connection.enable_load_extension(True)
        connection.load_extension(sqlite_vec.loadable_path())
        connection.enable_load_extension(False)
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except driver.Error:
        connection.close()
        raise


def _begin(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

"""One PostgreSQL database: connections, transactions, and what its errors mean.

Readers see one snapshot (REPEATABLE READ, read only). Writers are READ COMMITTED: whoever writes to a space holds the
lock on its row (``places.find_place``), so that writers of one space queue and those of different spaces do not.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import sqlalchemy as sa

from agentmem.errors import StoreBusy, StoreError, StoreFull, StoreOpenError, StoreUnavailable
from agentmem.store.connections import Connections
from agentmem.store.retry import Disconnected, RolledBack

SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")

_LOCK = 0x61674D4D
"""Key of the advisory lock under which the schema is created and migrated."""

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_AGAIN = {"40001", "40P01", "23505"}
"""Serialisation failure, deadlock, and a unique key that another writer was quicker to insert: the next try sees it."""
_GONE = {"57P01", "57P02", "57P03", "25P03", "08000", "08003", "08006", "08001", "08004"}
"""The server shut down, is starting, or the connection failed."""


_OLDER = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND age(backend_xmin) > age(CAST(:now AS xid))"
)
"""Transactions that see rows which were deleted before ``now``: what they see is kept by whoever rewrites a table."""


def is_postgres(where: object) -> bool:
    """True for the address of a PostgreSQL database, as opposed to the path of a file."""
    return isinstance(where, str) and where.startswith(SCHEMES)


def shown(where: str) -> str:
    """An address without its password, to be printed; the path of a file as it is."""
    if not is_postgres(where):
        return where
    try:
        return sa.make_url(where).render_as_string(hide_password=True).replace("+psycopg", "")
    except (sa.exc.ArgumentError, ValueError):
        return "postgresql://..."


def translate(error: sa.exc.DBAPIError, where: str) -> StoreError:
    """The exception that users see for a driver error; ``where`` names the database."""
    code = getattr(error.orig, "sqlstate", None)
    text = (str(error.orig).strip().splitlines() or ["no reason given"])[0]
    if code in _AGAIN:
        return RolledBack(f"{where}: another writer was quicker ({text}); nothing was changed: try again")
    if error.connection_invalidated or code in _GONE or (code is None and isinstance(error, sa.exc.OperationalError)):
        return Disconnected(f"the connection to {where} was lost ({text}); nothing was changed: try again")
    if code == "55P03":
        return StoreBusy(f"{where} was locked by another writer for too long ({text}); nothing was changed: try again")
    if code is not None and code.startswith("53"):
        if code == "53300":
            return StoreBusy(f"{where} has no connection to spare ({text}); try again, or raise max_connections")
        return StoreFull(f"{where} has no room ({text}); nothing was changed: free some space and try again")
    if code == "42501":
        return StoreError(f"{where}: {text}; grant the role what it lacks")
    return StoreError(f"{where}: {text}")


class PostgresDatabase(Connections):
    """Connections to one database. Safe to share between threads; each thread takes its own connection."""

    path = None

    def __init__(self, address: str, lock_timeout: float):
        try:
            url = sa.make_url(address.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
        except (sa.exc.ArgumentError, ValueError) as error:
            raise StoreOpenError(
                "not an address of a PostgreSQL database; it looks like postgresql://user:password@host/database"
            ) from error
        super().__init__(shown(address), lock_timeout)
        self._held = threading.local()
        self._check_schema: Callable[[sa.Connection], None] | None = None
        try:
            self._engine = sa.create_engine(
                url, pool_pre_ping=True, pool_size=8, max_overflow=24, pool_timeout=lock_timeout
            )
        except ModuleNotFoundError as error:
            raise StoreOpenError(
                f'a store on PostgreSQL needs the package {error.name}: pip install "agentmem-kv[postgres]"'
            ) from error
        sa.event.listen(self._engine, "connect", self._prepare)
        self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._writer = self._engine.execution_options(isolation_level="READ COMMITTED", write=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A read transaction: one snapshot.

        Raises:
            Closed: after close().
            Disconnected: the connection was lost; reading again is safe.
            StoreError: the database cannot be read.
        """
        with self._guard(), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction, committed when the block ends and rolled back when it raises.

        Raises:
            Closed: after close().
            RolledBack: another writer was quicker.
            Disconnected: the connection was lost before the commit.
            StoreBusy: another writer held a lock for too long.
            StoreFull: no room; rolled back.
            StoreUnavailable: the connection was lost during the commit; nobody knows whether it happened.
            StoreError: the database cannot be written.
        """
        with self._guard(), self._writer.connect() as connection:
            transaction = connection.begin()
            try:
                if self._check_schema is not None:
                    self._check_schema(connection)
                yield connection
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
            except sa.exc.DBAPIError as error:
                lost = translate(error, self.name)
                if isinstance(lost, Disconnected):
                    raise StoreUnavailable(
                        f"the connection to {self.name} was lost during a commit ({error.orig}); whether it was stored "
                        "is unknown: look, or write the same again (what is there already stays as it is)"
                    ) from error
                raise lost from error

    def watch_schema(self, check: Callable[[sa.Connection], None]) -> None:
        """Have ``check`` called in every write, since another process may have migrated; it may refuse by raising."""
        self._check_schema = check

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The lock under which the schema changes. A thread that holds it may take it again."""
        if getattr(self._held, "depth", 0):
            yield
            return
        options = {"isolation_level": "AUTOCOMMIT"}
        with self._guard(), self._engine.connect().execution_options(**options) as connection:
            connection.execute(sa.select(sa.func.pg_advisory_lock(_LOCK)))
            self._held.depth = 1
            try:
                yield
            finally:
                self._held.depth = 0
                connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))

    def hold(self, name: str) -> Callable[[], None] | None:
        """Take a lock for as long as someone likes; None when somebody else has it. Returns what releases it.

        It has a connection of its own, out of the pool: the server releases the lock when that or the process ends.
        """
        key = sa.func.hashtextextended(sa.func.current_schema().concat(f" {name}"), 0)
        with self._guard(), ExitStack() as stack:
            connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            stack.callback(connection.close)
            connection.detach()
            if not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
                return None
            stack.pop_all()
        owner = os.getpid()

        def release() -> None:
            if os.getpid() != owner:  # a forked child: the connection is its parent's
                return
            with suppress(sa.exc.DBAPIError):  # lost, and the lock with it
                connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))  # closing frees it a little later
            connection.close()

        return release

    def checkpoint(self, wait: float = 2.0) -> bool:
        """False: bytes of dead rows are in the server's files until it overwrites them, or ``rewrite`` does."""
        return False

    def rewrite(self) -> None:
        """Write every table and index anew, so that no file of theirs has a byte of a row that was deleted before.

        A plain VACUUM frees the room of such rows, and leaves their bytes in it and their words in the index.

        Raises:
            StoreBusy: an older transaction may still read what was deleted, or a table was in use for too long.
        """
        tables = sa.text(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
        autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        with self._guard(), autocommit.connect() as connection:
            now = connection.scalar(sa.text("SELECT pg_current_xact_id()::xid::text"))
            deadline = time.monotonic() + self.lock_timeout
            while connection.scalar(_OLDER, {"now": now}):
                if time.monotonic() > deadline:
                    raise StoreBusy(f"an older transaction may still read what was deleted from {self.name}; try again")
                time.sleep(0.01)
            for name in connection.scalars(tables).all():
                connection.exec_driver_sql(f'VACUUM (FULL) "{name}"')

    def size(self) -> int:
        """Bytes of all tables and indexes of this schema."""
        query = sa.text(
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        )
        with self.read() as connection:
            return int(connection.execute(query).scalar_one())

    def _translate(self, error: Exception) -> StoreError:
        assert isinstance(error, sa.exc.DBAPIError)
        return translate(error, self.name)

    def _prepare(self, connection: object, _record: object) -> None:
        with connection.cursor() as cursor:  # type: ignore[attr-defined]  # a psycopg connection
            cursor.execute("SELECT set_config('lock_timeout', %s, false)", (f"{int(self.lock_timeout * 1000)}ms",))
            # What was acknowledged must be on disk, whatever the server's default is.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()  # type: ignore[attr-defined]

    def _forget_parent(self) -> None:
        """Nothing is said to the server on them."""
        self._engine.dispose(close=False)
        self._held = threading.local()

"""The store: one file opened, its handles, and what concerns all scopes at once."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreError, StoreOpenError
from agentmem.records import PendingEmbedding, PruneReport, Role, Scope, Stats, VerifyReport
from agentmem.store import expiry, index, log, objects, opening, tidying, usage, verify, writing
from agentmem.store.engine import Database
from agentmem.store.eviction import EvictionPolicy
from agentmem.store.hot import HotTier
from agentmem.store.inputs import EmbedderId, Vector, check_int, check_vector, from_us, now_us, text_digest
from agentmem.store.objects import PayloadObjects
from agentmem.store.payloads import ORPHAN_AGE, PayloadFiles
from agentmem.store.places import find_place, has_expired, not_expired, see_all
from agentmem.store.postgres.engine import PostgresDatabase, is_postgres
from agentmem.store.retry import retried
from agentmem.store.rows import SLICE
from agentmem.store.schema import Embedding, EmbeddingModel, KVTrash, LogRow, MemoryRow, SchemaMeta, Space
from agentmem.store.scoped import ScopedMemories
from agentmem.store.stats import count_up
from agentmem.store.streams import StoredStream

_log = logging.getLogger("agentmem.store")
_SWEEP_EVERY = timedelta(days=1)

_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """The durable home of memories. Safe to share between threads; several processes may have it open.

    Open it with ``Store.open``, reach memories through ``store.scope(...)``.
    """

    def __init__(self, database: Database | PostgresDatabase, embedder: EmbedderId | None, policy: EvictionPolicy):
        self.database = database
        self.embedder = embedder
        self.policy = policy
        self.files = None if database.path is None else PayloadFiles(Path(f"{database.path}.kv"))
        self.payloads: PayloadFiles | PayloadObjects | None = self.files
        """Where KV payloads live that are not in the database itself; streams have ``files`` only."""
        self.uses = usage.UseBuffer()
        self.model_id: int | None = None
        self.streams: weakref.WeakSet[StoredStream] = weakref.WeakSet()
        self.hot: weakref.WeakSet[HotTier[Any]] = weakref.WeakSet()
        """Tiers of this process that may hold something of this store."""
        self._erasure_due = False
        _stores.add(self)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        embedder: EmbedderId | None = None,
        eviction: EvictionPolicy | None = None,
        lock_timeout: float = 30.0,
        kv_store: str | None = None,
    ) -> Store:
        """Open the store at ``path``, creating it when there is none; ``":memory:"`` for a throwaway one.

        Args:
            path: the database file. Beside it live ``-wal``, ``-shm``, ``.lock`` and the folder ``.kv``. Or the
                address of a PostgreSQL database, ``"postgresql://user:password@host/database"``.
            embedder: whose vectors are added and searched. None: lexical search only.
            eviction: budgets and ageing; defaults in ``EvictionPolicy``.
            lock_timeout: seconds to wait for another process's write.
            kv_store: for a PostgreSQL store, the bucket of larger KV payloads, ``"s3://bucket/prefix"``; None keeps
                them in the database, or in the bucket that the store was given before.

        Raises:
            StoreOpenError: the path cannot be a store; whatever is there was left alone.
            SchemaTooNew: a newer agentmem wrote it.
            StoreBusy: another process is writing and does not stop.
        """
        if embedder is not None and not (embedder.name and 1 <= embedder.dim <= 8192 and embedder.noise > 0):
            raise InvalidInput(f"an embedder needs a name, 1 to 8192 dimensions and some noise, not {embedder}")
        database: Database | PostgresDatabase
        if isinstance(path, str) and is_postgres(path):
            database = PostgresDatabase(path, lock_timeout)
        else:
            if kv_store is not None:
                raise InvalidInput(f"kv_store {kv_store!r} goes with a PostgreSQL store; a file keeps its KV beside it")
            where = None if str(path) == ":memory:" else Path(os.path.abspath(path))
            if where is not None:
                opening.preflight(where)
            database = Database(where, lock_timeout)
        store = cls(database, embedder, eviction or EvictionPolicy())
        try:
            store._begin(kv_store)
        except BaseException as error:
            store.database.close()
            if type(error) is StoreError:
                raise StoreOpenError(str(error)) from error
            raise
        return store

    def _begin(self, kv_store: str | None) -> None:
        if isinstance(self.database, PostgresDatabase):
            opening.reach(self.database)
        with self.database.lock():  # one process creates or migrates; the others find it done
            opening.bring_up_to_date(self.database)
            self.database.watch_schema(opening.refuse_newer)
            self.model_id = self._register_embedder()
            if isinstance(self.database, PostgresDatabase):
                self.payloads = objects.open_bucket(self.database, kv_store)
        self._erasure_due = True  # a process may have died between a delete and its checkpoint
        try:
            self.erase_expired()
        except StoreError as error:  # a full disk, say: nobody sees what has expired, and the store is of use
            _log.warning("what has expired is erased later: %s", error)
        self.drain_trash()
        self._sweep_daily()
        self.finish_erasure(wait=0.0)

    def close(self) -> None:
        """Write what is buffered and close. Closing twice is fine; anything else afterwards raises Closed."""
        if self.database.closed:
            return
        try:
            for stream in list(self.streams):
                stream.close()
            self.flush_uses()
            self.finish_erasure(wait=0.0)
        finally:
            self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def scope(self, scope: Scope) -> ScopedMemories:
        """The memories of one scope. Nothing reached through the handle crosses it."""
        if not isinstance(scope, Scope):
            raise InvalidInput(f"expected a Scope, not {type(scope).__name__}")
        return ScopedMemories(self, scope)

    def log(self, scope: Scope) -> log.ScopedLog:
        """The log of a scope's user and agent: plain values that are no memories."""
        if not isinstance(scope, Scope):
            raise InvalidInput(f"expected a Scope, not {type(scope).__name__}")
        return log.ScopedLog(self, scope)

    @retried
    def spaces(self, user: str | None = None) -> list[Scope]:
        """Every (user, agent), or those of one user, that was ever written to and not forgotten."""
        mine = [] if user is None else [Space.user_key == user]
        with self.database.read() as connection:
            see_all(connection)
            rows = connection.execute(sa.select(Space.user_key, Space.agent_key).where(*mine).order_by(Space.id))
            return [Scope(user=name, agent=agent) for name, agent in rows]

    @retried
    def stats(self) -> Stats:
        """Everything in numbers."""
        self.flush_uses()
        with self.database.read() as connection:
            see_all(connection)
            return count_up(connection, [not_expired(MemoryRow, now_us())], [], self.file_bytes())

    @retried
    def evict(self, *, dry_run: bool = False) -> PruneReport:
        """Bring every space, and the whole, within the budgets of the policy. Runs by itself after each write."""
        self.flush_uses()
        if not dry_run:
            self.erase_expired()
        with self.database.write() as connection:
            report = tidying.enforce(connection, self.policy, None, now_us(), dry_run=dry_run)
        self.drain_trash()
        return report

    @retried
    def vacuum(self) -> bool:
        """Leave no byte of what was forgotten in the store's files. True when that is so.

        In a file every delete does so itself, unless a reader stands in its way. On PostgreSQL every table is written
        anew (VACUUM FULL): each is locked meanwhile, and needs its size in room. The server's log is not the store's.

        Raises:
            StoreBusy: on PostgreSQL, others stood in the way for too long; it is safe to try again.
        """
        self.erase_expired()
        done = self.drain_trash()
        if isinstance(self.database, PostgresDatabase):
            self.database.rewrite()
            return done
        return self.finish_erasure(wait=self.patience, due=True) and done

    def verify(self, *, repair: bool = False) -> VerifyReport:
        """Check the database, indexes, vectors, payload bytes, streams and files.

        With ``repair``: indexes are rebuilt, damaged KV, streams and vectors dropped (the text is the truth; they are
        made anew from it), leftover files removed. Damage of the database itself is reported, never "repaired".
        """
        return verify.verify(self, repair=repair)

    @retried
    def rebuild_indexes(self) -> None:
        """Drop the search indexes and fill them again from the tables."""
        with self.write() as connection:
            see_all(connection)
            index.rebuild(connection)

    @retried
    def pending_embeddings(self, limit: int = 256) -> list[PendingEmbedding]:
        """Memories of any scope without a vector of this store's embedder, oldest first.

        After a change of embedder these are all of them, until they are embedded anew.
        """
        check_int(limit, "limit", 0)
        if self.model_id is None:
            return []
        done = sa.select(Embedding.memory_id).where(
            Embedding.memory_id == MemoryRow.id, Embedding.model_id == self.model_id
        )
        columns = sa.select(MemoryRow.id, MemoryRow.text, MemoryRow.role, MemoryRow.created_us)
        wanted = (~done.correlate(MemoryRow).exists(), not_expired(MemoryRow, now_us()))
        query = columns.where(*wanted).order_by(MemoryRow.id).limit(limit)
        with self.database.read() as connection:
            see_all(connection)
            return [
                PendingEmbedding(key=row.id, text=row.text, role=Role(row.role), created_at=from_us(row.created_us))
                for row in connection.execute(query)
            ]

    @retried
    def put_embeddings(self, embedded: Sequence[tuple[PendingEmbedding, Vector]]) -> int:
        """Store vectors for pending memories, in one transaction.

        Returns:
            How many were stored: memories deleted, changed or embedded meanwhile are passed over.
        """
        if self.embedder is None or self.model_id is None:
            raise InvalidInput("the store was opened without an embedder; give Store.open one")
        checked = [(pending, check_vector(vector, self.embedder.dim)) for pending, vector in embedded]
        fresh: list[tuple[int, int, bytes]] = []
        with self.write() as connection:
            see_all(connection)
            for pending, packed in checked:
                row = connection.execute(
                    sa.select(MemoryRow.space_id, MemoryRow.text_sha256, Embedding.memory_id)
                    .outerjoin(Embedding, (Embedding.memory_id == MemoryRow.id) & (Embedding.model_id == self.model_id))
                    .where(MemoryRow.id == pending.key)
                ).one_or_none()
                known = any(key == pending.key for key, _, _ in fresh)
                if row is None or row.memory_id is not None or row.text_sha256 != text_digest(pending.text) or known:
                    continue
                fresh.append((pending.key, row.space_id, packed))
            writing.store_vectors(connection, self.model_id, fresh)
        return len(fresh)

    # What the handles build on.

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A write transaction that takes the buffered uses along, and erases some of what has expired."""
        if isinstance(self.database, PostgresDatabase):
            # Both may lie in several spaces: to hold the locks of all of them would make writers wait crosswise.
            self.flush_uses()
            self._erase_by_space(self.database)
            with self.database.write() as connection:
                yield connection
            return
        taken: dict[usage.UseKey, float] = {}
        try:
            with self.database.write() as connection:
                expired = expiry.erase(connection, now_us(), most=expiry.MOST)
                taken = self.uses.take()
                usage.credit(connection, taken, self.policy.half_life_us)
                yield connection
        except BaseException:
            self.uses.record(taken.items())
            raise
        if expired:
            self.erase(expired, wait=0.0)

    def erase_expired(self) -> int:
        """Take everything that has expired out of the files; returns how many memories. Nobody saw them any more.

        Each write takes a few along, opening and ``evict`` all of them.
        """
        self._erase_expired_entries()
        total = 0
        while True:
            with self.database.read() as connection:
                see_all(connection)
                left = sa.select(sa.func.count()).select_from(MemoryRow).where(has_expired(MemoryRow, now_us()))
                n = connection.scalar(left)
            if not n:
                return total
            with self.write():
                pass
            total += min(n, expiry.MOST)

    def _erase_expired_entries(self) -> None:
        """Of the log; each write to a log takes that log's along."""
        with self.database.read() as connection:
            see_all(connection)
            if connection.scalar(sa.select(LogRow.space_id).where(has_expired(LogRow, now_us())).limit(1)) is None:
                return
        with self.database.write() as connection:
            see_all(connection)
            connection.execute(sa.delete(LogRow).where(has_expired(LogRow, now_us())))
        self.finish_erasure(wait=0.0, due=True)

    def _erase_by_space(self, database: PostgresDatabase) -> None:
        """Erase some of what has expired, in a transaction for each space."""
        left = expiry.MOST
        with database.read() as connection:
            see_all(connection)
            spaces = expiry.spaces(connection, now_us(), left)
        for scope in spaces:
            with database.write() as connection:
                place = find_place(connection, scope)
                mine = sa.false() if place is None else MemoryRow.space_id == place.space_id
                gone = expiry.erase(connection, now_us(), mine, most=left)
            left -= len(gone)
            if gone:
                self.erase(gone, wait=0.0)
            if left <= 0:
                return

    @property
    def patience(self) -> float:
        """Seconds for which a unit of work that was rolled back is tried again."""
        return self.database.lock_timeout

    def flush_uses(self) -> None:
        """Write buffered uses, if there are any. When that fails they wait: no reader is refused for a count."""
        if not len(self.uses):
            return
        try:
            if isinstance(self.database, PostgresDatabase):
                self._flush_by_space(self.database)
                self._erase_by_space(self.database)
            else:
                with self.write():
                    pass
        except StoreError as error:
            _log.warning("uses are counted later: %s", error)

    def _flush_by_space(self, database: PostgresDatabase) -> None:
        """In a transaction for each space: to hold the locks of several would make writers wait crosswise."""
        left = self.uses.take()
        try:
            for scope in {scope for scope, _, _ in left}:
                mine = {key: share for key, share in left.items() if key[0] == scope}
                with database.write() as connection:
                    usage.credit(connection, mine, self.policy.half_life_us)
                left = {key: share for key, share in left.items() if key[0] != scope}
        finally:
            self.uses.record(left.items())

    def drain_trash(self) -> bool:
        """Remove payloads that no row names any more. False when some are left; the next call tries again.

        Raises nothing: it follows a commit, and what was committed must not look like a failure.
        """
        if self.payloads is None:
            return True
        try:
            with self.database.read() as connection:
                uris = connection.scalars(sa.select(KVTrash.uri)).all()
            self.payloads.unlink(*uris)
            for start in range(0, len(uris), SLICE):
                with self.database.write() as connection:
                    connection.execute(sa.delete(KVTrash).where(KVTrash.uri.in_(uris[start : start + SLICE])))
        except StoreError as error:
            _log.warning("dropped KV is left until later: %s", error)
            return False
        return True

    def erase(self, memories: Sequence[tuple[int, int]], wait: float = 2.0) -> bool:
        """After (turn key, memory key) left the tables: their payloads, then the log. True when no byte is left.

        Raises nothing, as ``drain_trash``.
        """
        done = self.drain_trash()
        if self.payloads is not None:
            try:
                left = [uri for turn_id, key in memories for uri in self.payloads.of_memory(turn_id, key)]
            except StoreError as error:
                _log.warning("KV that a crash left is there until the next sweep: %s", error)
                left, done = [], False
            done = self.discard(left) and done
        return self.finish_erasure(wait=wait, due=True) and done

    def discard(self, uris: Sequence[str]) -> bool:
        """Remove payloads that no row ever named. False when some are left: the sweep will find them."""
        if self.payloads is not None:
            try:
                self.payloads.unlink(*uris)
            except StoreError as error:
                _log.warning("payloads are left until the next sweep: %s", error)
                return False
        return True

    def finish_erasure(self, *, wait: float, due: bool = False) -> bool:
        """Empty the write-ahead log if deleted content may be behind it. True when nothing is left to do.

        Raises nothing, as ``drain_trash``.
        """
        self._erasure_due = self._erasure_due or due
        if self._erasure_due:
            try:
                self._erasure_due = not self.database.checkpoint(wait)
            except StoreError as error:
                _log.warning("deleted content is left in the log until later: %s", error)
        return not self._erasure_due

    def file_bytes(self) -> int:
        """Size of the database, its log and the payload files (of a bucket, nothing)."""
        if isinstance(self.database, PostgresDatabase):
            return self.database.size()
        if self.database.path is None or self.files is None:
            return 0
        sizes = [Path(f"{self.database.path}{suffix}") for suffix in ("", "-wal", "-shm")]
        return sum(path.stat().st_size for path in sizes if path.exists()) + self.files.size()

    def _register_embedder(self) -> int | None:
        if self.embedder is None:
            return None
        query = sa.select(EmbeddingModel.id).where(
            EmbeddingModel.name == self.embedder.name, EmbeddingModel.dim == self.embedder.dim
        )
        with self.database.read() as connection:
            known = connection.scalar(query)
        if known is not None:
            return known
        with self.database.write() as connection:
            known = connection.scalar(query)
            if known is None:
                values = {"name": self.embedder.name, "dim": self.embedder.dim}
                known = connection.execute(
                    sa.insert(EmbeddingModel).values(values).returning(EmbeddingModel.id)
                ).scalar_one()
                index.create_vector_index(connection, known, self.embedder.dim)
        return known

    def _sweep_daily(self) -> None:
        """Remove payload files that a crash left without a row."""
        if self.payloads is None or (self.files is not None and not self.files.root.is_dir()):
            return
        with self.database.read() as connection:
            last = connection.scalar(sa.select(SchemaMeta.value).where(SchemaMeta.key == "last_sweep"))
        # A date in the future was noted by a clock that has been set back since.
        if last is not None and 0 <= time.time() - float(last) < _SWEEP_EVERY.total_seconds():
            return
        orphans = verify.orphans(self, ORPHAN_AGE)
        self.payloads.unlink(*orphans)
        if orphans:
            _log.info("removed %d payload files that a crash had left", len(orphans))
        self.put_off_sweep()

    def put_off_sweep(self) -> None:
        """No sweep for a day from now, in any process."""
        with self.database.write() as connection:
            connection.execute(sa.delete(SchemaMeta).where(SchemaMeta.key == "last_sweep"))
            connection.execute(sa.insert(SchemaMeta).values(key="last_sweep", value=str(time.time())))


def _after_fork() -> None:
    for store in list(_stores):
        store.uses.clear_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

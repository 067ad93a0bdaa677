"""Checks a whole store against itself, and repairs what can be made anew from text."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Literal

import numpy as np
import sqlalchemy as sa

from agentmem.errors import SchemaTooNew, StoreBusy, StoreError, StoreFull
from agentmem.records import Problem, VerifyReport
from agentmem.store import index, sqlite_search, tally, writing
from agentmem.store.dialects import on_postgres, search_engine
from agentmem.store.inputs import text_digest
from agentmem.store.payloads import ORPHAN_AGE
from agentmem.store.places import AnyRow, see_all
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.rows import SLICE
from agentmem.store.schema import Embedding, EmbeddingModel, KVPayload, KVTrash, MemoryRow, StreamRecord, StreamRow
from agentmem.store.stream_opening import damage, in_memory, stored_home

if TYPE_CHECKING:
    from agentmem.store.store import Store


def verify(store: Store, *, repair: bool) -> VerifyReport:
    """See ``Store.verify``."""
    problems: list[Problem] = []
    with store.database.read() as connection:
        see_all(connection)
        checked = connection.scalar(sa.select(sa.func.count(MemoryRow.id))) or 0
        problems.extend(_database(connection))
        problems.extend(_embeddings(connection))
        problems.extend(_vector_index(connection))
        problems.extend(_text_index(connection))
        problems.extend(_totals(connection))
    problems.extend(_text_index_structure(store))
    with store.database.read() as connection:
        see_all(connection)
        keys = connection.execute(sa.select(KVPayload.memory_id, KVPayload.kv_model_id)).all()
    damaged: list[tuple[int, int]] = []
    for memory_id, model_id in keys:  # one short transaction each: bytes are large and writers go on meanwhile
        problem = _payload(store, memory_id, model_id)
        if problem is not None:
            problems.append(problem)
            damaged.append((memory_id, model_id))
    bad_streams: list[int] = []
    with store.database.read() as connection:
        see_all(connection)
        streams = connection.execute(sa.select(StreamRow.__table__).where(StreamRow.generation > 0)).all()
    for row in streams:
        problem = _stream(store, row)
        if problem is not None:
            problems.append(problem)
            bad_streams.append(row.id)
    left_over = orphans(store, ORPHAN_AGE)
    problems.extend(
        Problem(kind="orphan_file", id=None, detail=f"{uri} belongs to no memory or stream", repaired=False)
        for uri in left_over
    )
    if repair and problems:
        problems = _repair(store, problems, damaged, bad_streams, left_over)
    return VerifyReport(checked=checked, problems=tuple(problems))


def orphans(store: Store, older_than: float) -> list[str]:
    """Payloads that no row and no trash entry names, and that cannot be a write under way.

    A write is under way for less than ``older_than`` seconds, and only for a memory or stream that exists: their keys
    are never used again.
    """
    if store.payloads is None:
        return []
    files = set(store.payloads.walk())
    if not files:
        return []
    with store.database.read() as connection:
        see_all(connection)
        for column in (KVPayload.uri, StreamRecord.uri):
            files.difference_update(connection.scalars(sa.select(column).where(column.is_not(None))))
        trash = set(connection.scalars(sa.select(KVTrash.uri)))
        for key, tail in connection.execute(sa.select(StreamRow.id, StreamRow.tail_uri)):
            folder = writing.stream_folder(key)
            files.difference_update((f"{folder}/records", f"{folder}/index", tail))
        nobodys = {uri for uri in files if uri not in trash and uri.rpartition("/")[0] not in trash}
        if not nobodys:
            return []
        living = {str(key) for key in connection.scalars(sa.select(MemoryRow.id).where(_among(nobodys)))}
        living |= {writing.stream_folder(key) for key in connection.scalars(sa.select(StreamRow.id))}
    old = set(store.payloads.walk(older_than))
    return sorted(uri for uri in nobodys if uri in old or _owner(uri) not in living)


def _among(uris: set[str]) -> sa.ColumnElement[bool]:
    """The memories that these files were written for. As numbers in the text: there is no limit to their number."""
    keys = [int(key) for uri in uris if (key := _owner(uri)).isdecimal()]
    return MemoryRow.id.in_(sa.bindparam("keys", keys, expanding=True, literal_execute=True))


def _owner(uri: str) -> str:
    """The stream's folder, or the memory's key, that a file was written for."""
    folder, _, name = uri.rpartition("/")
    return folder if folder.startswith("streams/") else name.partition(".")[0]


def _database(connection: sa.Connection) -> Iterator[Problem]:
    if not on_postgres(connection):  # which checks its own pages and keys
        yield from _sqlite_file(connection)
    for uid, text, digest in connection.execute(sa.select(MemoryRow.uid, MemoryRow.text, MemoryRow.text_sha256)):
        if text_digest(text) != digest:
            yield Problem(kind="database", id=uid, detail="text does not match its checksum", repaired=False)


def _sqlite_file(connection: sa.Connection) -> Iterator[Problem]:
    for table in sqlite_search.text_tables(connection):
        with suppress(sa.exc.DBAPIError):  # _text_index says what is wrong with it
            # FTS5 checks with what this connection remembers of the index, and forgets what others changed only when
            # a statement opens the table: without this one, a whole index can be reported as damaged.
            connection.exec_driver_sql(f"SELECT rowid FROM {table} LIMIT 1").all()  # noqa: S608
    for (line,) in connection.exec_driver_sql("PRAGMA integrity_check(20)"):
        if line != "ok":  # the text index is made anew from the rows; a damaged file is not written to
            text_index = "fts5" in line.lower()
            yield Problem(kind="text_index" if text_index else "database", id=None, detail=line, repaired=False)
    for row in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        detail = f"row {row[1]} of {row[0]} refers to a missing row of {row[2]}"
        yield Problem(kind="database", id=None, detail=detail, repaired=False)


def _embeddings(connection: sa.Connection) -> Iterator[Problem]:
    for uid, vector, dim in _vectors(connection):
        if _bad_vector(vector, dim):
            yield Problem(kind="embedding", id=uid, detail="not a finite unit vector", repaired=False)


def _vectors(connection: sa.Connection) -> Iterator[tuple[str, bytes, int]]:
    for row in connection.execute(
        sa.select(MemoryRow.uid, Embedding.vec, EmbeddingModel.dim)
        .join(Embedding, Embedding.memory_id == MemoryRow.id)
        .join(EmbeddingModel, EmbeddingModel.id == Embedding.model_id)
    ):
        yield row[0], row[1], row[2]


def _bad_vector(vector: bytes, dim: int) -> bool:
    if len(vector) != 4 * dim:
        return True
    norm = float(np.linalg.norm(np.frombuffer(vector, "<f4")))
    return not abs(norm - 1.0) <= 2e-3  # written so that NaN is bad


def _vector_index(connection: sa.Connection) -> Iterator[Problem]:
    engine = search_engine(connection)
    for model_id, dim in connection.execute(sa.select(EmbeddingModel.id, EmbeddingModel.dim)).all():
        try:
            # On PostgreSQL an error would spoil the rest of the transaction.
            with connection.begin_nested(), closing(_indexable(connection, model_id)) as rows:
                wrong = engine.stray_vectors(connection, model_id, dim, rows)
        except sa.exc.DBAPIError as error:
            yield Problem(kind="vector_index", id=None, detail=f"embedder {model_id}: {error.orig}", repaired=False)
            continue
        yield from _stray("vector_index", connection, wrong)


def _indexable(connection: sa.Connection, model_id: int) -> Generator[tuple[int, int, bytes]]:
    """(memory key, space key, vector) of an embedder. A million vectors are not read into RAM at once."""
    truth = (
        sa.select(Embedding.memory_id, MemoryRow.space_id, Embedding.vec)
        .join(MemoryRow, MemoryRow.id == Embedding.memory_id)
        .where(Embedding.model_id == model_id)
    )
    with connection.execute(truth, execution_options={"yield_per": 1000}) as rows:
        for row in rows:
            yield row[0], row[1], row[2]


def _text_index(connection: sa.Connection) -> Iterator[Problem]:
    turns = connection.scalars(sa.select(MemoryRow.turn_id).distinct()).all()
    try:
        with connection.begin_nested():
            wrong = search_engine(connection).stray_texts(connection, index.text_keys(connection, turns))
    except sa.exc.DBAPIError as error:
        yield Problem(kind="text_index", id=None, detail=str(error.orig), repaired=False)
        return
    yield from _stray("text_index", connection, wrong)


def _stray(
    kind: Literal["vector_index", "text_index"], connection: sa.Connection, wrong: dict[int, str]
) -> Iterator[Problem]:
    keys = list(wrong)
    for start in range(0, len(keys), SLICE):
        some = keys[start : start + SLICE]
        uids = dict(connection.execute(sa.select(MemoryRow.id, MemoryRow.uid).where(MemoryRow.id.in_(some))).all())
        for key in some:
            yield Problem(kind=kind, id=uids.get(key), detail=wrong[key], repaired=False)


def _text_index_structure(store: Store) -> Iterator[Problem]:
    if isinstance(store.database, PostgresDatabase):
        return
    try:
        with store.database.write() as connection:
            sqlite_search.check_text_index(connection)
    except (StoreBusy, StoreFull, SchemaTooNew):  # says nothing about the index
        raise
    except StoreError as error:
        yield Problem(kind="text_index", id=None, detail=str(error), repaired=False)


def _totals(connection: sa.Connection) -> Iterator[Problem]:
    for kept, counted in tally.wrong(connection).values():
        detail = f"a space has {counted.memories:,} memories and {counted.kv_bytes:,} bytes of KV, but its totals say "
        detail += f"{kept.memories:,} and {kept.kv_bytes:,}"
        yield Problem(kind="totals", id=None, detail=detail, repaired=False)


def _payload(store: Store, memory_id: int, model_id: int) -> Problem | None:
    with store.database.read() as connection:
        see_all(connection)
        row = connection.execute(
            sa.select(MemoryRow.uid, KVPayload.uri, KVPayload.data, KVPayload.nbytes, KVPayload.sha256)
            .join(KVPayload, KVPayload.memory_id == MemoryRow.id)
            .where(KVPayload.memory_id == memory_id, KVPayload.kv_model_id == model_id)
        ).one_or_none()
        if row is None:  # gone meanwhile
            return None
        data = row.data if row.uri is None or store.payloads is None else store.payloads.read(row.uri)
    if data is None:
        return Problem(kind="payload_file", id=row.uid, detail=f"{row.uri} is missing", repaired=False)
    if len(data) != row.nbytes or hashlib.sha256(data).digest() != row.sha256:
        return Problem(kind="payload", id=row.uid, detail="KV bytes do not match their checksum", repaired=False)
    return None


def _stream(store: Store, row: AnyRow) -> Problem | None:
    """Every byte of a stream, as of ``row``."""
    if in_memory(store):
        return None
    why: str | None = "its files are missing"
    with suppress(FileNotFoundError), closing(stored_home(store, row)) as home:
        why = damage(row, home)
        if why is None:
            bad = (
                n for n in range(row.n_records) if not home.fetch(n) or home.files.read(n, 0, row.record_bytes) is None
            )
            why = next((f"record {n} does not match its checksum" for n in bad), None)
    if why is None:
        return None
    with store.database.read() as connection:  # it may have been continued or dropped meanwhile
        see_all(connection)
        generation = connection.scalar(sa.select(StreamRow.generation).where(StreamRow.id == row.id))
    if generation != row.generation:
        return None
    return Problem(kind="stream", id=None, detail=f"{writing.stream_folder(row.id)}: {why}", repaired=False)


def _repair(
    store: Store,
    problems: list[Problem],
    damaged: list[tuple[int, int]],
    bad_streams: list[int],
    left_over: list[str],
) -> list[Problem]:
    if any(problem.kind == "database" for problem in problems):
        return problems  # writing to a damaged database would make it worse
    with store.write() as connection:
        see_all(connection)
        for memory_id, model_id in damaged:
            mine = (KVPayload.memory_id == memory_id, KVPayload.kv_model_id == model_id)
            uris = sa.select(KVPayload.uri).where(*mine, KVPayload.uri.is_not(None))
            connection.execute(sa.insert(KVTrash).from_select(["uri"], uris))
            tally.take_kv(connection, KVPayload, *mine)
            connection.execute(sa.delete(KVPayload).where(*mine))
        writing.drop_streams(connection, StreamRow.id.in_(bad_streams))
        bad = [
            (row.memory_id, row.model_id)
            for row in connection.execute(
                sa.select(Embedding.memory_id, Embedding.model_id, Embedding.vec, EmbeddingModel.dim).join(
                    EmbeddingModel, EmbeddingModel.id == Embedding.model_id
                )
            )
            if _bad_vector(row.vec, row.dim)
        ]
        for memory_id, model_id in bad:
            connection.execute(
                sa.delete(Embedding).where(Embedding.memory_id == memory_id, Embedding.model_id == model_id)
            )
        if bad or any(problem.kind in ("vector_index", "text_index") for problem in problems):
            index.rebuild(connection)
        if any(problem.kind == "totals" for problem in problems):
            tally.recount(connection)
    store.drain_trash()
    if store.payloads is not None:
        store.payloads.unlink(*left_over)
    return [problem.model_copy(update={"repaired": True}) for problem in problems]

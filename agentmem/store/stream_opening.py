"""Opening and dropping a session's stream, and telling whether what is stored can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreError
from agentmem.records import Scope
from agentmem.store import expiry, writing
from agentmem.store.inputs import MAX_FINGERPRINT, check_int, check_session, now_us
from agentmem.store.places import AnyRow, make_session, make_space
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.schema import MemoryRow, SessionRow, Space, StreamRow
from agentmem.store.stream_files import StreamFiles
from agentmem.store.streams import Committed, StoredStream
from agentmem.text import check_text

if TYPE_CHECKING:
    from agentmem.store.store import Store

_NOTHING = Committed(0, 0, 0, 0, None, None, {})


def open_stream(
    store: Store, scope: Scope, session: str, *, fingerprint: str, record_bytes: int, index_bytes: int
) -> StoredStream:
    """See ``ScopedMemories.open_stream``."""
    label = _label(scope, session)
    if isinstance(store.database, PostgresDatabase):
        raise StoreError(
            "a store on PostgreSQL keeps no streams of sessions (recipe infllm): open a store in a file, or choose "
            "another recipe"
        )
    check_text(fingerprint, "fingerprint", MAX_FINGERPRINT)
    check_int(record_bytes, "record_bytes", 1)
    check_int(index_bytes, "index_bytes", 0)
    while True:
        why: str | None = None
        with store.database.read() as connection:
            row = _find(connection, scope, label)
        if row is not None and _outlived(store, row):
            continue
        if row is not None:
            found = _usable(store, row, fingerprint, record_bytes, index_bytes)
            if isinstance(found, StreamFiles):
                committed = Committed(**{name: getattr(row, name) for name in Committed.__annotations__})
                return StoredStream(store, row.id, row.space_id, label, found, committed, None)
            why = found
        now = now_us()
        with store.write() as connection:
            if _version(_find(connection, scope, label)) != _version(row):
                continue  # another process was here meanwhile: look at what it stored
            space_id = make_space(connection, scope, now)
            session_id = make_session(connection, space_id, label, now)
            writing.drop_streams(connection, StreamRow.session_id == session_id)
            values = vars(_NOTHING) | {"space_id": space_id, "session_id": session_id, "fingerprint": fingerprint}
            values |= {"record_bytes": record_bytes, "index_bytes": index_bytes, "nbytes": 0}
            insert = sa.insert(StreamRow).values(values | {"created_us": now, "updated_us": now})
            key = connection.execute(insert.returning(StreamRow.id)).scalar_one()
        store.drain_trash()
        files = _create(store, key, record_bytes, index_bytes)
        if files is not None:
            return StoredStream(store, key, space_id, label, files, _NOTHING, why)


def drop_stream(store: Store, scope: Scope, session: str) -> bool:
    """See ``ScopedMemories.drop_stream``."""
    label = _label(scope, session)
    with store.write() as connection:
        row = _find(connection, scope, label)
        if row is not None:
            writing.drop_streams(connection, StreamRow.id == row.id)
    store.drain_trash()
    return row is not None


def damage(store: Store, row: AnyRow, files: StreamFiles) -> str | None:
    """What is wrong with a stream's files, from their sizes, the index and the tail. Loads the checksums of records."""
    if not files.holds(row.n_records):
        return "its files are shorter than what was committed"
    if files.load(row.n_records) != row.index_crc32:
        return "its index is damaged"
    if row.tail_uri is not None and store.files is not None:
        digest = store.files.sha256(row.tail_uri)
        if digest != row.tail_sha256:
            return "its tail is missing" if digest is None else "its tail is damaged"
    return None


def _usable(
    store: Store, row: AnyRow, fingerprint: str, record_bytes: int, index_bytes: int
) -> StreamFiles | str | None:
    """The stored stream's files; or why they are of no use, None for a stream that never held anything."""
    if row.fingerprint != fingerprint:
        return "it was encoded by another model or recipe"
    if (row.record_bytes, row.index_bytes) != (record_bytes, index_bytes):
        return f"its records are of {row.record_bytes} + {row.index_bytes} bytes, not of {record_bytes} + {index_bytes}"
    if store.files is None:
        return "a store in memory keeps a stream only while it is open"
    if row.generation == 0:
        return _create(store, row.id, record_bytes, index_bytes)
    try:
        files = StreamFiles.open(
            store.files.root / writing.stream_folder(row.id), record_bytes, index_bytes, create=False
        )
    except FileNotFoundError:
        return "its files are missing"
    why = damage(store, row, files)
    if why is None:
        return files
    files.close()
    return why


def _outlived(store: Store, row: AnyRow) -> bool:
    """True when a memory of its session had expired: it was erased, and the stream with it."""
    with store.database.read() as connection:
        if not expiry.in_session_of(connection, row.id, now_us()):
            return False
    with store.write() as connection:
        gone = expiry.erase(connection, now_us(), MemoryRow.session_id == row.session_id)
    store.erase(gone, wait=0.0)
    return True


def _create(store: Store, key: int, record_bytes: int, index_bytes: int) -> StreamFiles | None:
    """The files of a stream that was never committed; None when the stream was dropped meanwhile, and its folder."""
    if store.files is None:
        return StreamFiles.open(None, record_bytes, index_bytes, create=True)
    folder = store.files.make_folder(writing.stream_folder(key))
    try:
        return StreamFiles.open(folder, record_bytes, index_bytes, create=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot write below {folder} ({error}); check its permissions") from error


def _find(connection: sa.Connection, scope: Scope, label: str) -> AnyRow | None:
    query = (
        sa.select(StreamRow.__table__)
        .join(SessionRow, SessionRow.id == StreamRow.session_id)
        .join(Space, Space.id == SessionRow.space_id)
        .where(Space.user_key == scope.user, Space.agent_key == scope.agent, SessionRow.label == label)
    )
    return connection.execute(query).one_or_none()


def _version(row: AnyRow | None) -> tuple[int, int] | None:
    return None if row is None else (row.id, row.generation)


def _label(scope: Scope, session: str) -> str:
    label = check_session(session)
    if label is None:
        raise InvalidInput("a stream belongs to a session; name one")
    if scope.session not in (None, label):
        raise InvalidInput(f"this scope is narrowed to session {scope.session!r}; it has no stream of {label!r}")
    return label

"""Opening and dropping a session's stream, and telling whether what is stored can be used."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreError
from agentmem.records import Scope
from agentmem.store import expiry, writing
from agentmem.store.inputs import MAX_FINGERPRINT, check_int, check_session, now_us
from agentmem.store.places import AnyRow, find_place, make_session, make_space, see_space, space_of
from agentmem.store.postgres.engine import PostgresDatabase
from agentmem.store.schema import MemoryRow, SessionRow, StreamRow
from agentmem.store.stream_files import StreamFiles
from agentmem.store.stream_home import FileHome, StreamHome
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
    scope = space_of(scope)
    check_text(fingerprint, "fingerprint", MAX_FINGERPRINT)
    check_int(record_bytes, "record_bytes", 1)
    check_int(index_bytes, "index_bytes", 0)
    while True:
        why: str | None = None
        with store.database.read() as connection:
            row = _find(connection, scope, label)
        if row is not None and _outlived(store, scope, row):
            continue
        if row is not None:
            found = _usable(store, row, fingerprint, record_bytes, index_bytes)
            if found is not None and not isinstance(found, str):
                committed = Committed(**{name: getattr(row, name) for name in Committed.__annotations__})
                return StoredStream(store, row.id, row.space_id, scope, label, found, committed, None)
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
        home = _create(store, key, space_id, record_bytes, index_bytes)
        if home is not None:
            return StoredStream(store, key, space_id, scope, label, home, _NOTHING, why)


def drop_stream(store: Store, scope: Scope, session: str) -> bool:
    """See ``ScopedMemories.drop_stream``."""
    label = _label(scope, session)
    with store.write() as connection:
        row = _find(connection, space_of(scope), label)
        if row is not None:
            writing.drop_streams(connection, StreamRow.id == row.id)
    store.drain_trash()
    return row is not None


def in_memory(store: Store) -> bool:
    """True for a store whose streams last only while they are open."""
    return store.files is None and not isinstance(store.database, PostgresDatabase)


def stored_home(store: Store, row: AnyRow) -> StreamHome:
    """Where the bytes of a committed stream are.

    Raises:
        FileNotFoundError: a file of it is missing.
    """
    if isinstance(store.database, PostgresDatabase):
        return _in_rows(store, store.database, row.id, row.space_id, row.record_bytes, row.index_bytes)
    folder = None if store.files is None else store.files.root / writing.stream_folder(row.id)
    return FileHome(store, row.id, StreamFiles.open(folder, row.record_bytes, row.index_bytes, create=False))


def damage(row: AnyRow, home: StreamHome) -> str | None:
    """What is wrong with a stream's bytes, from their number, the index and the tail. Loads the records' checksums."""
    why = home.load(row.n_records)
    if why is not None:
        return why
    if home.files.load(row.n_records) != row.index_crc32:
        return "its index is damaged"
    digest = home.tail_sha256(row.tail_uri)
    if digest != row.tail_sha256:
        return "its tail is missing" if digest is None else "its tail is damaged"
    return None


def _usable(
    store: Store, row: AnyRow, fingerprint: str, record_bytes: int, index_bytes: int
) -> StreamHome | str | None:
    """Where the stored stream is; or why it is of no use, None for a stream that never held anything."""
    if row.fingerprint != fingerprint:
        return "it was encoded by another model or recipe"
    if (row.record_bytes, row.index_bytes) != (record_bytes, index_bytes):
        return f"its records are of {row.record_bytes} + {row.index_bytes} bytes, not of {record_bytes} + {index_bytes}"
    if in_memory(store):
        return "a store in memory keeps a stream only while it is open"
    if row.generation == 0:
        return _create(store, row.id, row.space_id, record_bytes, index_bytes)
    try:
        home = stored_home(store, row)
    except FileNotFoundError:
        return "its files are missing"
    with ExitStack() as stack:
        stack.callback(home.close)
        why = damage(row, home)
        if why is None:
            stack.pop_all()
            return home
    return why


def _outlived(store: Store, scope: Scope, row: AnyRow) -> bool:
    """True when a memory of its session had expired: it was erased, and the stream with it."""
    with store.database.read() as connection:
        see_space(connection, row.space_id)
        if not expiry.in_session_of(connection, row.id, now_us()):
            return False
    with store.write() as connection:
        find_place(connection, scope)
        gone = expiry.erase(connection, now_us(), MemoryRow.session_id == row.session_id)
    store.erase(gone, wait=0.0)
    return True


def _create(store: Store, key: int, space_id: int, record_bytes: int, index_bytes: int) -> StreamHome | None:
    """For a stream that was never committed; None when the stream was dropped meanwhile, and its folder."""
    if isinstance(store.database, PostgresDatabase):
        return _in_rows(store, store.database, key, space_id, record_bytes, index_bytes)
    if store.files is None:
        return FileHome(store, key, StreamFiles.open(None, record_bytes, index_bytes, create=True))
    folder = store.files.make_folder(writing.stream_folder(key))
    try:
        return FileHome(store, key, StreamFiles.open(folder, record_bytes, index_bytes, create=True))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot write below {folder} ({error}); check its permissions") from error


def _in_rows(
    store: Store, database: PostgresDatabase, key: int, space_id: int, record_bytes: int, index_bytes: int
) -> StreamHome:
    from agentmem.store.postgres.streams import RowHome  # late: only for those who have such a store

    return RowHome(store, database, key, space_id, record_bytes, index_bytes)


def _find(connection: sa.Connection, scope: Scope, label: str) -> AnyRow | None:
    place = find_place(connection, scope)
    if place is None:
        return None
    mine = (SessionRow.space_id == place.space_id, SessionRow.label == label)
    query = sa.select(StreamRow.__table__).join(SessionRow, SessionRow.id == StreamRow.session_id).where(*mine)
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

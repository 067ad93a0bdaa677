"""Attaching and loading KV payloads. KV is a cache of text: what does not match is reported, never used."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreUnavailable
from agentmem.records import Scope
from agentmem.store import tally, tidying, writing
from agentmem.store.hot import HotTier
from agentmem.store.inputs import MAX_FINGERPRINT, check_name, now_us
from agentmem.store.payloads import INLINE_MAX, LoadedKV, Payload
from agentmem.store.places import AnyRow, Place, find_place, see_all
from agentmem.store.retry import Disconnected
from agentmem.store.rows import SLICE, keys_of
from agentmem.store.schema import KVModel, KVPayload, KVTrash, MemoryRow, Space, Tally
from agentmem.text import check_text

if TYPE_CHECKING:
    from agentmem.store.store import Store

Bytes = bytes | bytearray | memoryview

_log = logging.getLogger("agentmem.store")


@dataclass(frozen=True)
class NewKV:
    """Packed KV of one memory; ``text_sha256`` is ``text_digest`` of the text it was encoded from."""

    id: str
    payload: Bytes
    codec: str
    text_sha256: bytes


@dataclass(frozen=True)
class _Placed:
    new: NewKV
    key: int
    uri: str | None


def attach(store: Store, scope: Scope, payloads: Sequence[NewKV], fingerprint: str) -> list[str]:
    """See ``ScopedMemories.attach_kv_many``."""
    check_text(fingerprint, "fingerprint", MAX_FINGERPRINT)
    for new in payloads:
        _check(new)
    with store.database.read() as connection:
        place = find_place(connection, scope)
        placed = _place(store, connection, place, payloads, fingerprint) if place else []
    if not placed:
        return []
    files = [(one.uri, one.new.payload) for one in placed if one.uri is not None]
    if store.payloads is not None and files:
        store.payloads.write(files)  # whole and durable before a row names them
    kept: list[_Placed] = []
    try:
        now = now_us()
        with store.write() as connection:
            place = find_place(connection, scope)
            if place is not None:
                kept = _insert(connection, place, placed, fingerprint, now)
                tidying.enforce(connection, store.policy, place.space_id, now)
    except StoreUnavailable as error:
        kept = []
        if not isinstance(error, Disconnected):  # nobody knows whether rows name them; the sweep does, later
            files = []
        raise
    except BaseException:
        kept = []
        raise
    finally:
        named = {one.uri for one in kept}
        store.discard([uri for uri, _ in files if uri not in named])
    store.drain_trash()
    return [one.new.id for one in kept]


def _check(new: object) -> None:
    if not isinstance(new, NewKV):
        raise InvalidInput(f"expected a NewKV, not {type(new).__name__}")
    check_name(new.id, "id")
    check_name(new.codec, "codec")
    if len(new.codec) > 32:
        raise InvalidInput(f"a codec's name has at most 32 characters, not {new.codec!r}")
    if not isinstance(new.payload, Bytes) or not len(new.payload):
        raise InvalidInput("a KV payload is non-empty bytes")
    if not isinstance(new.text_sha256, bytes) or len(new.text_sha256) != 32:
        raise InvalidInput("text_sha256 is the 32 bytes of text_digest(text)")


def _place(
    store: Store, connection: sa.Connection, place: Place, payloads: Sequence[NewKV], fingerprint: str
) -> list[_Placed]:
    """Where each payload goes; those whose memory is gone or changed are left out before anything is written."""
    rows = keys_of(connection, place, [new.id for new in payloads])
    model_key = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
    placed: dict[str, _Placed] = {}
    for new in payloads:
        row = rows.get(new.id)
        if row is None or row.text_sha256 != new.text_sha256:
            continue
        uri = None
        if store.payloads is not None and memoryview(new.payload).nbytes > INLINE_MAX:
            uri = store.payloads.place(row.turn_id, row.id, model_key)
        placed[new.id] = _Placed(new, row.id, uri)
    return list(placed.values())


def _insert(
    connection: sa.Connection, place: Place, placed: Sequence[_Placed], fingerprint: str, now: int
) -> list[_Placed]:
    rows = keys_of(connection, place, [one.new.id for one in placed])
    kept = [one for one in placed if one.new.id in rows and rows[one.new.id].text_sha256 == one.new.text_sha256]
    if not kept:
        return []
    model_id = connection.scalar(sa.select(KVModel.id).where(KVModel.fingerprint == fingerprint))
    if model_id is None:
        insert = sa.insert(KVModel).values(fingerprint=fingerprint).returning(KVModel.id)
        model_id = connection.execute(insert).scalar_one()
    for one in kept:
        old = (KVPayload.memory_id == one.key, KVPayload.kv_model_id == model_id)
        uris = sa.select(KVPayload.uri).where(*old, KVPayload.uri.is_not(None))
        connection.execute(sa.insert(KVTrash).from_select(["uri"], uris))
        tally.take_kv(connection, KVPayload, *old)
        connection.execute(sa.delete(KVPayload).where(*old))
        data = one.new.payload
        connection.execute(
            sa.insert(KVPayload).values(
                memory_id=one.key,
                kv_model_id=model_id,
                space_id=place.space_id,
                codec=one.new.codec,
                nbytes=memoryview(data).nbytes,
                sha256=hashlib.sha256(data).digest(),
                crc32=zlib.crc32(data),
                uri=one.uri,
                data=bytes(data) if one.uri is None else None,
            )
        )
        tally.change(connection, place.space_id, kv_bytes=memoryview(data).nbytes)
        row = rows[one.new.id]
        writing.note(connection, place.space_id, [(row.session_id, row.uid)], "kv_attached", one.new.codec, now)
    return kept


Held = Callable[[str, bytes], bool]


def load(store: Store, scope: Scope, ids: Iterable[str], fingerprint: str, held: Held | None) -> LoadedKV:
    """See ``ScopedMemories.load_kv``."""
    wanted = list(dict.fromkeys(check_name(one, "id") for one in ids))
    payloads: dict[str, Payload] = {}
    damaged: list[str] = []
    with store.database.read() as connection:
        rows, warm = _rows(connection, scope, wanted, fingerprint)
        if held is not None:
            there = {uid for uid, row in rows.items() if held(uid, row.sha256)}
            wanted = [uid for uid in wanted if uid not in there]
            rows = {uid: row for uid, row in rows.items() if uid not in there}
        inline = _inline(connection, rows)
    for uid, data in chain(inline.items(), _elsewhere(store, rows)):
        row = rows[uid]
        if data is None or len(data) != row.nbytes or zlib.crc32(data) != row.crc32:
            damaged.append(uid)
        else:
            payloads[uid] = Payload(data, row.codec, row.sha256)
    if damaged:  # the file may just have gone with its memory, or with an eviction
        with store.database.read() as connection:
            now_rows, _ = _rows(connection, scope, damaged, fingerprint)
        damaged = [uid for uid in damaged if uid in now_rows and now_rows[uid].sha256 == rows[uid].sha256]
    rest = [uid for uid in wanted if uid not in payloads and uid not in damaged]
    return LoadedKV(
        payloads=payloads,
        missing=tuple(uid for uid in rest if uid in rows or uid not in warm),
        damaged=tuple(damaged),
        foreign=tuple(uid for uid in rest if uid not in rows and uid in warm),
    )


def drop_foreign(store: Store, scope: Scope, ids: Iterable[str], fingerprint: str) -> int:
    """See ``ScopedMemories.drop_foreign_kv``."""
    wanted = list(dict.fromkeys(check_name(one, "id") for one in ids))
    with store.write() as connection:
        place = find_place(connection, scope)
        keys = [row.id for row in keys_of(connection, place, wanted).values()] if place else []
        mine = sa.select(KVModel.id).where(KVModel.fingerprint == fingerprint)
        gone = writing.drop_kv(connection, keys, KVPayload.kv_model_id.not_in(mine))
    store.drain_trash()
    return gone


def digests(store: Store, scope: Scope, ids: Iterable[str], fingerprint: str) -> dict[str, bytes]:
    """See ``ScopedMemories.kv_digests``."""
    wanted = list(dict.fromkeys(check_name(one, "id") for one in ids))
    with store.database.read() as connection:
        rows, _ = _rows(connection, scope, wanted, fingerprint)
    return {uid: row.sha256 for uid, row in rows.items()}


def _rows(
    connection: sa.Connection, scope: Scope, ids: Sequence[str], fingerprint: str
) -> tuple[dict[str, AnyRow], set[str]]:
    """Payload rows under the fingerprint by id, without their bytes, and the ids that have a payload under any."""
    rows: dict[str, AnyRow] = {}
    warm: set[str] = set()
    place = find_place(connection, scope)
    if place is None:
        return rows, warm
    columns: list[Any] = [MemoryRow.uid, KVPayload.memory_id, KVPayload.kv_model_id, KVPayload.codec, KVPayload.nbytes]
    columns += [KVPayload.sha256, KVPayload.crc32, KVPayload.uri, (KVModel.fingerprint == fingerprint).label("mine")]
    for start in range(0, len(ids), SLICE):
        found = connection.execute(
            sa.select(*columns)
            .join(KVPayload, KVPayload.memory_id == MemoryRow.id)
            .join(KVModel, KVModel.id == KVPayload.kv_model_id)
            .where(*place.conditions(), MemoryRow.uid.in_(ids[start : start + SLICE]))
        )
        for row in found:
            warm.add(row.uid)
            if row.mine:
                rows[row.uid] = row
    return rows, warm


def _inline(connection: sa.Connection, rows: Mapping[str, AnyRow]) -> dict[str, bytes | bytearray | None]:
    """The bytes that lie in the database, by id."""
    uids = {row.memory_id: uid for uid, row in rows.items() if row.uri is None}
    keys = list(uids)
    data: dict[str, bytes | bytearray | None] = {}
    for start in range(0, len(keys), SLICE):
        model_id = rows[uids[keys[start]]].kv_model_id  # one fingerprint, one model
        mine = (KVPayload.memory_id.in_(keys[start : start + SLICE]), KVPayload.kv_model_id == model_id)
        for memory_id, some in connection.execute(sa.select(KVPayload.memory_id, KVPayload.data).where(*mine)):
            data[uids[memory_id]] = some
    return data


def _elsewhere(store: Store, rows: Mapping[str, AnyRow]) -> Iterator[tuple[str, bytearray | None]]:
    """The bytes that lie in files or a bucket, by id; as far as the bucket answers."""
    named = {uid: row.uri for uid, row in rows.items() if row.uri is not None}
    if store.payloads is None:
        yield from ((uid, None) for uid in named)
        return
    try:
        yield from zip(named, store.payloads.read_many(list(named.values())), strict=True)
    except StoreUnavailable as error:  # KV is a cache: until the bucket is back, it is encoded from text
        _log.warning("%s", error)


def tend(store: Store, scope: Scope, hot: HotTier[Any], fingerprint: str) -> None:
    """See ``ScopedMemories.tend``."""
    store.hot.add(hot)
    held = {scope: None} | hot.spaces()
    with store.database.read() as connection:
        see_all(connection)  # numbers only
        now = _erasures(connection, list(held))
    for space, seen in held.items():
        erasures = now.get(space)
        if erasures is None or erasures != seen:
            ids = hot.ids(space)
            hot.keep(space, digests(store, space, ids, fingerprint) if ids else {}, erasures)


def _erasures(connection: sa.Connection, spaces: Sequence[Scope]) -> dict[Scope, int]:
    """How often something of these spaces was erased. One that is forgotten is absent."""
    found: dict[Scope, int] = {}
    for start in range(0, len(spaces), SLICE):
        names = [(space.user, space.agent) for space in spaces[start : start + SLICE]]
        rows = connection.execute(
            sa.select(Space.user_key, Space.agent_key, Tally.erasures)
            .join(Tally, Tally.space_id == Space.id)
            .where(sa.tuple_(Space.user_key, Space.agent_key).in_(names))
        )
        found.update({Scope(user=user, agent=agent): count for user, agent, count in rows})
    return found

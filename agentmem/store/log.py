"""The log: plain JSON values under ordered keys, for session transcripts and the state of agent frameworks.

Nothing of it is embedded, recalled, read by attention or evicted. Each call is one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from agentmem.errors import Conflict, InvalidInput
from agentmem.records import LogEntry, Scope
from agentmem.store.inputs import check_expiry, check_int, check_json, from_us, now_us
from agentmem.store.log_keys import Key, Segment, below, check_key, decode, encode, number_below
from agentmem.store.places import AnyRow, find_place, has_expired, make_space, not_expired, space_of
from agentmem.store.retry import retried
from agentmem.store.schema import LogRow

if TYPE_CHECKING:
    from agentmem.store.store import Store

MAX_VALUE = 16 * 2**20
"""Longest value, in bytes of JSON."""
MOST_AT_ONCE = 1000
"""Entries of one page, and changes of one batch."""

AnyKey = str | Sequence[Segment]


@dataclass(frozen=True)
class Put:
    """Set the value of a key. ``expected`` is the revision that it must have (0: there must be none; None: any)."""

    key: AnyKey
    value: Any
    expected: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Append:
    """Set the value of the key behind the last one of ``prefix``: its segments and the next whole number."""

    prefix: AnyKey
    value: Any
    expires_at: datetime | None = None


@dataclass(frozen=True)
class Delete:
    """Remove a key, if it is there. ``expected`` is the revision that it must have (None: any)."""

    key: AnyKey
    expected: int | None = None


Change = Put | Append | Delete


class ScopedLog:
    """The log of one user and agent. Keys are a str or a tuple of segments, each a str or a whole number.

    Keys sort by their segments, numbers before text; a prefix is compared by whole segments.
    """

    def __init__(self, store: Store, scope: Scope):
        self._store = store
        self.scope = space_of(scope)
        self.patience = store.patience  # for retry.py

    def get(self, key: AnyKey) -> LogEntry | None:
        """The entry of a key; None when there is none."""
        return self.get_many([key])[0]

    @retried
    def get_many(self, keys: Sequence[AnyKey]) -> list[LogEntry | None]:
        """The entries of several keys, in their order, as of one moment.

        Raises:
            InvalidInput: something that is no key, or more than 1,000.
        """
        if isinstance(keys, str) or len(keys) > MOST_AT_ONCE:
            raise InvalidInput(f"keys must be a list of at most {MOST_AT_ONCE}, not {keys!r:.80}")
        wanted = [encode(check_key(key)) for key in keys]
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return [None] * len(wanted)
            query = sa.select(LogRow).where(
                LogRow.space_id == place.space_id, LogRow.key.in_(wanted), not_expired(LogRow, now_us())
            )
            found = {row.key: _entry(row) for row in connection.execute(query)}
        return [found.get(key) for key in wanted]

    @retried
    def scan(
        self,
        prefix: AnyKey = (),
        *,
        after: AnyKey | None = None,
        before: AnyKey | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> list[LogEntry]:
        """A page of the entries below a prefix (of segments; its own key is not among them), in the order of keys.

        Args:
            prefix: leading segments; none for all entries.
            after: only keys behind this one: the last of the page before.
            before: only keys in front of this one.
            limit: 1 to 1,000.
            reverse: last first.

        Raises:
            InvalidInput: a prefix, key or limit that cannot be used.
        """
        begin, end = below(check_key(prefix, "prefix", least=0))
        conditions = [LogRow.key >= begin, LogRow.key < end, not_expired(LogRow, now_us())]
        if after is not None:
            conditions.append(LogRow.key > encode(check_key(after, "after")))
        if before is not None:
            conditions.append(LogRow.key < encode(check_key(before, "before")))
        check_int(limit, "limit", 1, MOST_AT_ONCE)
        with self._store.database.read() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return []
            query = sa.select(LogRow).where(LogRow.space_id == place.space_id, *conditions).limit(limit)
            rows = connection.execute(query.order_by(LogRow.key.desc() if reverse else LogRow.key))
            return [_entry(row) for row in rows]

    def put(
        self, key: AnyKey, value: Any, *, expected: int | None = None, expires_at: datetime | None = None
    ) -> LogEntry:
        """Set the value of a key; see ``apply`` for what it raises."""
        (entry,) = self.apply([Put(key, value, expected, expires_at)])
        assert entry is not None, "what was put is there"
        return entry

    def append(self, prefix: AnyKey, value: Any, *, expires_at: datetime | None = None) -> LogEntry:
        """Add a value behind the last one below a prefix, under the next whole number (the first is 0).

        The number of an entry that was the last, and was deleted, is given again.
        """
        (entry,) = self.apply([Append(prefix, value, expires_at)])
        assert entry is not None, "what was appended is there"
        return entry

    def delete(self, key: AnyKey, *, expected: int | None = None) -> bool:
        """Remove a key. False when it was not there. Raises Conflict as ``apply``."""
        (entry,) = self.apply([Delete(key, expected)])
        return entry is not None

    @retried
    def clear(self, prefix: AnyKey = ()) -> int:
        """Remove all entries below a prefix; returns how many."""
        begin, end = below(check_key(prefix, "prefix", least=0))
        with self._store.write() as connection:
            place = find_place(connection, self.scope)
            if place is None:
                return 0
            mine = (LogRow.space_id == place.space_id, LogRow.key >= begin, LogRow.key < end)
            gone = connection.execute(sa.delete(LogRow).where(*mine)).rowcount
        self._store.finish_erasure(wait=0.0, due=gone > 0)
        return gone

    @retried
    def apply(self, changes: Sequence[Change]) -> list[LogEntry | None]:
        """Make several changes in one transaction, in their order: all or none.

        Returns:
            The entry of each change: what is there now, or for a Delete what was (None: nothing).

        Raises:
            Conflict: a key does not have the revision that was expected; nothing was changed.
            InvalidInput: a key that is none, a value that is no JSON or too long; nothing was changed.
            StoreFull: no room; rolled back.
        """
        now = now_us()
        steps = [_checked(change, now) for change in changes]
        if len(steps) > MOST_AT_ONCE:
            raise InvalidInput(f"{len(steps)} changes; at most {MOST_AT_ONCE} fit into one batch")
        if not steps:
            return []
        with self._store.write() as connection:
            place = find_place(connection, self.scope)
            space_id = make_space(connection, self.scope, now) if place is None else place.space_id
            mine = LogRow.space_id == space_id
            expired = connection.execute(sa.delete(LogRow).where(mine, has_expired(LogRow, now))).rowcount
            made = [_apply(connection, space_id, step, now) for step in steps]
        gone = expired or any(isinstance(step, Delete) for step in changes)
        self._store.finish_erasure(wait=0.0, due=bool(gone))
        return made


@dataclass(frozen=True)
class _Step:
    change: Change
    key: Key
    value: Any
    expires_us: int | None


def _checked(change: object, now: int) -> _Step:
    if isinstance(change, Delete):
        step = _Step(change, check_key(change.key), None, None)
    elif isinstance(change, Put | Append):
        key = check_key(change.key) if isinstance(change, Put) else check_key(change.prefix, "prefix")
        step = _Step(change, key, check_json(change.value, "value", MAX_VALUE), check_expiry(change.expires_at, now))
    else:
        raise InvalidInput(f"a change is a Put, an Append or a Delete, not {type(change).__name__}")
    if not isinstance(change, Append) and change.expected is not None:
        check_int(change.expected, "expected", 0, 2**63 - 1)
    return step


def _apply(connection: sa.Connection, space_id: int, step: _Step, now: int) -> LogEntry | None:
    key = encode(step.key)
    if isinstance(step.change, Append):
        key = _next(connection, space_id, step.key)
    mine = (LogRow.space_id == space_id, LogRow.key == key)
    row = connection.execute(sa.select(LogRow).where(*mine)).one_or_none()
    revision = 0 if row is None else row.revision
    expected = None if isinstance(step.change, Append) else step.change.expected
    if expected is not None and expected != revision:
        raise Conflict(
            f"the key {step.key} has revision {revision}, not {expected}"
            if row is not None
            else f"there is no key {step.key}, which was expected to have revision {expected}"
        )
    if isinstance(step.change, Delete):
        connection.execute(sa.delete(LogRow).where(*mine))
        return None if row is None else _entry(row)
    values = {"revision": revision + 1, "updated_us": now, "expires_us": step.expires_us, "value": step.value}
    if row is None:
        values |= {"space_id": space_id, "key": key, "created_us": now}
        made = connection.execute(sa.insert(LogRow).values(values).returning(LogRow)).one()
    else:
        made = connection.execute(sa.update(LogRow).where(*mine).values(values).returning(LogRow)).one()
    return _entry(made)


def _next(connection: sa.Connection, space_id: int, prefix: Key) -> bytes:
    """The key behind the last number below a prefix."""
    begin, end = number_below(prefix)
    mine = (LogRow.space_id == space_id, LogRow.key >= begin, LogRow.key < end)
    last = connection.scalar(sa.select(LogRow.key).where(*mine).order_by(LogRow.key.desc()).limit(1))
    number = 0 if last is None else int(decode(last)[len(prefix)]) + 1
    return encode(check_key((*prefix, number)))


def _entry(row: AnyRow) -> LogEntry:
    return LogEntry(
        key=decode(row.key),
        value=row.value,
        revision=row.revision,
        created_at=from_us(row.created_us),
        updated_at=from_us(row.updated_us),
        expires_at=None if row.expires_us is None else from_us(row.expires_us),
    )

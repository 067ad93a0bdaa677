"""An item as an entry of the log, and as a memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from langgraph.store.base import PutOp

from agentmem import LogEntry
from agentmem.store import Change, Delete, Put

ROOT = "langgraph"
"""First segment of all keys in the log: others may write to the same log."""

Key = tuple[str, ...]
"""The key in the log: the root, the segments of the namespace, the item's own key."""


def change(key: Key, op: PutOp) -> Change:
    """What a put (or, with None for a value, a delete) changes in the log."""
    if op.value is None:
        return Delete(key)
    index = op.index if op.index is None else list(op.index or ())
    now = datetime.now(UTC)
    record = {"value": dict(op.value), "index": index, "ttl": op.ttl, "updated_at": now.isoformat()}
    return Put(key, record, expires_at=None if op.ttl is None else now + timedelta(minutes=op.ttl))


def turn_of(key: Sequence[Any]) -> str:
    """Id of the turn that an item is as a memory."""
    return f"{ROOT}-{hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:32]}"


def meta_of(entry: LogEntry, text: str) -> dict[str, Any]:
    """What is noted with a memory: its item, and by which segments it is found."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {ROOT: list(entry.key), f"{ROOT}_text": digest, **place(entry.key[1:-1])}


def place(namespace: Sequence[Any]) -> dict[str, Any]:
    """What ``meta`` of an item says of its namespace, and what finds the items of all that begin so."""
    return {f"{ROOT}_item": True, **{f"{ROOT}_{at}": segment for at, segment in enumerate(namespace)}}


def fields_of(entry: LogEntry) -> dict[str, Any]:
    """An entry as the fields of an ``Item``."""
    return {
        "namespace": entry.key[1:-1],
        "key": entry.key[-1],
        "value": entry.value["value"],
        "created_at": entry.created_at,
        "updated_at": datetime.fromisoformat(entry.value["updated_at"]),
    }

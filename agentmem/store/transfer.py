"""Moving a scope's memories between stores, as JSON lines: a header, then one memory per line.

KV, a cache of text, travels only when asked, in a file of its own (``kv_files.py``). The scope's name does not: a file
is read into the scope of the handle that reads it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa

from agentmem.errors import InvalidInput, StoreError, StoreFull
from agentmem.records import Scope
from agentmem.store import expiry, kv_files, tidying, writing
from agentmem.store.engine import no_space
from agentmem.store.inputs import Checked, EmbedderId, NewMemory, check_new, from_us, now_us, to_us
from agentmem.store.places import AnyRow, Place, find_place
from agentmem.store.rows import SLICE, select_rows, tags_of
from agentmem.store.schema import Embedding, MemoryRow, MemoryUsage
from agentmem.store.usage import RECENT_READS

if TYPE_CHECKING:
    from agentmem.store.store import Store

FORMAT = "agentmem-memories"
VERSION = 1

Progress = Callable[[int, int], None] | None

_log = logging.getLogger("agentmem.store")

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str,
    "text": str,
    "role": str,
    "turn": str,
    "chunk_no": int,
    "n_tokens": int,
    "session": (str, type(None)),
    "created_at": str,
    "pinned": bool,
    "tags": list,
    "meta": dict,
    "uses": int,
    "attention": (int, float),
    "score": (int, float),
    "score_at": str,
    "last_used": (str, type(None)),
    "recent_turns": list,
    "recent_reads": list,
    "embedding": (str, type(None)),
    "expires_at": (str, type(None)),
}


_LATEST = to_us(datetime.max.replace(tzinfo=UTC), "the end of the calendar")


@dataclass(frozen=True)
class _Line:
    new: Checked
    usage: dict[str, Any]


def export(store: Store, scope: Scope, path: Path, progress: Progress, *, with_kv: bool) -> int:
    """See ``ScopedMemories.export``. Each file appears whole or not at all, the KV first."""
    with store.database.read() as connection:  # one snapshot
        place = find_place(connection, scope)
        payloads = kv_files.count(connection, place) if with_kv else 0
        if payloads and place is not None:
            with _whole(kv_files.beside(path)) as file:
                kv_files.write(store, connection, place, file)
        total = 0
        with _whole(path) as file:
            for line in _lines(store, connection, place, payloads, progress):
                file.write((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
                total += 1
    return total - 1


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there, under its name, when everything was written to it."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        if no_space(error):
            raise StoreFull(f"no room to write {path}; free some space and try again") from error
        raise StoreError(f"cannot write {path}: {error}") from error
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _lines(
    store: Store, connection: sa.Connection, place: Place | None, payloads: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    embedder = store.embedder
    conditions = place.conditions() if place else [sa.false()]
    total = connection.scalar(sa.select(sa.func.count(MemoryRow.id)).where(*conditions)) or 0
    yield {
        "format": FORMAT,
        "version": VERSION,
        "memories": total,
        "embedder": {"name": embedder.name, "dim": embedder.dim} if embedder else None,
        "kv": payloads,
    }
    done, last = 0, 0
    while True:
        page = select_rows().where(*conditions, MemoryRow.id > last).order_by(MemoryRow.id).limit(SLICE)
        rows = connection.execute(page).all()
        if not rows:
            return
        keys = [row.id for row in rows]
        tags = tags_of(connection, keys)
        vectors: dict[int, bytes] = {}
        if store.model_id is not None:
            mine = sa.select(Embedding.memory_id, Embedding.vec).where(
                Embedding.model_id == store.model_id, Embedding.memory_id.in_(keys)
            )
            vectors = dict(connection.execute(mine).all())
        for row in rows:
            yield _line(row, tags.get(row.id, []), vectors.get(row.id))
        done, last = done + len(rows), keys[-1]
        if progress is not None:
            progress(done, total)


def _line(row: AnyRow, tags: list[str], vector: bytes | None) -> dict[str, Any]:
    return {
        "id": row.uid,
        "text": row.text,
        "role": row.role,
        "turn": row.turn_uid,
        "chunk_no": row.chunk_no,
        "n_tokens": row.n_tokens,
        "session": row.label,
        "created_at": from_us(row.created_us).isoformat(),
        "pinned": row.pinned,
        "tags": tags,
        "meta": row.meta,
        "uses": row.uses,
        "attention": row.attention,
        "score": row.score,
        "score_at": from_us(row.score_us).isoformat(),
        "last_used": None if row.last_us is None else from_us(row.last_us).isoformat(),
        "recent_turns": row.recent_turns,
        "recent_reads": row.recent_reads,
        "embedding": None if vector is None else base64.b64encode(vector).decode("ascii"),
        "expires_at": None if row.expires_us is None else from_us(row.expires_us).isoformat(),
    }


def load(store: Store, scope: Scope, path: Path, progress: Progress) -> int:
    """See ``ScopedMemories.load``."""
    header, lines = _read(store, scope, path)
    with ExitStack() as stack:
        kv_file = None
        if header.get("kv"):
            beside = kv_files.beside(path)
            if beside.exists():
                kv_file = stack.enter_context(kv_files.KVFile(beside))
            else:
                _log.warning("%s is not there: KV is made anew", beside)
        new = _add(store, scope, lines, progress)
        if kv_file is not None:
            kv_file.attach(store, scope)
    return new


def _add(store: Store, scope: Scope, lines: list[_Line], progress: Progress) -> int:
    now = now_us()
    expired: expiry.Erased = []
    with store.write() as connection:
        new, space_id = 0, None
        for start in range(0, len(lines), SLICE):
            part = lines[start : start + SLICE]
            if (place := find_place(connection, scope)) is not None:
                expired += expiry.make_way(connection, place.space_id, [line.new for line in part], now)
            space_id, keys, fresh = writing.add(connection, scope, [line.new for line in part], store.model_id, now)
            for key, line in zip(keys, part, strict=True):
                if key in fresh:  # not here before: its usage travels along
                    connection.execute(sa.update(MemoryUsage).where(MemoryUsage.memory_id == key).values(**line.usage))
            new += len(fresh)
            if progress is not None:
                progress(start + len(part), len(lines))
        if space_id is not None:
            tidying.enforce(connection, store.policy, space_id, now)
    store.drain_trash()
    if expired:
        store.erase(expired, wait=0.0)
    return new


def _read(store: Store, scope: Scope, path: Path) -> tuple[dict[str, Any], list[_Line]]:
    """The header, and every line, checked."""
    try:
        with path.open(encoding="utf-8") as file:
            raw = [line for line in file.read().split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {error}") from error
    if not raw:
        raise InvalidInput(f"{path} is empty; an export has at least a header line")
    header = _object(raw[0], path, 1)
    if header.get("format") != FORMAT:
        raise InvalidInput(f"{path} is not an export of memories (its first line has no format {FORMAT!r})")
    if header.get("version") != VERSION:
        raise InvalidInput(
            f"{path} has version {header.get('version')!r}, this agentmem reads {VERSION}; upgrade agentmem"
        )
    if header.get("memories") != len(raw) - 1:
        raise InvalidInput(f"{path} has {len(raw) - 1} of {header.get('memories')!r} memories; it was cut or joined")
    embedder = store.embedder
    mine = embedder is not None and header.get("embedder") == {"name": embedder.name, "dim": embedder.dim}
    now = now_us()
    lines = []
    for number, text in enumerate(raw[1:], start=2):
        try:
            line = _parse(_object(text, path, number), embedder if mine else None, scope, now)
        except (InvalidInput, ValueError) as error:
            raise InvalidInput(f"{path}, line {number}: {error}; nothing was loaded") from error
        if line is not None:
            lines.append(line)
    return header, lines


def _object(text: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{path}, line {number} is not JSON: {error}; nothing was loaded") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}, line {number} is not a JSON object; nothing was loaded")
    return value


def _parse(line: dict[str, Any], embedder: EmbedderId | None, scope: Scope, now: int) -> _Line | None:
    """The line, checked; None for a memory that has expired since it was exported."""
    line.setdefault("expires_at", None)  # files of the first version 1 have none
    line.setdefault("recent_reads", [])
    if set(line) != set(_FIELDS):
        raise InvalidInput(f"missing {sorted(set(_FIELDS) - set(line))}, unknown {sorted(set(line) - set(_FIELDS))}")
    for name, kind in _FIELDS.items():
        if not isinstance(line[name], kind) or (kind is not bool and isinstance(line[name], bool)):
            raise InvalidInput(f"{name} has the wrong type: {line[name]!r}")
    expires_at = None if line["expires_at"] is None else datetime.fromisoformat(line["expires_at"])
    if expires_at is not None and to_us(expires_at, "expires_at") <= now:
        return None
    vector = None
    if line["embedding"] is not None and embedder is not None:  # another embedder's vector is left behind
        vector = np.frombuffer(base64.b64decode(line["embedding"], validate=True), "<f4")
    new = NewMemory(
        text=line["text"],
        role=line["role"],
        turn=line["turn"],
        n_tokens=line["n_tokens"],
        embedding=vector,
        chunk_no=line["chunk_no"],
        session=line["session"] if scope.session is None else scope.session,
        created_at=datetime.fromisoformat(line["created_at"]),
        tags=tuple(line["tags"]),
        meta=line["meta"],
        id=line["id"],
        pinned=line["pinned"],
        expires_at=expires_at,
    )
    numbers = (line["uses"], line["attention"], line["score"])
    if not all(0 <= number < 2**53 for number in numbers):
        raise InvalidInput(f"uses, attention and score must be from 0, not {numbers}")
    if len(line["recent_turns"]) > 64 or not all(isinstance(d, str) and len(d) <= 16 for d in line["recent_turns"]):
        raise InvalidInput("recent_turns must be short digests")
    reads = [_read_of(read) for read in line["recent_reads"][-RECENT_READS:]]
    usage = {
        "uses": line["uses"],
        "attention": float(line["attention"]),
        "score": float(line["score"]),
        "score_us": to_us(datetime.fromisoformat(line["score_at"]), "score_at"),
        "last_us": None if line["last_used"] is None else to_us(datetime.fromisoformat(line["last_used"]), "last_used"),
        "recent_turns": line["recent_turns"],
        "recent_reads": reads,
    }
    return _Line(check_new(new, embedder, scope.session, now), usage)


def _read_of(value: Any) -> list[float]:
    """A read's time and attention share, checked."""
    match value:
        case [int(at), int() | float() as share] if 0 <= at <= _LATEST and 0 <= share <= 1:
            return [int(at), float(share)]
    raise InvalidInput(f"recent_reads must be pairs of microseconds and attention shares, not {value!r:.80}")

"""KV that travels with an export: a safetensors file beside the JSON lines, with one tensor of bytes per payload.

The payload's bytes are as they are in the store. Its memory's id, fingerprint, codec and checksums are in the file's
metadata. What is damaged when it is written, or read, is left out: it is a cache of the text.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from safetensors import SafetensorError, safe_open

from agentmem.errors import InvalidInput, StoreUnavailable
from agentmem.records import Scope
from agentmem.store import kv
from agentmem.store.places import Place
from agentmem.store.schema import KVModel, KVPayload, MemoryRow

if TYPE_CHECKING:
    from agentmem.store.store import Store

FORMAT = "agentmem-kv"
VERSION = "1"

_AT_ONCE = 16
"""Payloads per transaction, and in RAM."""

_log = logging.getLogger("agentmem.store")


def beside(path: Path) -> Path:
    """Where the KV of an export is.

    Raises:
        InvalidInput: the export would have that name itself.
    """
    if path.suffix == ".safetensors":
        raise InvalidInput(f"{path} is the name of an export's KV; give the export another, such as memories.jsonl")
    return path.with_suffix(".safetensors")


def count(connection: sa.Connection, place: Place | None) -> int:
    """How many payloads a scope has."""
    if place is None:
        return 0
    query = sa.select(sa.func.count()).select_from(KVPayload)
    return connection.scalar(query.join(MemoryRow, MemoryRow.id == KVPayload.memory_id).where(*place.conditions())) or 0


def write(store: Store, connection: sa.Connection, place: Place, file: IO[bytes]) -> None:
    """Write all KV of a scope; one payload is in RAM at a time."""
    rows = connection.execute(
        sa.select(
            MemoryRow.uid,
            MemoryRow.text_sha256,
            KVModel.fingerprint,
            KVPayload.codec,
            KVPayload.nbytes,
            KVPayload.sha256,
            KVPayload.uri,
            KVPayload.memory_id,
            KVPayload.kv_model_id,
        )
        .join(KVPayload, KVPayload.memory_id == MemoryRow.id)
        .join(KVModel, KVModel.id == KVPayload.kv_model_id)
        .where(*place.conditions())
        .order_by(MemoryRow.id, KVModel.fingerprint)
    ).all()
    fingerprints = sorted({row.fingerprint for row in rows})
    known = {fingerprint: number for number, fingerprint in enumerate(fingerprints)}
    payloads = [[row.uid, known[row.fingerprint], row.codec, row.text_sha256.hex(), row.sha256.hex()] for row in rows]
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": VERSION,
            "fingerprints": json.dumps(fingerprints),
            "payloads": json.dumps(payloads),
        }
    }
    end = 0
    for number, row in enumerate(rows):
        header[str(number)] = {"dtype": "U8", "shape": [row.nbytes], "data_offsets": [end, end + row.nbytes]}
        end += row.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for row in rows:
        data = _bytes(store, connection, row)
        # What is gone or damaged leaves a hole: its checksum does not match, and the reader passes over it.
        file.write(data if data is not None and len(data) == row.nbytes else bytes(row.nbytes))


def _bytes(store: Store, connection: sa.Connection, row: Any) -> bytes | bytearray | None:
    if row.uri is None:
        mine = (KVPayload.memory_id == row.memory_id, KVPayload.kv_model_id == row.kv_model_id)
        return connection.scalar(sa.select(KVPayload.data).where(*mine))
    try:
        return None if store.payloads is None else store.payloads.read(row.uri)
    except StoreUnavailable as error:
        _log.warning("KV of %s is not exported: %s", row.uid, error)
        return None


@dataclass(frozen=True)
class _Payload:
    id: str
    fingerprint: str
    codec: str
    text_sha256: bytes
    sha256: bytes


class KVFile:
    """A file of exported KV, open and checked; its bytes are read when they are asked for.

    Raises:
        InvalidInput: it is no such file.
    """

    def __init__(self, path: Path):
        self.path = path
        with ExitStack() as stack:
            try:
                self._file: Any = stack.enter_context(safe_open(path, "numpy"))
                self.payloads = _payloads(self._file.metadata() or {}, set(self._file.keys()))
            except (SafetensorError, OSError, ValueError, TypeError, KeyError, IndexError) as error:
                raise InvalidInput(f"{path} is no KV of an export ({error}); remove it, and KV is made anew") from error
            self._close = stack.pop_all().close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def attach(self, store: Store, scope: Scope) -> int:
        """Attach what is whole to memories of a scope that have the same text and lack it. Returns how many."""
        attached = 0
        for start in range(0, len(self.payloads), _AT_ONCE):
            numbered = list(enumerate(self.payloads))[start : start + _AT_ONCE]
            for fingerprint in sorted({payload.fingerprint for _, payload in numbered}):
                some = [(number, payload) for number, payload in numbered if payload.fingerprint == fingerprint]
                known = kv.digests(store, scope, [payload.id for _, payload in some], fingerprint)
                new = [
                    kv.NewKV(payload.id, data, payload.codec, payload.text_sha256)
                    for number, payload in some
                    if payload.id not in known and (data := self._bytes(number)) is not None
                ]
                attached += len(kv.attach(store, scope, new, fingerprint))
        return attached

    def _bytes(self, number: int) -> bytes | None:
        data: bytes = self._file.get_tensor(str(number)).tobytes()
        return data if hashlib.sha256(data).digest() == self.payloads[number].sha256 else None


def _payloads(metadata: dict[str, str], names: set[str]) -> list[_Payload]:
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"its format is {metadata.get('format')!r}, version {metadata.get('version')!r}")
    fingerprints = json.loads(metadata["fingerprints"])
    found = [
        _Payload(id, fingerprints[number], codec, bytes.fromhex(text_sha256), bytes.fromhex(sha256))
        for id, number, codec, text_sha256, sha256 in json.loads(metadata["payloads"])
    ]
    if names != {str(number) for number in range(len(found))}:
        raise ValueError(f"it has {len(names)} tensors for {len(found)} payloads")
    return found

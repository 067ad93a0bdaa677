"""KV <-> the bytes that the store keeps, with the codebooks of product quantisation once there are some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentmem.errors import InvalidInput, PayloadDamaged
from agentmem.model.kv import KV
from agentmem.records import Memory
from agentmem.store import NewKV, ScopedMemories, Store, text_digest
from agentmem.store.codebooks import load_codebooks, save_codebooks
from agentmem.store.codec import PQ, PackedKV, pack
from agentmem.store.quantiser import Codebooks, train_codebooks

BEFORE_TRAINING = "bf16"
"""What KV is packed with until codebooks have been trained."""
SAMPLE = 4000
"""Memories whose KV codebooks are trained on."""
_BATCH = 64


class Packed:
    """KV that is still packed: which layers it has, its packed bytes, and any run of the layers as KV."""

    def __init__(self, payload: PackedKV):
        self._payload = payload
        self.layers, self.offsets, self.nbytes = payload.layers, payload.offsets, payload.nbytes

    def read(self, start: int, stop: int) -> KV:
        """Entries ``start .. stop - 1`` of ``layers``."""
        return KV(*self._payload.read(start, stop))


class Packing:
    """Packs and unpacks KV of one fingerprint."""

    def __init__(self, codec: str, store: Store | None, fingerprint: str):
        self.codec, self.fingerprint = codec, fingerprint
        self._store = store
        self.codebooks: Codebooks | None = None
        self._reload()

    def _reload(self) -> bool:
        """Take the store's codebooks; False when they are the ones that were known."""
        known = None if self.codebooks is None else self.codebooks.digest
        found = None if self._store is None else load_codebooks(self._store, self.fingerprint)
        if found is None or found.digest == known:
            return False
        self.codebooks = found
        return True

    def pack(self, kv: KV) -> tuple[bytes, str]:
        """Bytes, and the codec that made them."""
        codec = BEFORE_TRAINING if self.codec == PQ and self.codebooks is None else self.codec
        data = pack(kv.keys, kv.values, codec, layers=kv.layers, offsets=kv.offsets, codebooks=self.codebooks)
        return data, codec

    def open(self, data: bytes | bytearray | memoryview) -> Packed:
        """The block, to be decoded a few layers at a time.

        Raises:
            PayloadDamaged: these are no such bytes, or their codebooks are gone: encode it from text.
        """
        try:
            return Packed(PackedKV(data, self.codebooks))
        except PayloadDamaged:
            if not self._reload():  # another process may have compressed the store meanwhile
                raise
            return Packed(PackedKV(data, self.codebooks))

    def unpack(self, data: bytes | bytearray | memoryview) -> KV:
        """The block. Raises PayloadDamaged as ``open`` does."""
        packed = self.open(data)
        return packed.read(0, len(packed.layers))

    def attach(self, handle: ScopedMemories, memories: Sequence[Memory], kvs: Sequence[KV]) -> None:
        """Store the KV of memories. What was deleted or changed meanwhile is left alone."""
        packed = [self.pack(kv) for kv in kvs]
        new = [
            NewKV(memory.id, data, codec, text_digest(memory.text))
            for memory, (data, codec) in zip(memories, packed, strict=True)
        ]
        handle.attach_kv_many(new, fingerprint=self.fingerprint)


@dataclass(frozen=True)
class Compressed:
    """What compression did. Errors are of the sample: mean squared error relative to the mean square of the numbers."""

    memories: int
    bytes_before: int
    bytes_after: int
    key_error: float
    value_error: float


def compress(
    packing: Packing,
    store: Store,
    handle: ScopedMemories,
    advance: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Compressed:
    """Pack all warm KV of a scope with product quantisation; codebooks are trained at the first time.

    What is stored from then on under the codec ``pq`` is packed so at once. An interrupted run goes on where it was.

    Raises:
        InvalidInput: too little KV to train on, or faiss is not installed.
    """
    warm = [memory for memory in _every(handle) if memory.kv_bytes]
    step = max(1, len(warm) // SAMPLE)
    sample = _vectors(packing, handle, [memory.id for memory in warm[::step][:SAMPLE]])
    if packing.codebooks is None:
        if not sample:
            raise InvalidInput("there is no KV of this model and recipe to train codebooks on; ingest something first")
        advance("training codebooks", 0, 1)
        packing.codebooks = train_codebooks(sample)
        save_codebooks(store, packing.fingerprint, packing.codebooks)
        advance("training codebooks", 1, 1)
    before = after = done = 0
    for start in range(0, len(warm), _BATCH):
        batch = warm[start : start + _BATCH]
        loaded = handle.load_kv([memory.id for memory in batch], fingerprint=packing.fingerprint)
        new = []
        for memory in batch:
            payload = loaded.payloads.get(memory.id)
            if payload is None:
                continue
            kv = packing.unpack(payload.data)
            data = pack(kv.keys, kv.values, PQ, layers=kv.layers, offsets=kv.offsets, codebooks=packing.codebooks)
            before, after, done = before + len(payload.data), after + len(data), done + 1
            if len(data) < len(payload.data):
                new.append(NewKV(memory.id, data, PQ, text_digest(memory.text)))
        handle.attach_kv_many(new, fingerprint=packing.fingerprint)
        advance("compressing", start + len(batch), len(warm))
    errors = _errors(sample, packing.codebooks)
    return Compressed(done, before, after, *errors)


def _every(handle: ScopedMemories) -> list[Memory]:
    found: list[Memory] = []
    while page := handle.list(sort="created_at", limit=1000, offset=len(found)):
        found += page
    return found


def _vectors(packing: Packing, handle: ScopedMemories, ids: Sequence[str]) -> dict[int, tuple[Tensor, Tensor]]:
    """Keys (n, head_dim) and values (n, value_dim) of all KV heads of these memories, by layer."""
    found: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for start in range(0, len(ids), _BATCH):
        loaded = handle.load_kv(ids[start : start + _BATCH], fingerprint=packing.fingerprint)
        for payload in loaded.payloads.values():
            kv = packing.unpack(payload.data)
            for layer, key, value in zip(kv.layers, kv.keys, kv.values, strict=True):
                keys, values = found.setdefault(layer, ([], []))
                keys.append(key.flatten(0, 1).float())
                values.append(value.flatten(0, 1).float())
    return {layer: (torch.cat(keys), torch.cat(values)) for layer, (keys, values) in found.items()}


def _errors(sample: dict[int, tuple[Tensor, Tensor]], codebooks: Codebooks) -> tuple[float, float]:
    """Relative error of keys and of values, mean over the layers."""
    errors: tuple[list[float], list[float]] = ([], [])
    for layer, pair in sample.items():
        for kind in range(2):
            quantiser, vectors = codebooks.layers[layer][kind], pair[kind][:4096]
            lost = quantiser.decode(quantiser.encode(vectors)) - vectors
            errors[kind].append(float(lost.square().mean() / vectors.square().mean()))
    return tuple(sum(some) / max(1, len(some)) for some in errors)  # type: ignore[return-value]  # there are two

"""Writing: a finished turn becomes memories. Text first and durably; KV follows, off the reply's path."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from typing import Any
from uuid import uuid4

from agentmem.chunking import chunk_text
from agentmem.errors import AgentMemError
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.recipes import Recipe
from agentmem.records import Memory, Role
from agentmem.retrieval import Embedder
from agentmem.store import NewKV, NewMemory, ScopedMemories, text_digest
from agentmem.store.codec import pack

log = logging.getLogger(__name__)

BATCH = 16
"""Chunks encoded in one forward pass."""


@dataclass(frozen=True)
class Turn:
    """One message to be remembered."""

    role: Role
    text: str
    session: str | None
    id: str = field(default_factory=lambda: uuid4().hex)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


class Writer:
    """Chunks, embeds and stores turns, and encodes their KV in one background thread."""

    def __init__(self, model: LocalModel, recipe: Recipe, embedder: Embedder, codec: str):
        self.model, self.recipe, self.embedder, self.codec = model, recipe, embedder, codec
        self.fingerprint = model.kv_fingerprint(recipe.identity)
        self._queue: deque[tuple[ScopedMemories, Memory, KV | None]] = deque()
        self._change = threading.Condition()
        self._busy = False
        self._closing = False
        self._thread: threading.Thread | None = None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of the text."""
        encoded = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def write(self, handle: ScopedMemories, turns: Sequence[Turn]) -> list[Memory]:
        """Store the turns in one transaction and return after its commit; their KV is encoded in the background."""
        new = [memory for turn in turns for memory in self.chunks(turn)]
        if not new:
            return []
        memories = handle.add(new)
        self.schedule(handle, memories)
        return memories

    def chunks(self, turn: Turn) -> list[NewMemory]:
        """The turn's chunks with their embeddings. Raises InvalidInput for text that cannot be stored."""
        chunks = chunk_text(turn.text, self.spans)
        vectors = self.embedder.embed([chunk.text for chunk in chunks])
        return [
            NewMemory(
                id=f"{turn.id}-{number}",
                text=chunk.text,
                role=turn.role,
                turn=turn.id,
                session=turn.session,
                chunk_no=number,
                n_tokens=chunk.n_tokens,
                embedding=vectors[number],
                created_at=turn.created_at,
                tags=turn.tags,
                meta=turn.meta,
            )
            for number, chunk in enumerate(chunks)
        ]

    def schedule(self, handle: ScopedMemories, memories: Sequence[Memory], kvs: Sequence[KV] | None = None) -> None:
        """Store these memories' KV in the background; what is not given is encoded there, when the model is free."""
        with self._change:
            self._queue.extend(zip(repeat(handle), memories, kvs or repeat(None)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="agentmem-writer", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every scheduled KV is stored. False when the timeout (seconds) passed first."""
        with self._change:
            return self._change.wait_for(lambda: not self._queue and not self._busy, timeout)

    def close(self, timeout: float) -> int:
        """Wait at most ``timeout`` seconds for scheduled KV; what is left stays cold. Returns how many are left."""
        self.flush(timeout)
        with self._change:
            self._closing = True
            left = len(self._queue)
            self._queue.clear()
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        return left

    def _work(self) -> None:
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                self._busy = True
                handle = self._queue[0][0]
                batch: list[tuple[Memory, KV | None]] = []
                while self._queue and len(batch) < BATCH and self._queue[0][0] is handle:
                    batch.append(self._queue.popleft()[1:])
            try:
                self._attach(handle, batch)
            except AgentMemError as error:  # the memories stay cold and are encoded again when they are recalled
                log.warning("KV of %d memories was not stored: %s", len(batch), error)

    def _attach(self, handle: ScopedMemories, batch: Sequence[tuple[Memory, KV | None]]) -> None:
        """Encode what is not encoded yet, and attach all. What was deleted or changed meanwhile is left alone."""
        bare = [memory for memory, kv in batch if kv is None]
        fresh = iter(self.recipe.encode(self.model, bare) if bare else ())
        whole = [(memory, next(fresh) if kv is None else kv) for memory, kv in batch]
        handle.attach_kv_many(
            [
                NewKV(memory.id, pack(kv.keys, kv.values, self.codec), self.codec, text_digest(memory.text))
                for memory, kv in whole
            ],
            fingerprint=self.fingerprint,
        )

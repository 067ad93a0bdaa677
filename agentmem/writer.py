"""Writing: a finished turn becomes memories. Text first and durably; KV follows, off the reply's path."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from agentmem.chunking import chunk_text
from agentmem.errors import InvalidInput
from agentmem.model.kv import KV
from agentmem.model.local import LocalModel
from agentmem.packing import Packing
from agentmem.recipes import Recipe
from agentmem.records import Memory, Role
from agentmem.retrieval import Embedder
from agentmem.store import NewMemory, ScopedMemories, Store

log = logging.getLogger(__name__)

BATCH = 16
"""Chunks encoded in one forward pass."""

WARM = 256
"""Chunks of one write whose KV is encoded at once. Of a text as long as a book few are ever read: the others stay cold
until they are recalled, and the model is free for the reply."""


def chunk_id(turn: str, number: int) -> str:
    """Id of the memory that a turn's chunk becomes."""
    return f"{turn}-{number}"


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
    expires_at: datetime | None = None
    named: bool = False
    """The id is a caller's own: the memory of the first chunk has it too, so that a short text is found by it."""

    def memory_id(self, number: int) -> str:
        """Id of the memory that a chunk becomes."""
        return self.id if self.named and number == 0 else chunk_id(self.id, number)


class Writer:
    """Chunks, embeds and stores turns, and encodes their KV in one background thread.

    Without a recipe (a stream keeps its own KV) the memories stay text and embedding.
    """

    def __init__(
        self, model: LocalModel, recipe: Recipe | None, embedder: Embedder, codec: str, store: Store | None = None
    ):
        self.model, self.embedder = model, embedder
        self._recipe = recipe
        self.fingerprint = model.kv_fingerprint("none" if recipe is None else recipe.identity)
        self.packing = Packing(codec, store, self.fingerprint)
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentmem-writer")
        self._lock = threading.Lock()
        self._pending: dict[Future[None], int] = {}
        """Batches whose KV is not stored yet, with their numbers of memories."""

    @property
    def recipe(self) -> Recipe:
        """How chunks become KV. Raises InvalidInput where they do not."""
        if self._recipe is None:
            raise InvalidInput(
                "a stream recipe encodes no memories one by one; use parallel, memlong or memory3 for that"
            )
        return self._recipe

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span of each token of the text."""
        encoded = self.model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [(start, end) for start, end in encoded["offset_mapping"]]

    def write(self, handle: ScopedMemories, turns: Sequence[Turn]) -> list[Memory]:
        """Store the turns in one transaction and return after its commit; their KV is encoded in the background.

        Of more than ``WARM`` chunks the first ones; the KV of the others is encoded when they are recalled.
        """
        if not turns:
            return []
        memories = handle.add(self._chunks(turns))
        self.schedule(handle, memories[:WARM])
        return memories

    def _chunks(self, turns: Sequence[Turn]) -> list[NewMemory]:
        """The turns' chunks, embedded together. Raises InvalidInput for text that cannot be stored."""
        cut = [(turn, *numbered) for turn in turns for numbered in enumerate(chunk_text(turn.text, self.spans))]
        texts = list(dict.fromkeys(chunk.text for _, _, chunk in cut))  # tools repeat themselves
        vectors = dict(zip(texts, self.embedder.embed(texts), strict=True))
        return [
            NewMemory(
                id=turn.memory_id(number),
                text=chunk.text,
                role=turn.role,
                turn=turn.id,
                session=turn.session,
                chunk_no=number,
                n_tokens=chunk.n_tokens,
                embedding=vectors[chunk.text],
                created_at=turn.created_at,
                tags=turn.tags,
                meta=turn.meta,
                expires_at=turn.expires_at,
            )
            for turn, number, chunk in cut
        ]

    def first_chunk(self, text: str) -> str:
        """The beginning of a text that is stored as its first memory."""
        return next(iter(chunk_text(text, self.spans))).text

    def schedule(self, handle: ScopedMemories, memories: Sequence[Memory], kvs: Sequence[KV] | None = None) -> None:
        """Store these memories' KV in the background; what is not given is encoded there, when the model is free."""
        if self._recipe is None:
            return
        for start in range(0, len(memories), BATCH):
            batch = slice(start, start + BATCH)
            job = self._encoder.submit(self._attach, handle, memories[batch], None if kvs is None else kvs[batch])
            with self._lock:
                self._pending[job] = len(memories[batch])
            job.add_done_callback(self._done)

    def embed_pending(self, store: Store) -> int:
        """Embed whatever the store has no vector of this embedder for. Returns how many memories that were."""
        done = 0
        while pending := store.pending_embeddings(limit=256):
            vectors = self.embedder.embed([memory.text for memory in pending])
            store.put_embeddings(list(zip(pending, vectors, strict=True)))
            done += len(pending)
        if done:
            log.info("embedded %d memories anew with %s", done, self.embedder.name)
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until every scheduled KV is stored. False when the timeout (seconds) passed first."""
        with self._lock:
            jobs = set(self._pending)
        return not wait(jobs, timeout).not_done

    def close(self, timeout: float) -> int:
        """Wait at most ``timeout`` seconds for scheduled KV; what is left stays cold. Returns how many are left."""
        self.flush(timeout)
        with self._lock:
            left = sum(n for job, n in self._pending.items() if not job.running() and not job.done())
        self._encoder.shutdown(wait=True, cancel_futures=True)
        return left

    def _attach(self, handle: ScopedMemories, memories: Sequence[Memory], kvs: Sequence[KV] | None) -> None:
        """Encode and attach one batch. What was deleted or changed meanwhile is left alone."""
        if kvs is None:
            kvs = self.recipe.encode(self.model, memories)
        self.packing.attach(handle, memories, kvs)

    def _done(self, job: Future[None]) -> None:
        """A batch that failed stays cold, and is encoded again when one of its memories is recalled."""
        with self._lock:
            n = self._pending.pop(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.warning("KV of %d memories was not stored: %s", n, error)

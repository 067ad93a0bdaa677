"""MemoryLLM: a local language model and the durable store of what it was told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from uuid import uuid4

import numpy as np
import torch
from pydantic import ValidationError

from agentmem.conversation import Conversation
from agentmem.errors import InvalidInput
from agentmem.ingest import Ingested, ingest
from agentmem.memories import Memories
from agentmem.model.local import LocalModel
from agentmem.model.stream import Layout, StreamPlan, check_plan
from agentmem.packing import Compressed, compress
from agentmem.prefixes import Prefixes
from agentmem.reader import Reader
from agentmem.rebuild import Rebuilt, rebuild
from agentmem.recipes import Recipe, StreamRecipe, get_recipe, memory_recipe
from agentmem.records import Scope
from agentmem.retrieval import Embedder, get_embedder
from agentmem.store import EmbedderId, EvictionPolicy, HotTier, ScopedLog, Store
from agentmem.store.codec import CODECS, PQ
from agentmem.store.inputs import Vector
from agentmem.streaming import StreamConversation
from agentmem.text import check_text
from agentmem.writer import Writer

log = logging.getLogger(__name__)

BUNDLED = "bundled"
"""Name of the small model that ships with the package."""
DEFAULT_CODEC = "int8"
"""How KV is stored unless told otherwise."""


def bundled_model() -> Path:
    """Folder of the model that ships with the package."""
    return Path(str(files("agentmem.model") / "bundled"))


class MemoryLLM:
    """A Hugging Face model with a memory that lasts.

    Args:
        model: Hub id or local folder of a decoder-only model; None is the bundled demonstration model.
        store: Path of the store, a single SQLite file, made if it does not exist; or the address of a PostgreSQL
            database, ``postgresql://user:password@host/database``.
        recipe: How memory is written and read: a name or an instance of ``agentmem.recipes``.
        embedder: None for the model's own hidden states, the name of a sentence-transformers model, or an Embedder.
        device: As torch names it; None for CUDA if there is a GPU, else the CPU.
        dtype: As torch names it; None for the checkpoint's own on a GPU, float32 on the CPU.
        top_k: Memories read at once; 0 turns reading off, None is the recipe's own number.
        threshold: Fused recall score (sum of z-scores) below which nothing is recalled; None for no threshold.
        window_tokens: Tokens of recent turns kept in context; None for half of the model's context.
        max_new_tokens: Default length limit of a reply.
        codec: How KV is stored: fp32, fp16, bf16, int8, int4, or pq (product quantisation, from ``compress`` on).
        hot_bytes: RAM for recently read KV of memories; as much again may hold that of the windows of sessions.
        eviction: Budgets and half-life; see ``EvictionPolicy``.
        kv_store: For a store on PostgreSQL, the bucket of larger KV, ``s3://bucket/prefix``; None for the database.

    Raises:
        ModelLoadError, UnsupportedModel, StoreOpenError, SchemaTooNew, InvalidInput.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        store: str | Path = "memory.db",
        recipe: str | Recipe | StreamRecipe = "parallel",
        embedder: str | Embedder | None = None,
        device: str | None = None,
        dtype: str | None = None,
        top_k: int | None = None,
        threshold: float | None = 1.0,
        window_tokens: int | None = None,
        max_new_tokens: int = 128,
        codec: str = DEFAULT_CODEC,
        hot_bytes: int = 256 * 2**20,
        eviction: EvictionPolicy | None = None,
        kv_store: str | None = None,
    ):
        if codec not in (*CODECS, PQ):
            raise InvalidInput(f"unknown codec {codec!r}; choose one of {', '.join((*CODECS, PQ))}")
        for name, value, least in (
            ("top_k", 0 if top_k is None else top_k, 0),
            ("max_new_tokens", max_new_tokens, 1),
            ("hot_bytes", hot_bytes, 0),
            ("window_tokens", 16 if window_tokens is None else window_tokens, 16),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidInput(f"{name} must be a whole number from {least}, not {value!r}")
        self.model = LocalModel.load(
            bundled_model() if model is None or model == BUNDLED else model, device=device, dtype=_torch_dtype(dtype)
        )
        self.name = BUNDLED if model is None else Path(model).name if Path(model).is_dir() else str(model)
        """What the model is called: its hub id, or the name of its folder."""
        self.recipe: Recipe | StreamRecipe = get_recipe(recipe)
        self.recipe.check(self.model)
        embedding = get_embedder(embedder, self.model)
        self.max_new_tokens = min(max_new_tokens, self.model.max_positions // 2)
        self.window_tokens = self.model.max_positions // 2 if window_tokens is None else window_tokens
        if self.window_tokens > self.model.max_positions:
            raise InvalidInput(f"window_tokens is {window_tokens}; this model has {self.model.max_positions} positions")
        self.store = Store.open(
            store,
            embedder=EmbedderId(embedding.name, embedding.dim, embedding.noise),
            eviction=eviction or EvictionPolicy(),
            kv_store=kv_store,
        )
        chunked = None if isinstance(self.recipe, StreamRecipe) else self.recipe
        self.writer = Writer(self.model, chunked, embedding, codec, self.store)
        # Vectors of another embedder are never compared with this one's.
        self.writer.embed_pending(self.store)
        most = (chunked.top_k if chunked else 0) if top_k is None else top_k
        self.reader = Reader(self.writer, HotTier(hot_bytes), top_k=most, threshold=threshold)
        self.prefixes = Prefixes(hot_bytes)
        self._layouts: dict[StreamPlan, Layout] = {}

    def conversation(
        self, *, user: str, agent: str = "", session: str | None = None, system: str | None = None
    ) -> Conversation:
        """A dialogue with the memories of one user (and agent).

        ``session`` names this dialogue (a fresh name if None). One that was named before goes on where it stopped: its
        recent turns are the window again. Memories of the user's other sessions are read too. With a stream recipe
        (``infllm``) the dialogue is one stream that goes on where it stopped, and reads nothing but itself.
        Raises InvalidInput for a scope segment that cannot be used.
        """
        name = uuid4().hex if session is None else session
        try:
            scope = Scope(user=user, agent=agent)
            Scope(user=user, agent=agent, session=name)
        except ValidationError as error:
            raise InvalidInput(f"cannot open a conversation for this scope: {error}") from error
        if not user or not name:
            raise InvalidInput(
                f"{'session' if user else 'user'} is empty; name whose memories, or which dialogue, this is"
            )
        if isinstance(self.recipe, StreamRecipe):
            return StreamConversation(self, self.recipe, scope, name, system)
        return Conversation(self, scope, name, system, resume=session is not None)

    def memories(self, *, user: str, agent: str = "") -> Memories:
        """What is remembered of one user (and agent), without a dialogue. Raises InvalidInput for unusable names."""
        return Memories(self.store, self.store.scope(_space(user, agent)), self.writer)

    def log(self, *, user: str, agent: str = "") -> ScopedLog:
        """Plain values under ordered keys for one user (and agent): they are never embedded, recalled or read.

        Raises InvalidInput for unusable names.
        """
        return self.store.log(_space(user, agent))

    def embed(self, texts: Sequence[str]) -> tuple[Vector, int]:
        """Vectors of texts as recall sees them: float32 (n, dim), each of length 1; and how many tokens they have.

        Raises InvalidInput for a text that cannot be used.
        """
        checked = [check_text(text) for text in texts]
        vectors = self.writer.embedder.embed(checked)
        return np.asarray(vectors, dtype=np.float32), sum(len(self.model.chat.encode(text)) for text in checked)

    def layout(self, plan: StreamPlan) -> Layout:
        """Sizes of a stream's blocks; found once per plan."""
        if plan not in self._layouts:
            self._layouts[plan] = check_plan(self.model, plan)
        return self._layouts[plan]

    def ingest(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        user: str,
        agent: str = "",
        warm: bool = True,
        advance: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Ingested:
        """Store a knowledge base (.txt, .md, .jsonl; files or folders) as references of at most 128 tokens.

        With ``warm`` their KV is encoded now, else at their first recall. What is there already is passed over.
        ``advance`` is called as ``advance(what, done, total)`` on the way.

        Raises:
            InvalidInput: a file that cannot be read, a scope that cannot be used, or a recipe that keeps a stream;
                nothing was stored.
        """
        memory_recipe(self.recipe)
        several = [paths] if isinstance(paths, str | Path) else list(paths)
        return ingest(
            self.writer, self.store.scope(_space(user, agent)), [Path(p) for p in several], warm=warm, advance=advance
        )

    def compress(
        self,
        *,
        user: str,
        agent: str = "",
        advance: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Compressed:
        """Pack all KV on disk of a scope by product quantisation; needs the extra ``pq`` at the first time.

        The first time trains codebooks and keeps them in the store. With ``codec="pq"`` new KV is packed so at once.

        Raises:
            InvalidInput: too few memories to train on, or the extra is missing.
        """
        memory_recipe(self.recipe)
        return compress(self.writer.packing, self.store, self.store.scope(_space(user, agent)), advance)

    def rebuild(
        self,
        *,
        user: str | None = None,
        agent: str = "",
        advance: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> Rebuilt:
        """Encode all KV of a user, or of everybody, with this model and recipe now, not at each memory's next recall.

        For after a change of either. KV of other models and recipes is removed. ``advance`` is called as
        ``advance(what, done, total)``.

        Raises:
            InvalidInput: a scope that cannot be used, or a recipe that keeps a stream.
        """
        memory_recipe(self.recipe)
        scopes = self.store.spaces() if user is None else [_space(user, agent)]
        return rebuild(self.writer, [self.store.scope(scope) for scope in scopes], advance)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the KV of everything that was said is on disk. False if ``timeout`` seconds passed first."""
        return self.writer.flush(timeout)

    def close(self, timeout: float = 60.0) -> None:
        """Store what is pending and close. KV that ``timeout`` seconds do not suffice for stays cold (text is safe)."""
        self.reader.close()
        left = self.writer.close(timeout)
        if left:
            log.warning("KV of %d memories was not encoded in %.0f s; it will be at their next recall", left, timeout)
        self.store.close()

    def __enter__(self) -> MemoryLLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _space(user: str, agent: str) -> Scope:
    """Whose memories. Raises InvalidInput for names that cannot be used."""
    if not user:
        raise InvalidInput("user is empty; name whose memories these are")
    try:
        return Scope(user=user, agent=agent)
    except ValidationError as error:
        raise InvalidInput(f"memories cannot be kept for this scope: {error}") from error


def _torch_dtype(name: str | None) -> torch.dtype | None:
    """The floating-point dtype that torch calls by this name."""
    dtype = None if name is None else getattr(torch, name, None)
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InvalidInput(f"unknown dtype {name!r}; use float32, bfloat16 or float16")
    return dtype

"""What people see: scopes, memories, hits, replies. Plain frozen pydantic models, no behaviour beyond validation."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_SEGMENT = 256
"""Longest scope segment, in characters."""


class Role(StrEnum):
    """Who spoke the turn that a chunk was cut from."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Tier(StrEnum):
    """Where a memory's KV is: in RAM or on the GPU, on disk, or nowhere (text and embedding only)."""

    HOT = "hot"
    WARM = "warm"
    COLD = "cold"


def _segment(value: str) -> str:
    """A scope segment is compared code point by code point: nothing invisible may be in it, nothing is folded."""
    if len(value) > MAX_SEGMENT:
        raise ValueError(f"a scope segment has at most {MAX_SEGMENT} characters, this one has {len(value)}")
    if value != value.strip():
        raise ValueError(f"a scope segment must not begin or end with white space: {value!r}")
    for char in value:
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp", "Co", "Cn"}:
            raise ValueError(f"a scope segment must not contain the invisible character U+{ord(char):04X}: {value!r}")
    return value


Segment = Annotated[str, AfterValidator(_segment)]


class Record(BaseModel):
    """Base of all records: frozen, and strict about names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Scope(Record):
    """Whose memory it is. Segments are matched whole, by code point, never by prefix and never folded.

    ``user`` and ``agent`` name the space that is read and written; an empty segment is a segment like any other
    (it matches only the empty one). ``session`` narrows a handle to one session; None sees every session of the space.
    """

    user: Segment
    agent: Segment = ""
    session: Segment | None = None


class Read(Record):
    """One turn in which a memory was read."""

    at: datetime
    attention: float
    """Attention share that it received."""


class Memory(Record):
    """One stored chunk, as people list and inspect it."""

    id: str
    scope: Scope
    text: str
    role: Role
    turn: str
    """Id of the turn that it was cut from."""
    chunk_no: int
    """Place of the chunk within its turn, from 0."""
    n_tokens: int
    created_at: datetime
    """UTC, when it was written. This date stands in the header that its KV is encoded with."""
    uses: int = 0
    """Turns in which it was read."""
    attention: float = 0.0
    """Sum over those turns of the attention share it received."""
    frequency: float = 0.0
    """Usage frequency now: reads weighted by attention share, aged by half-life. Eviction orders by it."""
    last_used: datetime | None = None
    reads: tuple[Read, ...] = ()
    """The newest of its uses (20 at most), oldest first."""
    pinned: bool = False
    expires_at: datetime | None = None
    """UTC, from when on it is not there any more; None: never."""
    tier: Tier = Tier.COLD
    kv_bytes: int = 0
    tags: tuple[str, ...] = ()
    meta: dict[str, Any] = Field(default_factory=dict)


class Explanation(Record):
    """Why a memory was found: every score that went into its rank."""

    lexical: float | None
    """BM25 (larger is better) or None when no word of the query is in its key."""
    dense: float | None
    """Cosine of query and memory embedding, or None when the dense leg did not return it."""
    lexical_z: float
    dense_z: float
    threshold: float | None


class Hit(Record):
    """One result of a search."""

    memory: Memory
    score: float
    """Sum of the two legs' z-scores over the candidates."""
    explain: Explanation | None = None


class MemoryRead(Record):
    """One memory that a reply attended to."""

    memory: Memory
    score: float
    attention: float
    """Attention share: the part of the softmax mass that it received, mean over layers, heads and answer tokens."""
    rebuilt: bool = False
    """True when its KV was missing, damaged or of another model, and was re-encoded from text for this read."""


class TokenRead(Record):
    """What one token of a reply attended to."""

    start: int
    """Its first character in ``Reply.text``; the same as ``end`` for a token that shows nothing by itself."""
    end: int
    attention: dict[str, float]
    """Attention share by memory id, mean over layers and heads. Together they are at most 1: the rest of the softmax
    mass went to the dialogue itself."""


class Usage(Record):
    """Token counts of one reply."""

    prompt_tokens: int
    completion_tokens: int
    memory_tokens: int


FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]


class ToolCall(Record):
    """One call that the model asks for: a tool's name and its arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Reply(Record):
    """One turn's answer and what was read to give it."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What the model asks for, where ``chat`` was given tools; the results follow as messages of role ``tool``."""
    memories: tuple[MemoryRead, ...] = ()
    tokens: tuple[TokenRead, ...] = ()
    """Token by token what was read: the mean over them is each memory's share. Empty for a stream recipe, and where
    the words do not stand in one piece before the calls."""
    finish_reason: FinishReason = "stop"
    usage: Usage
    turn: str = ""
    """Id of the dialogue's last turn, this reply's own unless it is empty: ``chat(..., after=turn)`` goes on there."""
    notes: tuple[str, ...] = ()
    """Anything that a user should know: KV rebuilt, text cut from the window, an index re-embedded."""


class Message(Record):
    """One message of a dialogue, in OpenAI-chat form."""

    role: Role
    content: str
    name: str | None = None
    tool_call_id: str | None = None


class LogEntry(Record):
    """One value of a log. Values are plain JSON; ``revision`` counts how often this one was set, from 1."""

    key: tuple[str | int, ...]
    value: Any
    revision: int
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None


class Event(Record):
    """One line of a memory's history."""

    at: datetime
    action: Literal["added", "updated", "pinned", "unpinned", "kv_attached", "kv_dropped", "deleted", "evicted"]
    reason: str = ""


class Pruned(Record):
    """What a prune took (or, in a dry run, would take): a memory, its KV, or a session's stream."""

    id: str
    """The memory's id; of a stream, the session's name."""
    action: Literal["drop_kv", "delete", "drop_stream"]
    reason: str
    frequency: float
    kv_bytes: int


class PruneReport(Record):
    """What a prune did, or would do."""

    dry_run: bool
    pruned: tuple[Pruned, ...]
    freed_kv_bytes: int
    kept: int


class Stats(Record):
    """A scope (or, from the store itself, everything) in numbers."""

    memories: int
    pinned: int
    tokens: int
    text_bytes: int
    kv_bytes: int
    warm: int
    cold: int
    uses: int
    oldest: datetime | None
    newest: datetime | None
    file_bytes: int
    streams: int = 0
    stream_bytes: int = 0
    """KV of sessions that is kept as streams (recipe ``infllm``); ``kv_bytes`` contains it."""


class Period(Record):
    """What happened in a scope within a stretch of time."""

    start: datetime
    added: int
    deleted: int
    """Forgotten on request."""
    evicted: int
    """Gone by budget, prune or expiry."""
    kv_dropped: int
    """Moved from warm to cold."""
    memories: int
    """At its end."""


class UsesCount(Record):
    """How many memories were read in ``least`` to ``most`` turns."""

    least: int
    most: int
    memories: int


class Activity(Record):
    """A scope over time, and how its uses are spread."""

    period_seconds: int
    periods: tuple[Period, ...]
    """From the first that the audit knows of to now, without gaps."""
    uses: tuple[UsesCount, ...]


class Problem(Record):
    """One thing that verify found wrong."""

    kind: Literal[
        "payload",
        "payload_file",
        "orphan_file",
        "vector_index",
        "text_index",
        "database",
        "embedding",
        "stream",
        "totals",
    ]
    id: str | None
    detail: str
    repaired: bool


class VerifyReport(Record):
    """Result of a check of the whole store."""

    checked: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong that was not repaired."""
        return all(problem.repaired for problem in self.problems)


class Forgotten(Record):
    """What a delete did."""

    ids: tuple[str, ...]
    complete: bool
    """True when nothing of them is left in the store's files. False while another process still reads an older
    snapshot of the database: they are gone from every answer, and the next write, close or open erases the rest. On
    PostgreSQL always False: rows are gone from every answer, and their bytes from the tables' files after the next
    ``Store.vacuum``."""


class PendingEmbedding(Record):
    """A memory that has no vector of the store's embedder yet."""

    key: int
    """The database's own id: hand it back to ``Store.put_embeddings``."""
    text: str
    role: Role
    created_at: datetime

"""What people see: scopes, memories, hits, replies. Plain frozen pydantic models, no behaviour beyond validation."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


FinishReason = Literal["stop", "length", "cancelled", "tool_calls", "broken_call"]
"""``broken_call``: it began to call a tool, but wrote no call of one that was offered; ``text`` has all of it."""


def _content(value: object) -> object:
    """The text of OpenAI's ``content``: a str, a list of text parts, or nothing. Bytes are not text."""
    if value is None:
        return ""
    if isinstance(value, (bytes, bytearray)):
        raise ValueError("content is bytes; decode them to a str first, or say in words what they are")
    if not isinstance(value, (list, tuple)):
        return value
    texts = []
    for part in value:
        if (
            not isinstance(part, Mapping)
            or part.get("type") not in _TEXT_PARTS
            or not isinstance(part.get("text"), str)
        ):
            raise ValueError("a part of content must be {'type': 'text', 'text': ...}: the model reads text only")
        texts.append(part["text"])
    return "\n".join(texts)


def _arguments(value: object) -> object:
    """Arguments as an object; OpenAI's form has them as JSON text."""
    if not isinstance(value, (str, type(None))):
        return value
    try:
        return json.loads(value or "{}")
    except (ValueError, RecursionError):
        raise ValueError("the arguments of a tool call must be a JSON object") from None


def _json(value: dict[str, Any]) -> dict[str, Any]:
    """Arguments, if JSON can hold them, and UTF-8 can hold that."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the arguments of a tool call must be plain JSON: {type(error).__name__}") from None
    return value


_TEXT_PARTS = ("text", "input_text", "output_text")


class ToolCall(Record):
    """One call of a tool: its id, the tool's name, and the arguments.

    OpenAI's nested form is understood as well: ``{"id", "type", "function": {"name", "arguments"}}``, with arguments as
    JSON text or as an object.
    """

    id: str = Field(default_factory=lambda: f"call_{uuid4().hex}")
    """Names the call, so that a ``tool`` message can answer it; one is made up where none is given."""
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments), AfterValidator(_json)] = Field(
        default_factory=dict
    )

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        flat = dict(value)
        if flat.pop("type", "function") != "function":
            raise ValueError("a tool call has the type 'function'")
        if isinstance(flat.get("function"), Mapping):
            flat.update(flat.pop("function"))
        return {key: part for key, part in flat.items() if part is not None and key != "index"}

    @property
    def text(self) -> str:
        """The call in words: a line of its own at the end of its turn, as it is stored and remembered."""
        return f"Calling {self.name} with {json.dumps(self.arguments, ensure_ascii=False)}"

    def openai(self) -> dict[str, Any]:
        """The call in OpenAI's form, its arguments as JSON text."""
        arguments = json.dumps(self.arguments, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class Message(Record):
    """One message of a dialogue. Dicts of OpenAI's chat form are understood as they are.

    ``content`` may be given as a str, as a list of text parts, or as None; ``tool_calls`` in either form of
    ``ToolCall``; the role ``developer`` is ``system``. Fields without a value are passed over; others that are not
    known are refused.
    """

    role: Role
    content: Annotated[str, BeforeValidator(_content)] = ""
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant's turn calls."""
    tool_call_id: str | None = None
    """Of a ``tool`` message: the call that it answers. Without one, the first call that has no answer yet."""
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _openai(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = {key: part for key, part in value.items() if part is not None and (key in cls.model_fields or part)}
        return {**given, "role": "system"} if given.get("role") == "developer" else given

    @model_validator(mode="after")
    def _only_assistants_call(self) -> Message:
        if self.tool_calls and self.role is not Role.ASSISTANT:
            raise ValueError(f"only an assistant's message has tool_calls, not one of role {self.role.value!r}")
        return self

    @property
    def text(self) -> str:
        """Everything that the message says, calls included: what is stored of it."""
        return "\n".join([*([self.content] if self.content.strip() else []), *(call.text for call in self.tool_calls)])

    def openai(self) -> dict[str, Any]:
        """The message in OpenAI's chat form."""
        calls = [call.openai() for call in self.tool_calls]
        plain: dict[str, Any] = {"role": self.role.value, "content": self.content or (None if calls else "")}
        if calls:
            plain["tool_calls"] = calls
        return plain | {k: v for k in ("tool_call_id", "name") if (v := getattr(self, k)) is not None}


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
    """Anything that a user should know: KV rebuilt, text cut from the window, an index re-embedded, a broken call."""

    @property
    def message(self) -> Message:
        """The reply as a message, to put behind the others of a list."""
        return Message(role=Role.ASSISTANT, content=self.text, tool_calls=self.tool_calls)


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

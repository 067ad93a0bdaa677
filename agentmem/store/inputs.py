"""What callers hand in, and the checks that it passes before anything is written."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from agentmem.errors import InvalidInput
from agentmem.records import Role, Scope
from agentmem.text import check_characters, check_text

MAX_TEXT = 65_536
"""Longest text of one memory, in characters. A chunk has at most 128 tokens; this only stops accidents."""
MAX_NAME = 256
"""Longest id, turn id or tag, in characters."""
MAX_TAGS = 64
MAX_META = 65_536
"""Longest ``meta``, in bytes of JSON."""
MAX_FINGERPRINT = 4096

Vector = npt.NDArray[np.float32]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_AGE = re.compile(r"([0-9]{1,6})([dhw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


@dataclass(frozen=True)
class EmbedderId:
    """Identity of an embedder: vectors of different identities are never compared.

    ``noise`` is no part of the identity: the standard deviation of cosines between unrelated texts, about 0.05 to 0.1
    for sentence embedders, 0.14 for the bundled model's hidden states. Search takes smaller differences for chance.
    """

    name: str
    dim: int
    noise: float = field(default=0.05, compare=False)


@dataclass(frozen=True, eq=False)
class NewMemory:
    """One chunk to be stored.

    ``embedding`` is float32 ``(dim,)``, finite, L2-normalised; None leaves it to ``Store.pending_embeddings``.
    ``turn`` groups the chunks of one turn. ``session`` None means no session (or, in a handle that is narrowed to a
    session, that one). ``created_at`` carries a time zone; None is now. With an ``id`` of the caller's own, adding the
    same text again changes nothing. From ``expires_at`` (with a time zone; None: never) the memory is not there any
    more, pinned or not.
    """

    text: str
    role: Role
    turn: str
    n_tokens: int
    embedding: Vector | None = None
    chunk_no: int = 0
    session: str | None = None
    created_at: datetime | None = None
    tags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    pinned: bool = False
    expires_at: datetime | None = None


def text_digest(text: str) -> bytes:
    """sha256 of a text: what ``attach_kv`` compares, so that KV of an old text is not attached to a new one."""
    return hashlib.sha256(text.encode()).digest()


def check_name(name: object, what: str) -> str:
    """An id or a tag: printable, not blank, at most 256 characters.

    Raises:
        InvalidInput: it is not.
    """
    name = check_text(name, what, MAX_NAME)
    if not name.isprintable() or name != name.strip():
        raise InvalidInput(f"{what} must be printable and not begin or end with white space: {name!r}")
    return name


def check_session(label: object) -> str | None:
    """A session label obeys the rules of a scope segment."""
    if label is None:
        return None
    try:
        return Scope.model_validate({"user": "", "session": label}).session
    except ValueError as error:
        raise InvalidInput(f"session label: {error}") from None


def check_tags(tags: object) -> tuple[str, ...]:
    """Tags as a sorted tuple without repetition."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidInput(f"tags must be a sequence of str, not {type(tags).__name__}")
    clean = tuple(sorted({check_name(tag, "tag") for tag in tags}))
    if len(clean) > MAX_TAGS:
        raise InvalidInput(f"{len(clean)} tags; at most {MAX_TAGS} fit")
    return clean


def check_meta(meta: object, longest: int = MAX_META) -> dict[str, Any]:
    """Meta as a plain JSON object."""
    if not isinstance(meta, Mapping) or not all(isinstance(key, str) for key in meta):
        raise InvalidInput("meta must be a mapping with str keys")
    plain: dict[str, Any] = check_json(dict(meta), "meta", longest)
    return plain


def check_json(value: object, what: str, longest: int) -> Any:
    """A value as plain JSON of at most ``longest`` bytes, as it will be read again.

    Raises:
        InvalidInput: it is none (NaN and infinity are none), too long, or has a NUL or a lone surrogate in a str.
    """
    try:
        line = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} must be plain JSON: {error}") from None
    if len(line) > longest:
        raise InvalidInput(f"{what} takes {len(line)} bytes of JSON; at most {longest} fit")
    if "\\u0000" in line or any(f"\\ud{digit}" in line for digit in "89abcdef"):
        check_characters(_all_strings(value), what, 2 * longest)
    return json.loads(line)


def _all_strings(value: object) -> str:
    if isinstance(value, Mapping):
        return "".join(_all_strings(key) + _all_strings(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return "".join(map(_all_strings, value))
    return value if isinstance(value, str) else ""


def check_int(number: object, what: str, least: int, most: int = 2**31 - 1) -> int:
    """An int within bounds (a bool is none)."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise InvalidInput(f"{what} must be an int, not {type(number).__name__}")
    if not least <= number <= most:
        raise InvalidInput(f"{what} must be from {least} to {most}, not {number}")
    return number


def check_role(role: object) -> Role:
    """One of the four roles."""
    try:
        return Role(role)  # type: ignore[arg-type]  # any object may be tried; ValueError is the answer
    except ValueError:
        raise InvalidInput(f"role must be one of {', '.join(Role)}, not {role!r}") from None


def check_share(share: object) -> float:
    """An attention share, 0 to 1."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0 + 1e-6:
        raise InvalidInput(f"an attention share is a number from 0 to 1, not {share!r}")
    return min(float(share), 1.0)


def check_vector(vector: object, dim: int) -> bytes:
    """A float32 ``(dim,)`` unit vector as little-endian bytes.

    Raises:
        InvalidInput: wrong type or shape, NaN or infinity inside, or not normalised.
    """
    if not isinstance(vector, np.ndarray) or vector.dtype.kind != "f":
        raise InvalidInput(f"an embedding must be a numpy float array, not {type(vector).__name__}")
    if vector.shape != (dim,):
        raise InvalidInput(f"an embedding of this store has shape ({dim},), not {vector.shape}")
    packed = np.ascontiguousarray(vector, dtype="<f4")
    norm = float(np.sqrt(np.square(packed, dtype=np.float64).sum()))
    if not math.isfinite(norm):
        raise InvalidInput("an embedding must be finite; this one contains NaN or infinity")
    if abs(norm - 1.0) > 1e-3:
        raise InvalidInput(f"an embedding must be L2-normalised; this one has norm {norm:.4f}")
    return packed.tobytes()


def check_age(age: object, what: str = "unused_for") -> int:
    """A timedelta, or "12h", "30d", "8w", in microseconds."""
    found = _AGE.fullmatch(age.strip()) if isinstance(age, str) else None
    delta = int(found[1]) * _UNITS[found[2]] if found else age
    if not isinstance(delta, timedelta) or delta < timedelta(0):
        raise InvalidInput(f"{what} must be a timedelta from 0, or such as '12h', '30d', '8w', not {age!r}")
    return delta // _MICROSECOND


def to_us(moment: object, what: str) -> int:
    """A moment with time zone as UTC microseconds since 1970."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidInput(f"{what} must be a datetime with time zone, such as datetime.now(UTC), not {moment!r}")
    return (moment - _EPOCH) // _MICROSECOND


def check_expiry(moment: object, now: int) -> int | None:
    """When something expires, in microseconds; None: never.

    Raises:
        InvalidInput: no datetime with a time zone, or one that has passed.
    """
    if moment is None:
        return None
    us = to_us(moment, "expires_at")
    if us <= now:
        raise InvalidInput(f"expires_at is {moment}, which has passed; delete the memory, or do not add it")
    return us


def from_us(us: int) -> datetime:
    """UTC microseconds since 1970 as a moment."""
    return _EPOCH + timedelta(microseconds=us)


def now_us() -> int:
    """Now, in UTC microseconds since 1970."""
    return to_us(datetime.now(UTC), "now")


@dataclass(frozen=True)
class Checked:
    """A ``NewMemory`` that passed every check, as the database takes it."""

    uid: str | None
    text: str
    digest: bytes
    role: str
    turn: str
    chunk_no: int
    n_tokens: int
    vector: bytes | None
    session: str | None
    created_us: int
    tags: tuple[str, ...]
    meta: dict[str, Any]
    pinned: bool
    expires_us: int | None


def check_new(memory: object, embedder: EmbedderId | None, session: str | None, now: int) -> Checked:
    """Check one new memory for a scope that may be narrowed to ``session``.

    Raises:
        InvalidInput: something about it cannot be stored.
    """
    if not isinstance(memory, NewMemory):
        raise InvalidInput(f"expected a NewMemory, not {type(memory).__name__}")
    label = check_session(memory.session)
    if session is not None:
        if label not in (None, session):
            raise InvalidInput(f"this scope is narrowed to session {session!r}; it cannot write to {label!r}")
        label = session
    if memory.embedding is not None and embedder is None:
        raise InvalidInput("the store was opened without an embedder; it cannot tell what this embedding means")
    if not isinstance(memory.pinned, bool):
        raise InvalidInput(f"pinned must be True or False, not {memory.pinned!r}")
    text = check_text(memory.text, longest=MAX_TEXT)
    return Checked(
        uid=None if memory.id is None else check_name(memory.id, "id"),
        text=text,
        digest=text_digest(text),
        role=check_role(memory.role).value,
        turn=check_name(memory.turn, "turn"),
        chunk_no=check_int(memory.chunk_no, "chunk_no", 0),
        n_tokens=check_int(memory.n_tokens, "n_tokens", 0),
        vector=None if memory.embedding is None or embedder is None else check_vector(memory.embedding, embedder.dim),
        session=label,
        created_us=now if memory.created_at is None else to_us(memory.created_at, "created_at"),
        tags=check_tags(memory.tags),
        meta=check_meta(memory.meta),
        pinned=memory.pinned,
        expires_us=check_expiry(memory.expires_at, now),
    )

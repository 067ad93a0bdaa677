"""Messages as mem0 takes them, and memories, dates and histories as mem0 shows them."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic import ValidationError

from agentmem.compat.mem0.filters import IDENTITY
from agentmem.errors import InvalidInput
from agentmem.records import Event, Explanation, Memory, Message, Role
from agentmem.text import check_text
from agentmem.turns import in_order, turn_text

log = logging.getLogger(__name__)

PROMOTED = ("user_id", "agent_id", "run_id", "actor_id", "role", "expiration_date")
"""What stands beside the metadata of a memory, not in it."""
TIMES = ("created_at", "updated_at")
_KEPT_OUT = (*IDENTITY, "actor_id")
"""Whose a memory is, metadata does not say."""
_PARTS = ("role", "content", "name", "tool_calls", "tool_call_id")


def to_messages(messages: object) -> list[Message]:
    """What is to be remembered: a text, a message or several, without system messages.

    Raises:
        InvalidInput: something else, or a message without a word.
    """
    if isinstance(messages, str):
        messages = {"role": "user", "content": messages}
    several = [messages] if isinstance(messages, Mapping) else messages
    if not isinstance(several, list):
        raise InvalidInput(f"messages must be a str, a dict or a list of dicts, not {type(messages).__name__}")
    found = []
    for number, given in enumerate(several):
        try:
            if not isinstance(given, Mapping):
                raise InvalidInput(f"message {number} must be a dict with role and content, not {given!r:.80}")
            message = Message.model_validate({key: given[key] for key in _PARTS if key in given})
        except ValidationError as error:
            why = error.errors(include_url=False, include_input=False)[0]
            raise InvalidInput(f"message {number}: {'.'.join(map(str, why['loc']))}: {why['msg']}") from None
        if message.role is not Role.SYSTEM:
            check_text(message.text, f"content of message {number}")
            found.append(message)
    return found


def to_meta(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata without what only the arguments may say; that is warned of, as mem0 does."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidInput(f"metadata must be a dict, not {type(metadata).__name__}")
    for key in _KEPT_OUT:
        if key in (metadata or {}):
            log.warning("metadata[%r] is passed over: whose a memory is, the arguments say", key)
    return {key: value for key, value in (metadata or {}).items() if key not in _KEPT_OUT}


def to_date(value: object) -> str | None:
    """A day in the form YYYY-MM-DD. Raises InvalidInput for what is none."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return value.date().isoformat()
    try:
        return (value if isinstance(value, date) else date.fromisoformat(str(value))).isoformat()
    except ValueError:
        raise InvalidInput(f"expiration_date must be a day such as '2030-12-31', not {value!r}") from None


def end_of(day: str) -> datetime:
    """When a day is over, in UTC. Raises InvalidInput for one that is over already."""
    try:
        end = datetime.combine(date.fromisoformat(day) + timedelta(days=1), time(), UTC)
    except OverflowError:
        raise InvalidInput(f"expiration_date {day} is the calendar's end; leave it out to keep the memory") from None
    if end <= datetime.now(UTC):
        raise InvalidInput(f"expiration_date {day} has passed; delete the memory, or give a day from today on")
    return end


def payload(chunks: Iterable[Memory]) -> dict[str, Any]:
    """A memory, which is the chunks of one turn, in mem0's flat form."""
    first, *_ = ordered = in_order(chunks)
    text, created = turn_text(ordered), first.created_at.isoformat()
    whose = zip(IDENTITY, (first.scope.user, first.scope.agent, first.scope.session), strict=True)
    return {
        "created_at": created,
        "updated_at": created,
        **first.meta,
        "id": first.turn,
        "memory": text,
        "data": text,
        "hash": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
        "role": str(first.role),
        **{key: value for key, value in whose if value},
    }


def item(chunks: Iterable[Memory], **scored: object) -> dict[str, Any]:
    """A memory as mem0 shows it; ``score`` where there is one."""
    flat = payload(chunks)
    own = {"id", "memory", "data", "hash", *TIMES, *PROMOTED}
    return {
        **{key: flat[key] for key in ("id", "memory", "hash")},
        "metadata": {key: value for key, value in flat.items() if key not in own} or None,
        **scored,
        **{key: flat[key] for key in (*TIMES, *PROMOTED) if key in flat},
    }


def score_of(fused: float) -> float:
    """A sum of z-scores as a score from 0 to 1: 0.5 is what any memory of the scope may have."""
    return 1 / (1 + math.exp(-max(min(fused, 700.0), -700.0)))


def details(why: Explanation | None) -> dict[str, Any]:
    """How a score came about."""
    return {} if why is None else why.model_dump(exclude={"threshold"})


def history(id: str, events: Sequence[Event], there: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What happened to a memory, oldest first. ``there`` is its flat form now, if it is still there.

    Texts that were replaced or forgotten are nowhere any more, so only the newest line has one.
    """
    rows: list[dict[str, Any]] = []
    for number, event in enumerate(events):
        if event.action not in ("added", "updated", "deleted", "evicted"):
            continue
        gone = event.action in ("deleted", "evicted")
        if event.action == "added" and rows:  # a text of several chunks that was replaced
            rows.pop()
        rows.append(
            {
                "id": str(uuid5(NAMESPACE_OID, f"{id}/{number}")),
                "memory_id": id,
                "old_memory": None,
                "new_memory": None,
                "event": "DELETE" if gone else "UPDATE" if rows or event.action == "updated" else "ADD",
                "created_at": events[0].at.isoformat(),
                "updated_at": event.at.isoformat(),
                "is_deleted": gone,
                "actor_id": (there or {}).get("actor_id"),
                "role": (there or {}).get("role"),
            }
        )
    if there is not None and rows:
        rows[-1]["new_memory"] = there["memory"]
    return rows

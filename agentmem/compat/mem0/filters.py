"""mem0's filters: whose memories, what the store can find by itself, and what has to be looked at one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentmem.errors import InvalidInput
from agentmem.records import Role
from agentmem.store.rows import Filters

IDENTITY = ("user_id", "agent_id", "run_id")
"""Of mem0: the user, the agent and the session here."""
ANY = "*"
"""A value of any kind."""
OWN_FIELDS = ("id", "data", "memory", "hash", "created_at", "updated_at", *IDENTITY)
"""Of a memory, not of its metadata."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
    "in": lambda value, several: value in several,
    "nin": lambda value, several: value not in several,
    "contains": lambda value, part: part in value,
    "icontains": lambda value, part: part.lower() in value.lower(),
}
_JOINED = ("AND", "OR", "NOT")


@dataclass(frozen=True)
class Wanted:
    """What filters ask for. ``agent`` and ``session`` None: any."""

    user: str
    agent: str | None
    session: str | None
    stored: Filters
    """What the store compares."""
    rest: Mapping[str, Any]
    """What ``passes`` compares."""


def identity(value: object, name: str) -> str | None:
    """An id of mem0 as a str without white space around it; None when it is not given.

    Raises:
        InvalidInput: neither a str nor a number, or nothing but white space.
    """
    if value is None:
        return None
    if not isinstance(value, str | int) or not str(value).strip():
        raise InvalidInput(f"{name} must be a str that is not empty, not {value!r:.80}; or leave it out")
    return str(value).strip()


def whose(user_id: object, agent_id: object, run_id: object) -> tuple[str, str | None, str | None]:
    """The user, agent and session that mem0's ids name.

    Raises:
        InvalidInput: there is no user among them.
    """
    user, agent, run = (identity(*one) for one in zip((user_id, agent_id, run_id), IDENTITY, strict=True))
    if user is None:
        given = "" if agent is run is None else ", also beside agent_id and run_id"
        raise InvalidInput(f"user_id is needed{given}: memories belong to a user here. Example: user_id='ada'")
    return user, agent, run


def parse(filters: Mapping[str, Any] | None) -> Wanted:
    """What filters ask for.

    Raises:
        InvalidInput: no user among them, an operator that does not exist, or no mapping.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise InvalidInput(f"filters must be a dict such as {{'user_id': 'ada'}}, not {type(filters).__name__}")
    given = dict(filters or {})
    if not any(key in given for key in IDENTITY):
        raise InvalidInput("filters must have a user_id. Example: filters={'user_id': 'ada'}")
    if given.get("user_id") == ANY or isinstance(given.get("user_id"), Mapping):
        raise InvalidInput("filters must name one user_id: memories of several users are not searched together")
    _check(given)
    # An agent or a session that is one of several is looked at one by one.
    plain = {key: given.pop(key, None) for key in IDENTITY if given.get(key) != ANY and not _is_mapping(given.get(key))}
    user, agent, session = whose(*(plain.get(key) for key in IDENTITY))
    meta = {key: value for key, value in given.items() if _is_stored(key, value)}
    stored: Filters = {"meta": meta} if meta else {}
    if session is not None:
        stored["session"] = session
    if given.get("role") in tuple(Role):
        stored["role"] = given.pop("role")
    return Wanted(user, agent, session, stored, {key: value for key, value in given.items() if key not in meta})


def passes(payload: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Whether a memory, in mem0's flat form, is what the filters ask for. Only ``NOT`` finds what lacks a key."""
    for key, wanted in filters.items():
        if key == "AND":
            found = all(passes(payload, one) for one in wanted)
        elif key == "OR":
            found = any(passes(payload, one) for one in wanted)
        elif key == "NOT":
            found = not any(passes(payload, one) for one in wanted)
        elif wanted == ANY:
            found = key in payload
        else:
            operators = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
            found = key in payload and all(_compare(name, payload[key], bound) for name, bound in operators.items())
        if not found:
            return False
    return True


def _compare(name: str, value: object, bound: object) -> bool:
    """A value that cannot be compared with the bound is none that is wanted."""
    try:
        return _OPERATORS[name](value, bound)
    except (TypeError, AttributeError):
        return False


def _check(filters: Mapping[str, Any]) -> None:
    for key, wanted in filters.items():
        if key in _JOINED:
            if not isinstance(wanted, list) or not wanted or not all(isinstance(one, Mapping) for one in wanted):
                raise InvalidInput(f"the filter {key} takes a list of one or more dicts, not {wanted!r:.80}")
            for one in wanted:
                _check(one)
        elif isinstance(wanted, Mapping) and (unknown := wanted.keys() - _OPERATORS.keys()):
            raise InvalidInput(f"unknown operator {sorted(unknown)} of {key!r}; there are {', '.join(_OPERATORS)}")


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_stored(key: str, value: object) -> bool:
    """Whether the store finds memories by this itself: equality of plain metadata."""
    plain = value is None or isinstance(value, str | int | float)
    return plain and value != ANY and key not in (*OWN_FIELDS, *_JOINED, "role")

"""What LangGraph's filters and match conditions mean, said of plain values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from langgraph.store.base import MatchCondition

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$ne": operator.ne,
    "$gt": lambda value, bound: float(value) > float(bound),
    "$gte": lambda value, bound: float(value) >= float(bound),
    "$lt": lambda value, bound: float(value) < float(bound),
    "$lte": lambda value, bound: float(value) <= float(bound),
}


def passes(value: Any, wanted: Any) -> bool:
    """Whether a value of an item is what a filter asks for: operators, nested objects, lists, or equality.

    Raises:
        ValueError: an operator that does not exist, or a value that cannot be ordered.
    """
    if isinstance(wanted, Mapping):
        if any(name.startswith("$") for name in wanted):
            if unknown := wanted.keys() - _OPERATORS.keys():
                raise ValueError(f"unknown operator {sorted(unknown)} in a filter; there are {', '.join(_OPERATORS)}")
            return all(_OPERATORS[name](value, bound) for name, bound in wanted.items())
        return isinstance(value, Mapping) and all(passes(value.get(key), one) for key, one in wanted.items())
    if isinstance(wanted, list | tuple):
        alike = isinstance(value, list | tuple) and len(value) == len(wanted)
        return alike and all(passes(one, other) for one, other in zip(value, wanted, strict=True))
    return bool(value == wanted)


def matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins (or ends) with a path, ``*`` standing for any one segment."""
    path = tuple(condition.path)
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return len(part) == len(path) and all(one in ("*", other) for one, other in zip(path, part, strict=True))

"""A value of ``meta`` compared in the database: each engine reads JSON in its own words."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from agentmem.errors import InvalidInput
from agentmem.store.inputs import check_meta
from agentmem.store.schema import MemoryRow

MAX_FILTER = 65_536
"""Longest ``meta`` of a filter, in bytes of JSON."""


def meta_conditions(meta: object) -> list[sa.ColumnElement[bool]]:
    """SQL conditions on ``memory``: each key is there, at the top, with just this value.

    Types are compared too (1 is 1.0, but neither "1" nor True; None is JSON's null, not a key that is absent).

    Raises:
        InvalidInput: no mapping, or a value that is no str, finite number of 64 bits, bool or None.
    """
    plain = check_meta(meta, MAX_FILTER)
    for key, value in plain.items():
        small = isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63)
        if not (small or value is None or isinstance(value, str)):
            raise InvalidInput(
                f"the filter meta compares a str, number, bool or None; {key!r} is {value!r:.80}. Filter by its "
                "parts, kept under keys of their own"
            )
    return [_Has(key, value) for key, value in plain.items()]


class _Has(sa.ColumnElement[bool]):
    """``memory.meta`` has this key with this value."""

    inherit_cache = False
    type = sa.Boolean()

    def __init__(self, key: str, value: str | float | None):
        self.key_name, self.value = key, value


@compiles(_Has, "sqlite")
def _on_sqlite(element: _Has, compiler: SQLCompiler, **options: Any) -> str:
    """A row of ``json_each``, whose keys need no quoting. JSON of a bool or null is told by its type alone."""
    each = sa.func.json_each(MemoryRow.meta).table_valued("key", "type", "atom", name="pair")
    named = [each.c.key == element.key_name]
    if element.value is None or isinstance(element.value, bool):
        named.append(each.c.type == json.dumps(element.value))
    elif isinstance(element.value, str):
        named += [each.c.type == "text", each.c.atom == element.value]
    else:
        named += [each.c.type.in_(["integer", "real"]), each.c.atom == element.value]
    found = sa.select(sa.literal(1)).select_from(each).where(*named).correlate(MemoryRow).exists()
    return compiler.process(found, **options)


@compiles(_Has, "postgresql")
def _on_postgres(element: _Has, compiler: SQLCompiler, **options: Any) -> str:
    """The value below the key as jsonb, which compares by type and, for numbers, by value."""
    from sqlalchemy.dialects.postgresql import JSONB

    wanted = sa.cast(sa.literal(json.dumps(element.value), sa.Text), JSONB)
    same = sa.cast(MemoryRow.meta, JSONB).op("->")(sa.literal(element.key_name, sa.Text)).op("=")(wanted)
    return compiler.process(same, **options)

"""Row-level security: the database itself shows a transaction one space, and none before it has named one.

Three settings, local to the transaction: ``agentmem.user`` and ``agentmem.agent`` (with a letter in front, so that
unset is nobody's name) open the space's row, ``agentmem.space`` (its key, or ``all`` for work on the whole store) the
rows of the others. It guards against a forgotten condition, here or in SQL that someone writes under the same role; a
role that may set the settings may open any space. Superusers are bound by no policy, so the store refuses them.
"""

from __future__ import annotations

import sqlalchemy as sa

from agentmem.errors import StoreError
from agentmem.store.schema import Base

SHARED = frozenset({"schema_meta", "embedding_model", "kv_model", "kv_trash", "codebook"})
"""Tables without anyone's content: facts about the store, names of models, addresses of payloads to be removed."""

_SET = "(SELECT current_setting('agentmem.space', true))"
OWN_SPACE = f"{_SET} IN ('all', space_id::text)"
"""The rule of a table with a column ``space_id``."""
_NAME = (
    f"{_SET} = 'all' OR ('u' || user_key = (SELECT current_setting('agentmem.user', true)) "
    "AND 'a' || agent_key = (SELECT current_setting('agentmem.agent', true)))"
)
_MEMORY = f"{_SET} = 'all' OR EXISTS (SELECT 1 FROM memory AS owner WHERE owner.id = memory_id)"  # noqa: S608


def narrow_to_name(connection: sa.Connection, user: str, agent: str) -> None:
    """Open the row of one space, and nothing else."""
    _set(connection, {"agentmem.user": f"u{user}", "agentmem.agent": f"a{agent}", "agentmem.space": ""})


def narrow_to_space(connection: sa.Connection, space_id: int) -> None:
    """Open the rows of one space."""
    _set(connection, {"agentmem.space": str(int(space_id))})


def see_all(connection: sa.Connection) -> None:
    """Open every space: for work on the whole store."""
    _set(connection, {"agentmem.space": "all"})


def look_for(connection: sa.Connection, words: str) -> None:
    """Narrow the table of words to rows that match (a tsquery as text; empty for all): see ``search.py``."""
    _set(connection, {"agentmem.words": words})


def protect(connection: sa.Connection) -> None:
    """Give every table of the schema its policy, after a migration."""
    for name, table in Base.metadata.tables.items():
        if name == "space":
            guard(connection, name, _NAME)
        elif "space_id" in table.columns:
            guard(connection, name, OWN_SPACE)
        elif "memory_id" in table.columns:
            guard(connection, name, _MEMORY)
        elif name not in SHARED:
            raise StoreError(f"nobody has said whose the rows of table {name} are: see SHARED in {__name__}")


def guard(connection: sa.Connection, table: str, rule: str, check: str | None = None) -> None:
    """Give a table the policy that rows are seen under ``rule`` and written under ``check`` (default: the same).

    The owner of the table, which is the store's own role, is bound too.
    """
    for statement in (
        f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY',
        f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY',
        f'DROP POLICY IF EXISTS agentmem ON "{table}"',
        f'CREATE POLICY agentmem ON "{table}" USING ({rule}) WITH CHECK ({check or rule})',
    ):
        connection.exec_driver_sql(statement)


def _set(connection: sa.Connection, settings: dict[str, str]) -> None:
    connection.execute(sa.select(*(sa.func.set_config(name, value, True) for name, value in settings.items())))

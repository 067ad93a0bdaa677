"""Alembic's entry: runs on the connection (and inside the transaction) that the store hands over."""

from alembic import context

from agentmem.store.index import is_derived
from agentmem.store.schema import Base


def include_name(name, kind, _parents):
    return not (kind == "table" and name is not None and is_derived(name))


context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, include_name=include_name
)
context.run_migrations()

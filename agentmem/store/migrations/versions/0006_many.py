"""For a million memories: an index that eviction can sort by, and SQLite's text index in tables (``sqlite_search``)."""

from alembic import op

from agentmem.store import index

revision = "0006"
down_revision = "0005"


def upgrade():
    op.drop_index("ix_memory_created", "memory")
    op.create_index("ix_memory_created", "memory", ["space_id", "created_us", "pinned"])
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE IF EXISTS fts_memory")
        index.rebuild_texts(op.get_bind())

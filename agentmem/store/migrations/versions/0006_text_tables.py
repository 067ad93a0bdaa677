"""On SQLite, the text index of the spaces in several tables: see ``sqlite_search``."""

from alembic import op

from agentmem.store import index

revision = "0006"
down_revision = "0005"


def upgrade():
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE IF EXISTS fts_memory")
        index.rebuild_texts(op.get_bind())

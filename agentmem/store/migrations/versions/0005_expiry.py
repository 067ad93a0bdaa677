"""When a memory expires, and how often something of a space was erased."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade():
    op.add_column("memory", sa.Column("expires_us", sa.BigInteger, nullable=True))
    dated = sa.text("expires_us IS NOT NULL")
    for name, columns in (
        ("ix_memory_expires", ["expires_us"]),
        ("ix_memory_space_expires", ["space_id", "expires_us"]),
    ):
        op.create_index(name, "memory", columns, sqlite_where=dated, postgresql_where=dated)
    op.add_column("tally", sa.Column("erasures", sa.BigInteger, nullable=False, server_default="0"))

"""The log: plain values under ordered keys."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade():
    op.create_table(
        "log_entry",
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), primary_key=True),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("expires_us", sa.BigInteger, nullable=True),
    )
    dated = sa.text("expires_us IS NOT NULL")
    op.create_index(
        "ix_log_entry_expires", "log_entry", ["space_id", "expires_us"], sqlite_where=dated, postgresql_where=dated
    )

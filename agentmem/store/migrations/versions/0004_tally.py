"""Running totals per space, so that budgets are compared with numbers at hand."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade():
    op.create_table(
        "tally",
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), primary_key=True),
        sa.Column("memories", sa.BigInteger, nullable=False),
        sa.Column("kv_bytes", sa.BigInteger, nullable=False),
    )
    op.execute(
        "INSERT INTO tally (space_id, memories, kv_bytes) SELECT id,"
        " (SELECT count(*) FROM memory WHERE space_id = space.id),"
        " (SELECT coalesce(sum(nbytes), 0) FROM kv_payload WHERE space_id = space.id)"
        " + (SELECT coalesce(sum(nbytes), 0) FROM stream WHERE space_id = space.id)"
        " FROM space"
    )

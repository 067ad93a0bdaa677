"""Records and tails of streams, for a store whose streams are no files (PostgreSQL)."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade():
    def stream():
        return sa.Column("stream_id", BIG, sa.ForeignKey("stream.id", ondelete="CASCADE"), primary_key=True)

    op.create_table(
        "stream_record",
        stream(),
        sa.Column("number", BIG, primary_key=True),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("uri", sa.Text),
        sa.Column("data", sa.LargeBinary),
        sa.CheckConstraint("(data IS NULL) <> (uri IS NULL)", name="one_home"),
    )
    op.create_table(
        "stream_tail",
        stream(),
        sa.Column("part", BIG, primary_key=True),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )

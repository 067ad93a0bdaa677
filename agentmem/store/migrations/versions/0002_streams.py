"""Streams of sessions (recipe infllm)."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade():
    op.create_table(
        "stream",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("session_id", BIG, sa.ForeignKey("session.id"), nullable=False, unique=True),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("record_bytes", sa.BigInteger, nullable=False),
        sa.Column("index_bytes", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("n_records", sa.BigInteger, nullable=False),
        sa.Column("n_tokens", sa.BigInteger, nullable=False),
        sa.Column("index_crc32", sa.BigInteger, nullable=False),
        sa.Column("tail_uri", sa.Text),
        sa.Column("tail_sha256", sa.LargeBinary(32)),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_stream_budget", "stream", ["space_id", "nbytes"])

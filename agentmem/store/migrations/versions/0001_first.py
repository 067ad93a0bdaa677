"""First schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade():
    on_postgres = op.get_bind().dialect.name == "postgresql"
    if not on_postgres:
        op.execute("PRAGMA application_id = 1634159949")  # 0x61674D4D, agMM
    op.create_table(
        "schema_meta",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "space",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("user_key", sa.Text, nullable=False),
        sa.Column("agent_key", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("user_key", "agent_key"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "session",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("space_id", "label"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "turn",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("session_id", BIG, sa.ForeignKey("session.id")),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("space_id", "uid"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_turn_order", "turn", ["space_id", "session_id", "created_us", "id"])
    op.create_table(
        "memory",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("session_id", BIG, sa.ForeignKey("session.id")),
        sa.Column("turn_id", BIG, sa.ForeignKey("turn.id"), nullable=False),
        sa.Column("chunk_no", sa.Integer, nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.Column("n_tokens", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("text_sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("meta", sa.JSON, nullable=False),
        sa.UniqueConstraint("space_id", "uid"),
        sa.UniqueConstraint("turn_id", "chunk_no"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_memory_created", "memory", ["space_id", "created_us"])
    op.create_index("ix_memory_session", "memory", ["session_id"])
    op.create_table(
        "memory_tag",
        sa.Column("memory_id", BIG, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag", sa.Text, primary_key=True),
    )
    op.create_table(
        "memory_usage",
        sa.Column("memory_id", BIG, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("uses", sa.Integer, nullable=False),
        sa.Column("attention", sa.Float, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("score_us", sa.BigInteger, nullable=False),
        sa.Column("last_us", sa.BigInteger),
        sa.Column("recent_turns", sa.JSON, nullable=False),
    )
    op.create_table(
        "embedding_model",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("dim", sa.Integer, nullable=False),
        sa.UniqueConstraint("name", "dim"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "embedding",
        sa.Column("memory_id", BIG, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("model_id", BIG, sa.ForeignKey("embedding_model.id"), primary_key=True),
        sa.Column("vec", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_embedding_model", "embedding", ["model_id", "memory_id"])
    op.create_table(
        "kv_model",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("fingerprint", sa.Text, nullable=False, unique=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "kv_payload",
        sa.Column("memory_id", BIG, sa.ForeignKey("memory.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("kv_model_id", BIG, sa.ForeignKey("kv_model.id"), primary_key=True),
        sa.Column("space_id", BIG, sa.ForeignKey("space.id"), nullable=False),
        sa.Column("codec", sa.String(32), nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.LargeBinary(32), nullable=False),
        sa.Column("crc32", sa.BigInteger, nullable=False),
        sa.Column("uri", sa.Text),
        sa.Column("data", sa.LargeBinary),
        sa.CheckConstraint("(data IS NULL) <> (uri IS NULL)", name="one_home"),
    )
    op.create_index("ix_kv_payload_budget", "kv_payload", ["space_id", "memory_id", "nbytes"])
    op.create_table("kv_trash", sa.Column("uri", sa.Text, primary_key=True))
    op.create_table(
        "event",
        sa.Column("id", BIG, primary_key=True),
        sa.Column("space_id", BIG, nullable=False),
        sa.Column("session_id", BIG),
        sa.Column("memory_uid", sa.Text, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_event_memory", "event", ["space_id", "memory_uid"])
    if on_postgres:
        from agentmem.store.postgres.search import create_text_index

        create_text_index(op.get_bind())
        return
    op.execute(
        "CREATE VIRTUAL TABLE fts_memory USING fts5(text, context, sp, tokenize='porter unicode61 remove_diacritics 2')"
    )
    op.execute("INSERT INTO fts_memory(fts_memory, rank) VALUES('secure-delete', 1)")

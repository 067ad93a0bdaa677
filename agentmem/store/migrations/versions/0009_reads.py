"""Each memory's newest reads with their attention shares, and an index of the audit by time."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade():
    op.add_column("memory_usage", sa.Column("recent_reads", sa.JSON, nullable=False, server_default="[]"))
    op.create_index("ix_event_time", "event", ["space_id", "at_us", "action"])

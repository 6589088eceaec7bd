"""A release says how many threads its replicas may compute in, and a replica how many it was given."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    for table in ("releases", "replicas"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("threads", sa.Integer(), nullable=False, server_default="1"))
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.alter_column("threads", existing_type=sa.Integer(), server_default=None)


def downgrade() -> None:
    for table in ("releases", "replicas"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("threads")

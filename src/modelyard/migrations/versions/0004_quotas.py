"""Keys and projects may have a quota of calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    for table in ("keys", "projects"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(sa.Column("rate", sa.Double(), nullable=True))
            batch_op.add_column(sa.Column("burst", sa.Integer(), nullable=True))


def downgrade() -> None:
    for table in ("keys", "projects"):
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_column("burst")
            batch_op.drop_column("rate")

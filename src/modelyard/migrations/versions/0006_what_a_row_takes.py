"""What a row takes in the best batch of an artefact is kept beside the size of that batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    with op.batch_alter_table("measures", schema=None) as batch_op:
        batch_op.add_column(sa.Column("us_a_row", sa.Double(), nullable=False, server_default="0"))
        batch_op.alter_column("us_a_row", existing_type=sa.Double(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("measures", schema=None) as batch_op:
        batch_op.drop_column("us_a_row")

"""A deployment has releases: what it had of its one goes to a table of its own. There is no way back."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "measures",
        sa.Column("artefact", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("memory", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("artefact", "engine", "node", name=op.f("pk_measures")),
    )
    op.create_table(
        "observations",
        sa.Column("deployment", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("waiting", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "generation", "source", name=op.f("pk_observations")),
    )
    op.create_table(
        "releases",
        sa.Column("deployment", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("artefact", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("target_us", sa.Integer(), nullable=True),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("signature", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "generation", name=op.f("pk_releases")),
    )
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("stable", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("previous", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("trial", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("trial_kind", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("weight", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("options", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("note", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("used", sa.DateTime(timezone=True), nullable=True))
    op.execute(_TO_RELEASES)
    op.execute("UPDATE deployments SET stable = generation, used = updated")
    _set_options()
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.alter_column("used", existing_type=sa.DateTime(timezone=True), nullable=False)
        for name, type_ in (("stable", sa.Integer()), ("weight", sa.Integer()), ("options", sa.JSON())):
            batch_op.alter_column(name, existing_type=type_, server_default=None)
        for name in _MOVED:
            batch_op.drop_column(name)


# What a deployment had of its one release.
_MOVED: dict[str, sa.types.TypeEngine[Any]] = {
    "model": sa.String(),
    "version": sa.Integer(),
    "artefact": sa.String(),
    "engine": sa.String(),
    "task": sa.String(),
    "replicas": sa.Integer(),
    "state": sa.String(),
    "error": sa.String(),
    "failures": sa.Integer(),
    "retry_at": sa.DateTime(timezone=True),
    "signature": sa.JSON(),
}
_TO_RELEASES = (
    f"INSERT INTO releases (deployment, generation, settled, created, {', '.join(_MOVED)}) "  # noqa: S608 - names of our own
    f"SELECT id, generation, state = 'ready', created, {', '.join(_MOVED)} FROM deployments"
)


def _set_options() -> None:
    """As many replicas at the least and at the most as there were."""
    deployments = sa.table(
        "deployments", sa.column("id", sa.Integer), sa.column("replicas", sa.Integer), sa.column("options", sa.JSON)
    )
    connection = op.get_bind()
    for key, replicas in connection.execute(sa.select(deployments.c.id, deployments.c.replicas)).all():
        options = {"min_replicas": replicas, "max_replicas": replicas}
        connection.execute(deployments.update().where(deployments.c.id == key).values(options=options))

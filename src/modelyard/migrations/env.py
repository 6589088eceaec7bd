"""Alembic runs this around every migration. The connection, in its transaction, comes from `migrations/__init__.py`."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.operations import MigrationScript

from modelyard.db import UtcDateTime
from modelyard.migrations import metadata


def render(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Migrations name plain SQL types, so that they outlive the classes they came from."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


def leave_out_empty(_: Any, __: Any, scripts: list[MigrationScript]) -> None:
    """No file where nothing changed."""
    if all(script.upgrade_ops is None or script.upgrade_ops.is_empty() for script in scripts):
        scripts.clear()


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata(),
    render_as_batch=connection.dialect.name == "sqlite",
    render_item=render,
    process_revision_directives=leave_out_empty,
)
with context.begin_transaction():
    context.run_migrations()

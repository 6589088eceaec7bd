"""Where a version comes from: from answer to data, each step with its hash, also through what was deleted since."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, select

from modelyard.catalogue.tables import EdgeRow, VersionRow
from modelyard.catalogue.types import Version
from modelyard.db import Session

DEPTH = 100
_MADE = ("job", "task", "created")

Node = dict[str, Any]


def lineage(session: Session, project: str, version: Version) -> Node:
    """The tree of what `version` was made from.

    A node is {'role', 'reference', 'kind', 'hash', 'job', 'task', 'created', 'deleted', 'parents': [node…]}; the root's role
    is None. 'resumed' is there too where that job went on from another's checkpoint. A version met again has no parents
    listed a second time but 'repeated': true, so that the tree is never larger than the graph; below a depth of 100 a node has
    'more': true, and its own lineage goes on from there.
    """
    root = _node(None, version.kind, version.reference, version.artefact, session.get(VersionRow, version.id))
    level, expanded = {version.id: root}, {version.id}
    for _ in range(DEPTH):
        if not level:
            return root
        level = _grow(session, project, level, expanded)
    for node in level.values():
        node["more"] = True
    return root


def _grow(session: Session, project: str, level: dict[int, Node], expanded: set[int]) -> dict[int, Node]:
    """Hang the parents of every node of `level` below it; returns those to go on from."""
    same = and_(
        VersionRow.project == project,
        VersionRow.kind == EdgeRow.kind,
        VersionRow.name == EdgeRow.name,
        VersionRow.number == EdgeRow.number,
    )
    query = select(EdgeRow, VersionRow).outerjoin(VersionRow, same).where(EdgeRow.child.in_(level))
    below: dict[int, Node] = {}
    for edge, row in session.execute(query.order_by(EdgeRow.child, EdgeRow.position)):
        reference = f"artefact:{edge.artefact}" if edge.name is None else f"{edge.name}@{edge.number}"
        node = _node(edge.role, edge.kind, reference, edge.artefact, row)
        level[edge.child]["parents"].append(node)
        if row is not None and row.id in expanded:
            node["repeated"] = True
        elif row is not None:
            expanded.add(row.id)
            below[row.id] = node
    return below


def _node(role: str | None, kind: str, reference: str, digest: str, row: VersionRow | None) -> Node:
    made = {"job": row.job, "task": row.task, "created": row.created.isoformat()} if row else dict.fromkeys(_MADE)
    deleted = (row is None and kind != "artefact") or (row is not None and row.deleted is not None)
    if row is not None and "resumed" in row.details:
        made["resumed"] = row.details["resumed"]
    return {"role": role, "reference": reference, "kind": kind, "hash": digest, **made, "deleted": deleted, "parents": []}

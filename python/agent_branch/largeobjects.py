"""Large objects that differ between two databases: which, not in what; no server here.

They are rows of two catalogs, compared like tables: pg_largeobject_metadata says which there
are, pg_largeobject has what is in them, in pieces of 2 kB.  The latter is for superusers only,
unless they have granted it; without it only added and removed objects are found.
"""

from __future__ import annotations

from agent_branch.catalog import Table
from agent_branch.diff import ChangeKind, diff_rows
from agent_branch.diffplan import TableDiff
from agent_branch.hints import Iterable, Iterator
from agent_branch.sqltext import Limits, Row, Session, Statement
from agent_branch.tableorder import TableId
from agent_branch.tableshape import Column, TableShape

CATALOG = "pg_catalog"
METADATA: TableId = (CATALOG, "pg_largeobject_metadata")
CONTENTS: TableId = (CATALOG, "pg_largeobject")

UNREADABLE = "contents are not compared: the role may not read pg_largeobject"

_SHAPES = {
    METADATA: TableShape(*METADATA, (Column("oid", "pg_catalog.oid", not_null=True),), (0,)),
    CONTENTS: TableShape(
        *CONTENTS,
        (
            Column("loid", "pg_catalog.oid", not_null=True),
            Column("pageno", "pg_catalog.int4", not_null=True),
            Column("data", "pg_catalog.bytea", not_null=True),
        ),
        (0, 1),
    ),
}

# Rows: name, may the role read it, OID, tablespace, file, file now.
CATALOGS = Statement(
    "SELECT c.relname, pg_catalog.has_table_privilege(c.oid, 'SELECT'),"
    " c.oid, c.reltablespace, c.relfilenode, pg_catalog.pg_relation_filenode(c.oid)"
    " FROM pg_catalog.pg_class AS c"
    " WHERE c.oid IN ('pg_catalog.pg_largeobject'::pg_catalog.regclass,"
    " 'pg_catalog.pg_largeobject_metadata'::pg_catalog.regclass)"
)


def catalogs(rows: Iterable[Row]) -> dict[TableId, tuple[Table, bool]]:
    """The two catalogs, and whether the role may read them, from rows of ``CATALOGS``."""
    found: dict[TableId, tuple[Table, bool]] = {}
    for name, readable, *numbers in rows:
        assert name is not None
        shape = _SHAPES[CATALOG, name]
        oid, tablespace, file, file_now = (int(number or 0) for number in numbers)
        found[shape.id] = Table(shape, oid, tablespace, file, file_now), readable == "t"
    return found


def changed_objects(
    metadata: TableDiff | None,
    contents: TableDiff | None,
    before: Session,
    after: Session,
    limits: Limits,
) -> Iterator[tuple[ChangeKind, str]]:
    """(kind, OID) of each object that differs, once; memory for the OIDs of all of them.

    A catalog that is None cannot be compared.
    """
    seen: set[str] = set()
    for change in _changes(metadata, before, after, limits):
        (oid,) = change[1]
        seen.add(oid)
        yield change[0], oid
    for _, key in _changes(contents, before, after, limits):
        if key[0] not in seen:
            seen.add(key[0])
            yield "modified", key[0]


def _changes(
    plan: TableDiff | None, before: Session, after: Session, limits: Limits
) -> Iterator[tuple[ChangeKind, tuple[str, ...]]]:
    if plan is None or not plan.blocks:
        return
    for change in diff_rows(plan, before, after, limits):
        yield change.kind, tuple(value or "" for value in change.key)

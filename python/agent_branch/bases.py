"""States that databases were in, and reading them, inside the server.

A merge needs three states of the rows: the source's, the target's and the one that both began
with.  The last is a snapshot; ``merge_base`` finds it, and ``open_base`` gives the name of a
database in which it is read like any other, until the transaction ends:

    found = bases.merge_base(source, target)
    base = opening.Reading(bases.open_base(found))
    before = threeway.read_side(base, set())     # its tables

Nobody can write it, and it is shared by all who need it.  Its files are those of the snapshot,
so compare.Comparison of it with either descendant reads only the pages that one has changed;
single rows of it are found by key with ``rowqueries.match``, pages of it with ``rowqueries.scan``.
"""

from __future__ import annotations

import plpy

from agent_branch.errors import UNDEFINED_DATABASE, ReportedError
from agent_branch.records import dataclass


@dataclass(frozen=True, slots=True)
class State:
    """A snapshot.  ``via``: OID of the database by whose rights and history it is opened.

    ``name``: of the snapshot, if it has one; ``database``: the one that it is of, None if that
    is gone.
    """

    snapshot: str
    via: int
    name: str | None = None
    database: str | None = None
    lsn: str = ""
    taken_at: str = ""


def database_oid(name: str) -> int:
    """Raises ``ReportedError`` 3D000."""
    rows = plpy.execute(
        plpy.prepare("SELECT d.oid FROM pg_database AS d WHERE d.datname = $1", ["name"]), [name]
    )
    if not len(rows):
        raise ReportedError(
            UNDEFINED_DATABASE,
            f'database "{name}" does not exist',
            hint="The view branch.branches lists the branches.",
        )
    oid: int = rows[0]["oid"]
    return oid


def merge_base(source: str, target: str) -> State | None:
    """The nearest state that two databases have in common; None if there is none.

    Errors: 3D000, 42501.
    """
    rows = plpy.execute(
        plpy.prepare(
            "SELECT (x.b).snapshot_id, (x.b).via_id, (x.b).snapshot_name,"
            " (x.b).database_name, (x.b).lsn::text, (x.b).taken_at::text"
            " FROM (SELECT branch._merge_base($1, $2) AS b OFFSET 0) AS x",
            ["oid", "oid"],
        ),
        [database_oid(source), database_oid(target)],
    )
    row = rows[0]
    if row["snapshot_id"] is None:
        return None
    return State(
        row["snapshot_id"],
        row["via_id"],
        row["snapshot_name"],
        row["database_name"],
        row["lsn"],
        row["taken_at"],
    )


def state_at(database: str, at: str) -> State:
    """The snapshot of a database that a name, an id, a position or a time means.

    Errors: 3D000, 42501; 22023 there is none, 42704 it means nothing, 55000 it is closed.
    """
    oid = database_oid(database)
    rows = plpy.execute(
        plpy.prepare("SELECT branch._snapshot_at($1, $2) AS id", ["oid", "text"]), [oid, at]
    )
    return State(rows[0]["id"], oid)


def open_base(state: State) -> str:
    """Name of a database that has this state; it can be read in until the transaction ends.

    Errors: 42501, 55000 the state cannot be read any more, 55006.
    """
    rows = plpy.execute(
        plpy.prepare("SELECT branch._base_open($1, $2) AS name", ["text", "oid"]),
        [state.snapshot, state.via],
    )
    name: str = rows[0]["name"]
    return name

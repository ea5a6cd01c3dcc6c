"""Rows of which two databases do not have the same version, found in their pages; in the server.

Pages of one origin keep a row version where it was, with the transaction that made it, so what
differs is told without reading a value (branch._changed_rows).  The rest is read in both databases
and joined by the text of the key, in one query of the server here: only what differs by text comes
to Python, and what does not fit in work_mem goes to temporary files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plpy

from agent_branch.catalog import Table
from agent_branch.diff import ChangeKind, Pair, TableDiff, by_place
from agent_branch.remote import Remote
from agent_branch.sqltext import Row
from agent_branch.tableorder import TableId

FETCHED = 1000

KINDS: tuple[ChangeKind, ...] = ("modified", "removed", "added")

_JOINED = """
WITH places AS MATERIALIZED (
    SELECT c.a_rows, c.b_rows FROM branch._changed_rows(
        (SELECT d.oid FROM pg_database AS d WHERE d.datname = $1), $2, $3,
        (SELECT d.oid FROM pg_database AS d WHERE d.datname = $4), $5, $6, $7, $8) AS c
)
SELECT {picked}, pg_catalog.num_nonnulls(a.r, b.r) AS versions FROM (
    SELECT q.r FROM places AS c, LATERAL branch._remote_query($9, $11 || c.a_rows || $12) AS q (r)
    WHERE c.a_rows IS NOT NULL OFFSET 0
) AS a FULL JOIN (
    SELECT q.r FROM places AS c, LATERAL branch._remote_query($10, $11 || c.b_rows || $12) AS q (r)
    WHERE c.b_rows IS NOT NULL OFFSET 0
) AS b ON {keys} WHERE a.r IS DISTINCT FROM b.r"""
_TYPES = ["name", "oid", "oid", "name", "oid", "oid", "int8[]", "int8[]", "int4", "int4"]
_TYPES += ["text", "text"]


@dataclass(frozen=True, slots=True)
class Place:
    """A database, a session there, and its tables.

    ``held``: they cannot get other files than the ones that are known.
    """

    database: str
    remote: Remote
    tables: Mapping[TableId, Table]
    held: bool = True

    def has_file(self, table: Table) -> bool:
        """Is the table's file the one that is known, and stays so?"""
        if self.held:
            return True
        self.remote.run(f"LOCK TABLE {table.shape.only} IN ACCESS SHARE MODE")
        (found,) = self.remote.rows(f"SELECT pg_relation_filenode({table.oid})")
        return found[0] == str(table.file)


@dataclass(frozen=True, slots=True)
class PagePairing:
    """A ``Pairing`` of two databases.  ``read``: called for each row that was read."""

    before: Place
    after: Place
    read: Callable[[], None]

    def pairs(self, plan: TableDiff, extra: Sequence[str]) -> Iterator[Pair] | None:
        arguments = self._arguments(plan, extra)
        if arguments is None:
            return None
        found = self._rows(plan, "a.r AS one, b.r AS other", arguments)
        return ((_row(line["one"]), _row(line["other"])) for line in found)

    def kinds(self, plan: TableDiff) -> Iterator[ChangeKind] | None:
        arguments = self._arguments(plan, ())
        if arguments is None:
            return None
        kind = "CASE WHEN b.r IS NULL THEN 1 WHEN a.r IS NULL THEN 2 ELSE 0 END AS kind"
        return (KINDS[line["kind"]] for line in self._rows(plan, kind, arguments))

    def _arguments(self, plan: TableDiff, extra: Sequence[str]) -> list[object] | None:
        values: list[object] = []
        for place in (self.before, self.after):
            table = place.tables.get(plan.shape.id)
            if table is None or not place.has_file(table):
                return None
            values += [place.database, table.tablespace, table.file]
        ranges = plan.blocks.ranges
        assert ranges is not None
        values += [[start for start, _ in ranges], [end for _, end in ranges]]
        numbers = [place.remote.number for place in (self.before, self.after)]
        return [*values, *numbers, *by_place(plan.shape, extra)]

    def _rows(
        self, plan: TableDiff, picked: str, arguments: list[object]
    ) -> Iterator[Mapping[str, Any]]:
        keys = " AND ".join(f'a.r[{i + 1}] = b.r[{i + 1}] COLLATE "C"' for i in plan.shape.key)
        sql = _JOINED.format(picked=picked, keys=keys)
        cursor = plpy.cursor(plpy.prepare(sql, _TYPES), arguments)
        while True:
            lines = cursor.fetch(FETCHED)
            for line in lines:
                for _ in range(line["versions"]):
                    self.read()
                yield line
            if len(lines) < FETCHED:
                return


def _row(values: Sequence[str | None] | None) -> Row | None:
    return None if values is None else tuple(values)

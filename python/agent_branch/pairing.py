"""Rows of which two databases do not have the same version, found in their pages; in the server.

Pages of one origin keep a row version where it was, with the transaction that made it, so what
differs is told without reading a value (branch._changed_rows).  The rest is read in both databases
and joined by the text of the key, in one query of the server here: only what differs by text comes
to Python, and what does not fit in work_mem goes to temporary files.

Where rows are only counted, and the bytes of values tell whether they are the same, no row is read
by a query: branch._changed_counts() looks at them in the pages, as the sessions see them.  Rows
that it is not sure of are read and compared after all.
"""

from __future__ import annotations

import plpy

from agent_branch.catalog import Table
from agent_branch.diff import ChangeKind, Counts, Pair
from agent_branch.diffplan import TableDiff
from agent_branch.hints import Any, Callable, Iterator, Mapping, Sequence
from agent_branch.progress import Progress
from agent_branch.records import dataclass
from agent_branch.remote import Remote
from agent_branch.rowqueries import by_place
from agent_branch.sqltext import Row
from agent_branch.tableorder import TableId
from agent_branch.tableshape import positions

FETCHED = 1000
# Of lines with many places.
LINES_FETCHED = 4

KINDS: tuple[ChangeKind, ...] = ("modified", "removed", "added")


def _databases(first: int) -> str:
    """Arguments for two tables and their blocks, from seven parameters."""
    one, other = (
        f"(SELECT d.oid FROM pg_database AS d WHERE d.datname = ${n}), ${n + 1}, ${n + 2}"
        for n in (first, first + 3)
    )
    return f"{one}, {other}, ${first + 6}"


_DATABASES_TYPES = ["name", "oid", "oid", "name", "oid", "oid", "bytea"]

# Sessions, and the parts of a query that reads rows by their places.
_READ_TYPES = ["int4", "int4", "text", "text"]

# Places by line: sides of the same key are in the same line, or all lines are read.
_JOINED = """
WITH places AS MATERIALIZED ({places})
SELECT {picked}, pg_catalog.num_nonnulls(a.r, b.r) AS versions FROM (
    SELECT q.r FROM places AS c, LATERAL branch._remote_query($1, $3 || c.a_rows || $4) AS q (r)
    WHERE c.a_rows IS NOT NULL OFFSET 0
) AS a FULL JOIN (
    SELECT q.r FROM places AS c, LATERAL branch._remote_query($2, $3 || c.b_rows || $4) AS q (r)
    WHERE c.b_rows IS NOT NULL OFFSET 0
) AS b ON {keys} WHERE a.r IS DISTINCT FROM b.r{order}"""

# The line without places comes first.
_PAIRED = f"""
SELECT c.* FROM branch._changed_pairs({_databases(1)}, $8, $9, $10, $11, $12, 0, '') AS c"""
# Told of places of rows before, and of as many that belong to them, or none: which of them have the
# same row after, and what belongs to these; and the same of the others.  Texts of tid[], or empty.
Apart = Callable[[str, str], tuple[str, str, str, str]]

_APART = f"SELECT r.* FROM branch._rows_apart({_databases(1)}, $8, $9, $10, $11) AS r"

# So many columns, dropped ones too, have a bit in its answer.
MAX_PAIRED_COLUMNS = 63

# Behind the parameters for reading.
_PLACES = "SELECT $5 AS a_rows, $6 AS b_rows"
_PLACES_TYPES = ["text", "text"]
_CHANGED = f"SELECT c.a_rows, c.b_rows FROM branch._changed_rows({_databases(5)}, $1, $2) AS c"
_UNPAIRED = f"SELECT c.a_rows, c.b_rows FROM branch._changed_rows({_databases(1)}, $8, $9) AS c"

# The line with the numbers comes first, so that the others can be read one by one.
_COUNTED = f"""
SELECT c.* FROM branch._changed_counts({_databases(1)}, $8, $9, $10, $11, $12, $13, $14) AS c
ORDER BY c.rows_read"""
_COUNTED_TYPES = [*_DATABASES_TYPES, "int4", "int4", "int2[]", "text", "text", "int8", "text"]


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
    """A ``Pairing`` of two databases.  ``progress``: told of each row that was read."""

    before: Place
    after: Place
    progress: Progress

    def pairs(self, plan: TableDiff, extra: Sequence[str]) -> Iterator[Pair] | None:
        tables = self._tables(plan)
        return None if tables is None else self._pairs(plan, extra, self._pages(plan, tables))

    def pairs_at(self, plan: TableDiff, before: str | None, after: str | None) -> Iterator[Pair]:
        """Those of the rows at known places of either side, by key; texts of tid[], None: none."""
        return self._pairs(plan, (), [before, after])

    def _unpaired(
        self, plan: TableDiff, tables: tuple[Table, Table]
    ) -> Iterator[tuple[str | None, str | None]]:
        types = [*_DATABASES_TYPES, "int4", "int4"]
        values = [*self._pages(plan, tables), *self._sessions]
        found = _lines(_UNPAIRED, types, values, LINES_FETCHED)
        return ((line["a_rows"], line["b_rows"]) for line in found)

    def paired(self, plan: TableDiff) -> Iterator[tuple[int | None, str | None, str | None]] | None:
        """Places of row versions that only one side has, before and after, some at a time: texts
        of tid[]; those of one key need not be in one line.  A mask of the columns in which versions
        differ, where it is known: then the line has the versions of one key on both sides, in the
        same order.  None as of ``pairs``."""
        tables = self._tables(plan)
        if tables is None:
            return None
        columns = _columns(plan, tables)
        if columns and len(tables[0].layout) <= MAX_PAIRED_COLUMNS:
            values = [*self._pages(plan, tables), *self._sessions, *columns]
            lines = _lines(_PAIRED, _COUNTED_TYPES[: len(values)], values, LINES_FETCHED)
            if next(lines, None) is not None:
                places = {column.number - 1: i for i, column in enumerate(plan.shape.columns)}
                return (
                    (_mask(line["columns"], places), line["a_rows"], line["b_rows"])
                    for line in lines
                )
        return ((None, before, after) for before, after in self._unpaired(plan, tables))

    def apart(self, plan: TableDiff) -> Apart | None:
        """None as of ``pairs``."""
        tables = self._tables(plan)
        if tables is None:
            return None
        pages = [*self._pages(plan, tables), *self._sessions]
        asked = plpy.prepare(_APART, [*_DATABASES_TYPES, "int4", "int4", "text", "text"])

        def told(rows: str, others: str) -> tuple[str, str, str, str]:
            row = plpy.execute(asked, [*pages, rows, others])[0]
            return row["same"], row["same_others"], row["apart"], row["apart_others"]

        return told

    def kinds(self, plan: TableDiff) -> Iterator[ChangeKind] | None:
        tables = self._tables(plan)
        if tables is None:
            return None
        kind = "CASE WHEN b.r IS NULL THEN 1 WHEN a.r IS NULL THEN 2 ELSE 0 END AS kind"
        lines = self._joined(plan, (), kind, self._pages(plan, tables))
        return (KINDS[line["kind"]] for line in lines)

    def counts(self, plan: TableDiff) -> Counts | None:
        tables = self._tables(plan)
        columns = tables and _columns(plan, tables)
        if not tables or not columns:
            return None
        told = [self.progress.rows, self.progress.where]
        lines = _lines(
            _COUNTED,
            _COUNTED_TYPES,
            [*self._pages(plan, tables), *self._sessions, *columns, *told],
            1,
        )
        numbers = next(lines, None)
        if numbers is None:
            return None
        self.progress.rows += numbers["rows_read"]
        return Counts(
            numbers["added"], numbers["modified"], numbers["removed"], self._unsure(plan, lines)
        )

    def _unsure(self, plan: TableDiff, lines: Iterator[Mapping[str, Any]]) -> Iterator[Pair]:
        for line in lines:
            yield from self.pairs_at(plan, line["a_rows"], line["b_rows"])

    def _tables(self, plan: TableDiff) -> tuple[Table, Table] | None:
        found = []
        for place in (self.before, self.after):
            table = place.tables.get(plan.shape.id)
            if table is None or not place.has_file(table):
                return None
            found.append(table)
        before, after = found
        return before, after

    def _pages(self, plan: TableDiff, tables: tuple[Table, Table]) -> list[object]:
        values: list[object] = []
        for place, table in zip((self.before, self.after), tables, strict=True):
            values += [place.database, table.tablespace, table.file]
        return [*values, plan.blocks.packed()]

    @property
    def _sessions(self) -> list[object]:
        return [place.remote.number for place in (self.before, self.after)]

    def _pairs(
        self, plan: TableDiff, extra: Sequence[str], where: Sequence[object]
    ) -> Iterator[Pair]:
        found = self._joined(plan, extra, "a.r AS one, b.r AS other", where)
        return ((_row(line["one"]), _row(line["other"])) for line in found)

    def _joined(
        self, plan: TableDiff, extra: Sequence[str], picked: str, where: Sequence[object]
    ) -> Iterator[Mapping[str, Any]]:
        """``where``: pages, or places of rows on either side."""
        numbers = [i + 1 for i in plan.shape.key]
        keys = " AND ".join(f'a.r[{i}] = b.r[{i}] COLLATE "C"' for i in numbers)
        types, places, order = _DATABASES_TYPES, _CHANGED, ""
        if len(where) == len(_PLACES_TYPES):
            types, places = _PLACES_TYPES, _PLACES
            listed = (f'COALESCE(a.r[{i}], b.r[{i}]) COLLATE "C"' for i in numbers)
            order = f" ORDER BY {', '.join(listed)}"
        sql = _JOINED.format(picked=picked, keys=keys, places=places, order=order)
        values = [*self._sessions, *by_place(plan.shape, extra), *where]
        for line in _lines(sql, [*_READ_TYPES, *types], values, FETCHED):
            for _ in range(line["versions"]):
                self.progress.row()
            yield line


def _lines(
    sql: str, types: Sequence[str], values: Sequence[object], batch: int
) -> Iterator[Mapping[str, Any]]:
    cursor = plpy.cursor(plpy.prepare(sql, list(types)), list(values))
    while True:
        lines = cursor.fetch(batch)
        yield from lines
        if len(lines) < batch:
            return


def _mask(bits: int | None, places: Mapping[int, int]) -> int | None:
    """Of columns by position, from one by number; ``places``: of their numbers from 0 on."""
    return None if bits is None else sum(1 << places[i] for i in positions(bits))


def _columns(plan: TableDiff, tables: tuple[Table, Table]) -> list[object] | None:
    """How columns lie in a row, and what their bytes say; None: not the same on both sides, or
    those of the key do not tell it."""
    before, after = tables
    if not before.layout or before.layout != after.layout:
        return None
    shape = plan.shape
    kinds = ["-"] * len(before.layout)
    for i in (*positions(shape.compared), *shape.key):
        column = shape.columns[i]
        if not 0 < column.number <= len(kinds):
            return None
        kinds[column.number - 1] = "k" if i in shape.key else column.bytes
        if i in shape.key and column.bytes != "p":
            return None
    lengths = [length for length, _ in before.layout]
    return [lengths, "".join(align for _, align in before.layout), "".join(kinds)]


def _row(values: Sequence[str | None] | None) -> Row | None:
    return None if values is None else tuple(values)

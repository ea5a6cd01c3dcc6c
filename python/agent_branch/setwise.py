"""A merge whose conflicts are decided, written by a few statements for each table.

What a merge found is kept (mergechanges.py): the changes it was to make, and the conflicts, as
lines of JSON with all versions.  These are loaded into temporary tables of the target, lines and
decisions as they are, without looking at rows here; then the target says whether each row is
still as it was then.  Only if all are, and nothing is in the way that takes care row by row, they
are written.  If anything is not so, ``UnfitError``: the merge is to be run again instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from agent_branch.apply import CHECK, DEFER
from agent_branch.records import dataclass
from agent_branch.rowqueries import key_condition
from agent_branch.sqltext import Refusal, Row, Statement, WritingSession, quote_literal
from agent_branch.tableorder import TableId, order_tables, pointed_to
from agent_branch.tableshape import CASCADING, TableShape, positions

# Columns whose mask fits into a bigint.
MAX_COLUMNS = 62
# Sets of columns that are updated together: a statement for each.
MAX_SETS = 50
# Blocks of a temporary table of which the changes are read at once, and how many bytes of what
# they store, or have stored elsewhere, are one piece of text: that has bounds (1 GB).
BLOCKS = 8
STORED = 1 << 16


class UnfitError(Exception):
    """It takes the way row by row."""


@dataclass(frozen=True, slots=True)
class Counts:
    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(slots=True)
class Table:
    """``number``: of its temporary tables.  ``sets``: masks of columns that are updated, and how
    many rows each."""

    shape: TableShape
    number: int
    counts: Counts = Counts()
    sets: tuple[tuple[int, int], ...] = ()

    @property
    def lines(self) -> str:
        return f"pg_temp.ab_lines_{self.number}"

    @property
    def decided(self) -> str:
        return f"pg_temp.ab_decided_{self.number}"

    @property
    def rows(self) -> str:
        return f"pg_temp.ab_rows_{self.number}"


# ---- loading ----------------------------------------------------------------

_MAY = Statement(
    "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')"
)


def load(
    session: WritingSession,
    shapes: Sequence[TableShape],
    lines: Iterable[tuple[TableId, str]],
    decisions: str | Iterable[tuple[TableId, str, str]],
) -> list[Table]:
    """Temporary tables with what there is to do, which fits the rows as they are now.

    ``lines``: pieces of kept text; ``decisions``: the side for all conflicts, or text forms of
    two arrays, versions and sides.  The session's settings are those for reading.  Raises
    ``UnfitError``.
    """
    if any(not s.key or len(s.columns) > MAX_COLUMNS for s in shapes):
        raise UnfitError
    if list(session.rows(_MAY)) != [("t",)]:
        raise UnfitError
    tables = {shape.id: Table(shape, n) for n, shape in enumerate(shapes)}
    if isinstance(decisions, str):
        _load_at_once(session, tables, lines, decisions)
    else:
        _load_joined(session, tables, lines, decisions)
    _run(session, "SET LOCAL default_statistics_target = 10")
    for one in tables.values():
        _run(session, f"ANALYZE {one.rows}")
        _count(session, one)
        if list(session.rows(Statement(_changed_since(one)))) != [("0",)]:
            raise UnfitError
    return list(tables.values())


def _elements(text: str) -> str:
    array = "[" + text.rstrip("\n").replace("\n", ",") + "]"
    return f"jsonb_array_elements({quote_literal(array)}::jsonb) AS l (a)"


def _load_at_once(
    session: WritingSession,
    tables: Mapping[TableId, Table],
    lines: Iterable[tuple[TableId, str]],
    side: str,
) -> None:
    decided = quote_literal(side)
    for one in tables.values():
        rows = _rows_of(one, _elements(""), decided)
        _run(session, f"CREATE TEMPORARY TABLE {one.rows} ON COMMIT DROP AS {rows}")
    for name, text in lines:
        one = tables[name]
        _run(session, f"INSERT INTO {one.rows} {_rows_of(one, _elements(text), decided)}")


def _load_joined(
    session: WritingSession,
    tables: Mapping[TableId, Table],
    lines: Iterable[tuple[TableId, str]],
    decisions: Iterable[tuple[TableId, str, str]],
) -> None:
    for one in tables.values():
        _run(session, f"CREATE TEMPORARY TABLE {one.lines} (a jsonb) ON COMMIT DROP")
        _run(session, f"CREATE TEMPORARY TABLE {one.decided} (v bigint, s text) ON COMMIT DROP")
    for name, text in lines:
        _run(session, f"INSERT INTO {tables[name].lines} SELECT l.a FROM {_elements(text)}")
    for name, versions, sides in decisions:
        if name not in tables:
            raise UnfitError
        _run(
            session,
            f"INSERT INTO {tables[name].decided} SELECT DISTINCT u.v, u.s"
            f" FROM unnest({quote_literal(versions)}::bigint[], {quote_literal(sides)}::text[])"
            " AS u (v, s)",
        )
    for one in tables.values():
        joined = (
            f"{one.lines} AS l LEFT JOIN {one.decided} AS d"
            " ON l.a ->> 0 = 'conflict' AND d.v = (l.a ->> 7)::bigint"
        )
        rows = _rows_of(one, joined, "d.s")
        _run(session, f"CREATE TEMPORARY TABLE {one.rows} ON COMMIT DROP AS {rows}")


def _run(session: WritingSession, sql: str) -> int:
    return session.execute(Statement(sql))


def _rows_of(table: Table, source: str, side: str) -> str:
    """From lines ``l.a``: one row for each change: what is done (i, u, d; k: nothing, it is only
    looked at), mask of the columns that are set, key, versions before and after; ``had``: is there
    one before.  ``side``: what a conflict is decided for.

    Lines are those of revert.to_json, and ["conflict", key, columns, merged, base, ours, theirs,
    versions].  A conflict that is not decided has what = NULL.
    """
    shape = table.shape
    keys = [
        f"{shape.columns[i].cast(f'(x.a -> 1 ->> {n})')} AS k{n}" for n, i in enumerate(shape.key)
    ]
    before = [c.cast_if_any(f"(x.b ->> {i})") + f" AS b{i}" for i, c in enumerate(shape.columns)]
    after = [c.cast_if_any(f"(x.v ->> {i})") + f" AS v{i}" for i, c in enumerate(shape.columns)]
    return f"""
SELECT CASE
        WHEN x.kind <> 'conflict' THEN left(x.kind, 1)
        WHEN x.side IS NULL THEN NULL
        WHEN jsonb_typeof(x.b) = 'null' THEN CASE x.side WHEN 'theirs' THEN 'i' ELSE 'k' END
        WHEN jsonb_typeof(x.v) = 'null' THEN CASE x.side WHEN 'theirs' THEN 'd' ELSE 'k' END
        WHEN x.mask = 0 THEN 'k'
        ELSE 'u' END AS what,
    x.mask, jsonb_typeof(x.b) = 'array' AS had, {", ".join([*keys, *before, *after])}
FROM (
    SELECT l.a, l.a ->> 0 AS kind, {side} AS side,
        CASE l.a ->> 0 WHEN 'update' THEN (l.a ->> 2)::bigint
            WHEN 'conflict' THEN (l.a ->> 3)::bigint
                | CASE {side} WHEN 'theirs' THEN (l.a ->> 2)::bigint ELSE 0 END END AS mask,
        COALESCE(CASE l.a ->> 0 WHEN 'update' THEN l.a -> 3 WHEN 'delete' THEN l.a -> 2
            WHEN 'conflict' THEN l.a -> 5 END, 'null') AS b,
        COALESCE(CASE l.a ->> 0 WHEN 'update' THEN l.a -> 4 WHEN 'insert' THEN l.a -> 2
            WHEN 'conflict' THEN l.a -> 6 END, 'null') AS v
    FROM {source}
    OFFSET 0
) AS x"""


def _count(session: WritingSession, table: Table) -> None:
    numbers: dict[str, int] = {}
    sets: list[tuple[int, int]] = []
    for what, mask, number in session.rows(
        Statement(f"SELECT r.what, r.mask, count(*) FROM {table.rows} AS r GROUP BY 1, 2")
    ):
        if what is None:
            raise UnfitError
        numbers[what] = numbers.get(what, 0) + int(number or 0)
        if what == "u":
            sets.append((int(mask or 0), int(number or 0)))
    if len(sets) > MAX_SETS:
        raise UnfitError
    table.counts = Counts(*(numbers.get(what, 0) for what in "iud"))
    table.sets = tuple(sorted(sets))


def _changed_since(table: Table) -> str:
    shape = table.shape
    compared = [(i, shape.columns[i]) for i in positions(shape.compared)]
    different = " OR ".join(f"NOT {c.same(f't.{c.sql}', f'r.b{i}')}" for i, c in compared)
    return (
        f"SELECT count(*) FROM {table.rows} AS r LEFT JOIN {shape.only} AS t"
        f" ON {key_condition(shape, 't', 'r')}"
        f" WHERE r.had <> (t.ctid IS NOT NULL) OR r.had AND ({different or 'false'})"
    )


# ---- writing ----------------------------------------------------------------


def check_cascades(tables: Sequence[Table], schema: Sequence[TableShape]) -> None:
    """Raises ``UnfitError`` if a deletion could take rows along that somebody has to look at."""
    deleted = {table.shape.id for table in tables if table.counts.deleted}
    for other in schema:
        for key in other.foreign_keys:
            if key.target in deleted and key.on_delete in CASCADING:
                raise UnfitError


def write(session: WritingSession, tables: Sequence[Table], schema: Sequence[TableShape]) -> None:
    """In the order of apply.py, but for what that does in steps (circles, swapped values): if it
    is needed, a constraint says so.

    Raises ``UnfitError`` if something is refused, or not as planned.
    """
    known = {table.shape.id: table for table in tables}
    groups = order_tables([table.shape for table in tables])
    ordered = [known[shape.id] for group in groups for shape in group.tables]
    referenced = pointed_to(schema)
    session.execute(DEFER)
    for table in tables:
        if table.shape.id not in referenced:
            _delete(session, table)
    for table in ordered:
        _insert(session, table)
        for mask, number in table.sets:
            _update(session, table, mask, number)
    for table in reversed(ordered):
        if table.shape.id in referenced:
            _delete(session, table)
    if isinstance(session.attempt(CHECK), Refusal):
        raise UnfitError


_EQUAL = "OPERATOR(pg_catalog.=)"


def _attempt(session: WritingSession, sql: str, planned: int) -> None:
    if planned and session.attempt(Statement(sql, rows=planned)) != planned:
        raise UnfitError


def _delete(session: WritingSession, table: Table) -> None:
    shape = table.shape
    _attempt(
        session,
        f"DELETE FROM {shape.only} AS t USING {table.rows} AS r"
        f" WHERE r.what {_EQUAL} 'd' AND {key_condition(shape, 't', 'r')}",
        table.counts.deleted,
    )


def _insert(session: WritingSession, table: Table) -> None:
    shape = table.shape
    columns = [shape.columns[i].sql for i in shape.stored]
    values = [f"r.v{i}" for i in shape.stored]
    _attempt(
        session,
        f"INSERT INTO {shape.sql} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE"
        f" SELECT {', '.join(values)} FROM {table.rows} AS r WHERE r.what {_EQUAL} 'i'",
        table.counts.inserted,
    )


def _update(session: WritingSession, table: Table, mask: int, number: int) -> None:
    shape = table.shape
    assigned = ", ".join(f"{shape.columns[i].sql} = r.v{i}" for i in positions(mask))
    _attempt(
        session,
        f"UPDATE {shape.only} AS t SET {assigned} FROM {table.rows} AS r"
        f" WHERE r.what {_EQUAL} 'u' AND r.mask {_EQUAL} {mask}"
        f" AND {key_condition(shape, 't', 'r')}",
        number,
    )


# ---- what was written ----------------------------------------------------------------


def written(texts: Callable[[Statement], Iterator[Row]], table: Table) -> Iterator[str]:
    """The changes as lines of JSON, in pieces: long rows of the session, whose settings are
    those for reading."""
    size = f"pg_relation_size({quote_literal(table.rows)}::regclass)"
    ((blocks,),) = list(texts(Statement(f"SELECT {size} / current_setting('block_size')::int8")))
    for start in range(0, int(blocks or 0), BLOCKS):
        for (text,) in texts(Statement(_lines(table, start, start + BLOCKS))):
            if text is not None:
                yield text + "\n"


def _lines(table: Table, start: int, end: int) -> str:
    """In some blocks."""
    shape = table.shape

    def array(values: Iterable[str]) -> str:
        return f"array_to_json(ARRAY[{', '.join(values)}]::text[])"

    width = range(len(shape.columns))
    key = array(f"r.k{n}::text" for n in range(len(shape.key)))
    before = array(f"r.b{i}::text" for i in width)
    inserted = array(f"r.v{i}::text" for i in width)
    after = array(
        f"CASE WHEN r.mask >> {i} & 1 = 1 THEN r.v{i}::text ELSE r.b{i}::text END" for i in width
    )
    line = (
        f"CASE r.what WHEN 'i' THEN concat('[\"insert\",', {key}, ',', {inserted}, ']')"
        f" WHEN 'd' THEN concat('[\"delete\",', {key}, ',', {before}, ']')"
        f" ELSE concat('[\"update\",', {key}, ',', r.mask, ',', {before}, ',', {after}, ']') END"
    )
    sizes = " + ".join(f"COALESCE(pg_column_size(r.{x}{i}), 0)" for x in "bv" for i in width)
    return (
        f"SELECT string_agg({line}, E'\\n') FROM ("
        f"SELECT r.*, sum({sizes}) OVER (ORDER BY r.ctid) / {STORED} AS piece"
        f" FROM {table.rows} AS r"
        f" WHERE r.what <> 'k' AND r.ctid >= '({start},0)' AND r.ctid < '({end},0)'"
        ") AS r GROUP BY r.piece ORDER BY r.piece"
    )


def total(tables: Sequence[Table]) -> Mapping[str, int]:
    """Of all tables."""
    return {
        "inserted": sum(table.counts.inserted for table in tables),
        "updated": sum(table.counts.updated for table in tables),
        "deleted": sum(table.counts.deleted for table in tables),
    }

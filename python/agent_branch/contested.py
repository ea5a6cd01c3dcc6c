"""Carried rows (carrying.py) that not only the source may have changed, decided by the target many
at once, as merge.py does it row by row.

There are the base's rows that the target has no more in their places, and the source's that are
none of those which only the source has changed.  One statement puts them beside each other and
beside the target's, by key: what is to be done goes into the stage (staging.py), conflicts that are
decided come out as lines, and are kept where they are to stay without coming here; those that are
open are put into a table, and read from there, many lines at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from agent_branch import conflictsql
from agent_branch.conflictsets import Found
from agent_branch.conflictsql import Texts, array_text, differences, if_there, joined, row_text
from agent_branch.merge import Strategy
from agent_branch.records import dataclass
from agent_branch.rowqueries import keys_condition
from agent_branch.sqltext import Row, Statement, columns_of, unnest
from agent_branch.staging import Stage
from agent_branch.tableshape import TableShape

# Characters of open conflicts that are read at once, at most but for one conflict.
READ = 2 << 20


def key_names(shape: TableShape, values: str) -> list[str]:
    """The columns of the key under the names that conditions of keys know; ``values``: v0, v1...
    or b0, b1... are those of a row."""
    return [f"x.{values}{i} AS k{n}" for n, i in enumerate(shape.key)]


@dataclass(frozen=True, slots=True)
class Contest:
    """Of one table.  ``strategy``: for conflicts not in ``decisions``, the name of a table;
    ``left_out``: keys of rows that are not touched; ``counting``: nothing is written down."""

    stage: Stage
    strategy: Strategy
    decisions: str | None
    left_out: Collection[Row] = ()
    counting: bool = False

    @property
    def _open(self) -> str:
        return f"pg_temp.ab_open_{self.stage.number}"

    @property
    def _writes_open(self) -> bool:
        return self.strategy == "manual" and not self.counting

    def decide(self, new: str, old: str, *, known: bool) -> str:
        """A query that stages, and gives a line for each conflict that is decided; counting: how
        many conflicts there are, and how many are open.

        ``new``: a table with place and columns v of the source's rows; ``old``: with columns b of
        the base's; ``known``: some of the source's rows are staged already, by their place.
        """
        self._execute("SET LOCAL default_statistics_target = 10")
        for table in (new, old, *([self.stage.table] if known else [])):
            self._execute(f"ANALYZE {table}")
        self._execute("SET LOCAL default_statistics_target TO DEFAULT")
        if self._writes_open:
            self._execute(
                f"CREATE TEMPORARY TABLE {self._open.removeprefix('pg_temp.')}"
                " (kept pg_catalog.text, shown pg_catalog.text) ON COMMIT DROP"
            )
        return self._deciding(self._beside(new, old, known=known))

    # ---- rows that are left out ----

    @property
    def _left_out(self) -> str:
        return f"pg_temp.ab_left_out_{self.stage.number}"

    def name_left_out(self) -> None:
        """Before anything is decided."""
        if not self.left_out:
            return
        shape = self.stage.shape
        keys = [f"k{n}" for n, _ in enumerate(shape.key)]
        casts = [
            f"{shape.columns[i].cast(f'u.{key}')} AS {key}"
            for i, key in zip(shape.key, keys, strict=True)
        ]
        self.stage.session.execute(
            Statement(
                f"CREATE TEMPORARY TABLE {self._left_out.removeprefix('pg_temp.')} ON COMMIT DROP"
                f" AS SELECT {', '.join(casts)} FROM {unnest(1, len(keys))} AS u"
                f" ({', '.join(keys)})",
                columns_of(list(self.left_out), len(keys)),
            )
        )

    def leave_out(self) -> None:
        """What is staged of them."""
        if self.left_out:
            self._execute(
                f"DELETE FROM {self.stage.table} AS s USING {self._left_out} AS l"
                f" WHERE {keys_condition(self.stage.shape, 's', 'l')}"
            )

    def _execute(self, sql: str) -> None:
        self.stage.session.execute(Statement(sql))

    def _rows(self, sql: str) -> list[Row]:
        return list(self.stage.session.rows(Statement(sql)))

    # ---- the statement ----

    def _deciding(self, beside: str) -> str:
        shape = self.stage.shape
        kinds = " ".join(
            f"WHEN '{change}' THEN {kind}" for change, kind in conflictsql.KINDS.items()
        )
        digest = conflictsql.digest(self._arrays("c"))
        decided = conflictsql.decided(
            f"SELECT m.*, CASE m.change {kinds} END AS kind FROM ({beside}) AS m OFFSET 0",
            self.strategy,
            self.decisions,
            # Nobody will ask for that of a strategy.
            digest=digest if self.decisions or self._writes_open else "NULL::int8",
            **conflictsql.plain_too(
                "CASE e.change WHEN 'added' THEN 'i' WHEN 'removed' THEN 'd' ELSE 'u' END",
                "CASE e.change WHEN 'modified' THEN e.theirs & ~e.ours ELSE 0 END",
            ),
        )
        put = ""
        if self._writes_open:
            kept, shown = (
                conflictsql.kept(self._arrays("d")),
                conflictsql.shown(shape, self._objects),
            )
            put = (
                f", o AS (INSERT INTO {self._open} SELECT {kept}, {shown} FROM d"
                " WHERE d.kind <> 'other' AND d.side IS NULL)"
            )
        told = f"{conflictsql.shown_decided(shape, self._objects)} FROM d WHERE d.side IS NOT NULL"
        if self.counting:
            told = "pg_catalog.count(*), pg_catalog.count(*) FILTER (WHERE d.side IS NULL) FROM d"
            told += " WHERE true"
        return (
            f"WITH d AS MATERIALIZED ({decided}), s AS ({self._staging()}){put}"
            f" SELECT {told} AND d.kind <> 'other'"
        )

    def _beside(self, new: str, old: str, *, known: bool) -> str:
        """Versions of rows: b, t and v; and how they differ."""
        shape = self.stage.shape
        width = range(len(shape.columns))
        ours = [f"t.{column.sql}" for column in shape.columns]
        before, after = "r.b{}".format, "r.v{}".format
        had = "t.ctid IS NOT NULL"
        theirs = differences(shape, shape.updatable, after, before)
        changed = differences(shape, shape.compared, ours.__getitem__, before)
        apart = differences(shape, shape.updatable, ours.__getitem__, after)
        values = [
            *(f"r.k{n}" for n, _ in enumerate(shape.key)),
            *(f"r.b{i}" for i in width),
            *(f"{ours[i]} AS t{i}" for i in width),
            *(f"r.v{i}" for i in width),
        ]
        return (
            f"SELECT r.change, r.place, t.ctid AS at, {had} AS had, {', '.join(values)},"
            f" CASE WHEN r.change = 'modified' THEN {theirs} ELSE 0 END AS theirs,"
            f" CASE WHEN r.change <> 'added' AND {had} THEN {changed} ELSE 0 END AS ours,"
            f" CASE WHEN r.change <> 'removed' AND {had} THEN {apart} ELSE 0 END AS apart"
            f" FROM ({self._changes(new, old, known=known)}) AS r {joined(shape, 'r')}"
            f"{self._but_left_out()} OFFSET 0"
        )

    def _but_left_out(self) -> str:
        if not self.left_out:
            return ""
        keys = keys_condition(self.stage.shape, "l", "r")
        return f" WHERE NOT EXISTS (SELECT FROM {self._left_out} AS l WHERE {keys})"

    def _changes(self, new: str, old: str, *, known: bool) -> str:
        """Rows of base and source beside each other."""
        shape = self.stage.shape
        width = range(len(shape.columns))
        left = ""
        if known:
            left = (
                f" WHERE NOT EXISTS (SELECT FROM {self.stage.table} AS s WHERE s.place = x.place)"
            )
        theirs = f"SELECT x.*, {', '.join(key_names(shape, 'v'))} FROM {new} AS x{left}"
        base = f"SELECT x.*, {', '.join(key_names(shape, 'b'))} FROM {old} AS x"
        keys = (
            f"CASE WHEN n.there THEN n.k{j} ELSE o.k{j} END AS k{j}"
            for j, _ in enumerate(shape.key)
        )
        values = [f"{side}{i}" for side in ("o.b", "n.v") for i in width]
        return (
            "SELECT CASE WHEN n.there IS NULL THEN 'removed' WHEN o.there IS NULL THEN 'added'"
            f" ELSE 'modified' END AS change, n.place, {', '.join([*keys, *values])}"
            f" FROM (SELECT x.*, true AS there FROM ({theirs}) AS x) AS n"
            f" FULL JOIN (SELECT x.*, true AS there FROM ({base}) AS x) AS o"
            f" ON {keys_condition(shape, 'o', 'n')}"
        )

    def _staging(self) -> str:
        shape = self.stage.shape
        keys = [f"k{n}" for n, _ in enumerate(shape.key)]
        into = ["what", "mask", "place", "at", *keys, *(f"v{i}" for i in shape.stored)]
        used = (
            f"CASE WHEN d.what = 'i' OR d.mask & {1 << i} <> 0 THEN d.v{i} END"
            for i in shape.stored
        )
        found = [f"d.{name}" for name in ("what", "mask", "place", "at", *keys)]
        return (
            f"INSERT INTO {self.stage.table} ({', '.join(into)})"
            f" SELECT {', '.join([*found, *used])} FROM d WHERE d.what IS NOT NULL"
        )

    # ---- texts of a row d ----

    def _values(self, row: str, side: str) -> list[str]:
        return [f"{row}.{side}{i}" for i, _ in enumerate(self.stage.shape.columns)]

    def _there(self, row: str) -> dict[str, str]:
        """Conditions: has base, target or source the row?"""
        return {
            "b": f"{row}.change <> 'added'",
            "t": f"{row}.had",
            "v": f"{row}.change <> 'removed'",
        }

    def _arrays(self, row: str) -> Texts:
        columns = self.stage.shape.columns
        keys = [f"{row}.k{n}" for n, _ in enumerate(self.stage.shape.key)]
        key = array_text([columns[i] for i in self.stage.shape.key], keys)
        before, now, after = (
            if_there(condition, array_text(columns, self._values(row, side)))
            for side, condition in self._there(row).items()
        )
        return key, before, now, after

    @property
    def _objects(self) -> Texts:
        shape = self.stage.shape
        ours, others = self._values("d", "t"), [f"d.k{n}" for n, _ in enumerate(shape.key)]
        keys = [
            f"CASE WHEN d.had THEN {ours[i]} ELSE {others[n]} END" for n, i in enumerate(shape.key)
        ]
        key = row_text([shape.columns[i] for i in shape.key], keys)
        base, target, source = (
            if_there(condition, row_text(shape.columns, self._values("d", side)))
            for side, condition in self._there("d").items()
        )
        return key, base, target, source

    # ---- what is open ----

    def open(self) -> Iterator[Found]:
        """Conflicts that nobody has decided, many at a time, once the query has run."""
        if not self._writes_open:
            return
        sizes = "pg_catalog.octet_length(o.kept) + pg_catalog.octet_length(o.shown)"
        starts = self._rows(
            "SELECT pg_catalog.min(x.at) FROM (SELECT o.ctid AS at,"
            f" pg_catalog.sum({sizes}) OVER (ROWS UNBOUNDED PRECEDING) / {READ} AS n"
            f" FROM {self._open} AS o) AS x GROUP BY x.n ORDER BY 1"
        )
        for n, (start,) in enumerate(starts):
            end = f" AND o.ctid < '{starts[n + 1][0]}'" if n + 1 < len(starts) else ""
            ((count, kept, shown),) = self._rows(
                "SELECT pg_catalog.count(*), pg_catalog.string_agg(o.kept, E'\\n'),"
                f" pg_catalog.string_agg(o.shown, E'\\n') FROM {self._open} AS o"
                f" WHERE o.ctid >= '{start}'{end}"
            )
            number = int(count or 0)
            yield Found(number, number, f"{kept}\n", f"{shown}\n")

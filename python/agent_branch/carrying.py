"""What the source has changed, carried to the target as it is, and staged by a few statements.

Base and target descend from one table, so a row version that the target still has in its place is
the base's, and need not be compared with it: it is enough to know its place (pairing.py says how
that is known).  Where the pages tell both versions of a row and in which columns they differ, its
key and these are staged (staging.py) as they come from the source.  The other rows that the source
has instead are put into a temporary table of the target; there it is seen what was updated, in
which columns, and what was deleted.  What is new to the target by its key was inserted.  All this
is staged, too.  What is left, because the target has changed it too, is given back as changes, to
be decided row by row.

What is done to the staged rows is kept at once where it is to stay for branch.revert, without
coming here.  Memory for the places of the rows, some of them in a temporary file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent_branch import keptlines
from agent_branch.carriage import Carrier, Kept, Places, in_bulk, together
from agent_branch.diff import RowChange, changes_at
from agent_branch.merge import TableMerge
from agent_branch.mergeplan import TablePlan
from agent_branch.rowqueries import key_condition, keys_condition
from agent_branch.spool import Lines, Room
from agent_branch.sqltext import Limits, Row, Session, Statement, quote_literal
from agent_branch.staging import Stage, is_set
from agent_branch.tableshape import positions

# Characters of places in one statement: some ten thousand rows.
AT_ONCE = 1 << 20

# Places of rows that are left, in one text.
LEFT_AT_ONCE = 2000

_WAYS = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")
_ONLY_LOOK_UP = "; ".join(f"SET LOCAL {way} = off" for way in _WAYS)
_AS_EVER = "; ".join(f"SET LOCAL {way} TO DEFAULT" for way in _WAYS)


class Carrying:
    """Of one table."""

    def __init__(
        self,
        plan: TablePlan,
        stage: Stage,
        merge: TableMerge,
        carrier: Carrier,
        kept: Kept,
        room: Room,
    ) -> None:
        self.plan = plan
        self.stage = stage
        self.merge = merge
        self.carrier = carrier
        self.kept = kept
        self._same, self._other, self._left = (Lines(room) for _ in range(3))
        self._made = False

    @property
    def _new(self) -> str:
        return f"ab_new_{self.stage.number}"

    @property
    def _old(self) -> str:
        return f"ab_old_{self.stage.number}"

    def changes(
        self, places: Iterator[Places], base: Session, theirs: Session, limits: Limits
    ) -> Iterator[RowChange]:
        """Stage; changes that are left to be decided row by row."""
        self.stage.make()
        # Large as they are, places are looked up in the source as well.
        theirs.execute(Statement(_ONLY_LOOK_UP))
        rows, updated = self._load(in_bulk(places, AT_ONCE))
        theirs.execute(Statement(_AS_EVER))
        if self._made:
            self._stage_loaded(rows, updated)
        for what, mask, number in list(self._run(self._counted())):
            self.stage.counts[what or "", int(mask or 0)] = int(number or 0)
        self._keep()
        assert self.plan.theirs is not None
        shape = self.plan.theirs.shape
        left = self._other.lines(), self._left.lines()
        yield from changes_at(shape, base, theirs, left, limits)
        for one in (self._same, self._other, self._left):
            one.close()

    def _run(self, sql: str) -> Iterator[Row]:
        return self.stage.session.rows(Statement(sql))

    def _execute(self, sql: str) -> int:
        return self.stage.session.execute(Statement(sql))

    # ---- loading ----

    def _load(self, places: Iterator[Places]) -> tuple[int, int]:
        """Updates of which all is known are staged; of the others, rows of the source, and keys of
        the base's that the target has no more as they were.  How many of both."""
        rows = updated = 0
        for some in places:
            if some.columns is not None:
                updated += self._stage_updates(some)
                continue
            self._make()
            if some.same:
                self._same.add_line(some.same)
            if some.other:
                self._other.add_line(some.other)
                names = [f"t.{self.stage.shape.columns[i].sql}" for i in self.stage.shape.key]
                self.carrier.from_base(self._query(names, some.other), self._old)
            if some.theirs:
                names = ["t.ctid", *(f"t.{column.sql}" for column in self.stage.shape.columns)]
                rows += self.carrier.from_source(self._query(names, some.theirs), self._new)
        return rows, updated

    def _make(self) -> None:
        """Tables for what is not known yet, unless there are."""
        if self._made:
            return
        self._made = True
        columns = self.stage.shape.columns
        self._create(
            self._new,
            ["NULL::pg_catalog.tid AS place"]
            + [f"{c.cast('NULL')} AS v{i}" for i, c in enumerate(columns)],
        )
        keys = [f"{columns[i].cast('NULL')} AS k{n}" for n, i in enumerate(self.stage.shape.key)]
        self._create(self._old, keys)

    def _stage_updates(self, some: Places) -> int:
        """Only keys and what differs leave the source."""
        shape = self.stage.shape
        mask = (some.columns or 0) & shape.updatable
        if not mask:
            return 0
        keys = [f"t.{shape.columns[i].sql}" for i in shape.key]
        values = [
            f"t.{column.sql}" if mask >> i & 1 else "NULL" for i, column in enumerate(shape.columns)
        ]
        rows = self.carrier.from_source(
            f"SELECT 'u', {mask}, NULL, NULL, p.at, {', '.join([*keys, *values])}"
            f" FROM ROWS FROM ({_unnested(some.same)}, {_unnested(some.theirs)}) AS p (at, place)"
            f" JOIN {shape.only} AS t ON t.ctid OPERATOR(pg_catalog.=) p.place",
            self.stage.table.removeprefix("pg_temp."),
        )
        wanted = some.theirs.count("(")
        if rows != wanted:
            raise AssertionError(f"{rows} of {wanted} rows of {shape.sql} were found")
        return rows

    def _create(self, table: str, columns: Sequence[str]) -> None:
        self._execute(
            f"CREATE TEMPORARY TABLE {table} ON COMMIT DROP AS"
            f" SELECT {', '.join(columns)} WITH NO DATA"
        )

    def _query(self, names: Sequence[str], places: str) -> str:
        return (
            f"SELECT {', '.join(names)} FROM {self.stage.shape.only} AS t"
            " WHERE t.ctid OPERATOR(pg_catalog.=)"
            f" ANY ({quote_literal(places)}::pg_catalog.tid[])"
        )

    # ---- staging ----

    def _stage_loaded(self, rows: int, updated: int) -> None:
        found = ", ".join(f"v{i}" for i in self.stage.shape.key)
        self._execute(f"CREATE UNIQUE INDEX ON pg_temp.{self._new} ({found})")
        self._stage_known()
        if rows > self._count("'u', '='") - updated:
            self._stage_inserted()

    def _stage_known(self) -> None:
        """Rows that the target has as they were.  What is equal in the end is staged as nothing."""
        # Each row is looked up: nobody knows how many there are, and no table is read whole.
        self._execute(_ONLY_LOOK_UP)
        for places in together(self._same.lines(), AT_ONCE):
            self._execute(self._known(places))
        self._execute(_AS_EVER)

    def _known(self, places: str) -> str:
        shape = self.stage.shape
        able = shape.updatable
        masks = [
            f"CASE WHEN {shape.columns[i].same(f't.{shape.columns[i].sql}', f'r.v{i}')}"
            f" THEN '0' ELSE '{1 << i}' END::pg_catalog.int8"
            for i in positions(able)
        ]
        mask = " OPERATOR(pg_catalog.|) ".join(masks) or "'0'::pg_catalog.int8"
        keys = [f"k{n}" for n, _ in enumerate(shape.key)]
        values = [f"v{i}" for i in positions(able)]
        news = [is_set("q.mask", i, f"q.v{i}") for i in positions(able)]
        return (
            f"INSERT INTO {self.stage.table}"
            f" ({', '.join(['what', 'mask', 'place', 'at', *keys, *values])})"
            " SELECT CASE WHEN q.place IS NULL THEN 'd'"
            " WHEN q.mask OPERATOR(pg_catalog.=) '0' THEN '=' ELSE 'u' END,"
            f" {', '.join(['q.mask', 'q.place', 'q.at', *(f'q.{k}' for k in keys), *news])}"
            f" FROM (SELECT {', '.join(['r.place', 't.ctid AS at', *self._own_key()])},"
            f" {''.join(f'r.{value}, ' for value in values)}"
            f" CASE WHEN r.place IS NULL THEN '0'::pg_catalog.int8 ELSE {mask} END AS mask"
            f" FROM {_unnested(places)} AS p (place) JOIN {shape.only} AS t"
            " ON t.ctid OPERATOR(pg_catalog.=) p.place"
            f" LEFT JOIN {self._rows()} AS r ON {key_condition(shape, 't', 'r')} OFFSET 0) AS q"
        )

    def _own_key(self) -> list[str]:
        shape = self.stage.shape
        return [f"t.{shape.columns[i].sql} AS k{n}" for n, i in enumerate(shape.key)]

    def _rows(self) -> str:
        keys = "".join(f", x.v{i} AS k{n}" for n, i in enumerate(self.stage.shape.key))
        return f"(SELECT x.*{keys} FROM pg_temp.{self._new} AS x)"

    def _stage_inserted(self) -> None:
        """Rows with a key that neither the target nor the base has; the others are left."""
        shape, stage = self.stage.shape, self.stage
        keys = [f"k{n}" for n, _ in enumerate(shape.key)]
        names = ["place", *keys, *(f"v{i}" for i in shape.stored)]
        self._execute(_ONLY_LOOK_UP)
        self._execute(f"CREATE INDEX ON {stage.table} (place)")
        self._execute(f"CREATE INDEX ON pg_temp.{self._old} ({', '.join(keys)})")
        known = (
            f"EXISTS (SELECT FROM {stage.table} AS s WHERE s.place OPERATOR(pg_catalog.=) r.place)"
        )
        self._execute(
            f"INSERT INTO {stage.table} (what, mask, {', '.join(names)})"
            f" SELECT 'i', '0', {', '.join(f'r.{name}' for name in names)} FROM {self._rows()} AS r"
            f" WHERE NOT {known}"
            f" AND NOT EXISTS (SELECT FROM {shape.only} AS t WHERE"
            f" {key_condition(shape, 't', 'r')})"
            f" AND NOT EXISTS (SELECT FROM pg_temp.{self._old} AS o WHERE"
            f" {keys_condition(shape, 'o', 'r')})"
        )
        for (places,) in self._run(
            "SELECT pg_catalog.array_agg(x.place) FROM (SELECT r.place,"
            f" pg_catalog.row_number() OVER () OPERATOR(pg_catalog./) {LEFT_AT_ONCE} AS n"
            f" FROM pg_temp.{self._new} AS r WHERE NOT {known}) AS x GROUP BY x.n"
        ):
            self._left.add_line(places or "")
        self._execute(_AS_EVER)

    def _count(self, what: str) -> int:
        ((number,),) = list(
            self._run(
                f"SELECT pg_catalog.count(*) FROM {self.stage.table} AS s WHERE s.what IN ({what})"
            )
        )
        return int(number or 0)

    def _counted(self) -> str:
        return (
            f"SELECT s.what, s.mask, pg_catalog.count(*) FROM {self.stage.table} AS s"
            " WHERE s.what OPERATOR(pg_catalog.<>) '=' GROUP BY s.what, s.mask"
        )

    def _keep(self) -> None:
        """Have the actions kept: what the rows are now, and what they will be."""
        shape = self.stage.shape

        def old(i: int) -> str:
            return f"t.{shape.columns[i].sql}"

        for (what, _), number in self.stage.counts.items():
            self.merge.count_staged(what, number)
        if not self.stage.counts:
            return
        new = "s.v{}".format
        queries = {
            "i": keptlines.inserted(shape, new),
            "d": keptlines.deleted(shape, old),
            "u": self._changed(old, new),
        }
        self._execute(_ONLY_LOOK_UP)
        for what in sorted({what for what, _ in self.stage.counts}):
            self.kept.keep(
                f"SELECT {queries[what]} FROM {self.stage.table} AS s"
                f" LEFT JOIN {shape.only} AS t ON t.ctid OPERATOR(pg_catalog.=) s.at"
                f" WHERE s.what OPERATOR(pg_catalog.=) '{what}'"
            )
        self._execute(_AS_EVER)

    def _changed(self, old: keptlines.Values, new: keptlines.Values) -> str:
        masks, known = self.stage.masks, 0
        for mask in masks:
            known |= mask

        def value(i: int) -> str:
            return new(i) if len(masks) == 1 else is_set("s.mask", i, new(i))

        return keptlines.changed(self.stage.shape, old, "s.mask", known, value)


def _unnested(places: str) -> str:
    return f"pg_catalog.unnest({quote_literal(places)}::pg_catalog.tid[])"

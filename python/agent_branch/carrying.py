"""What the source has changed, carried to the target as it is, and staged by a few statements.

Base and target descend from one table, so a row version that the target still has in its place is
the base's, and need not be compared with it: it is enough to know its place (pairing.py says how
that is known).  Where the pages tell both versions of a row and in which columns they differ, its
key and these are staged (staging.py) as they come from the source.  The other rows that the source
has instead are put into a temporary table of the target; there it is seen what was updated, in
which columns, and what was deleted.  All this is staged, too.  What is left, because it is new or
the target may have changed it, is decided there as well (contested.py).

What is done to the staged rows is kept at once where it is to stay for branch.revert, without
coming here.  Memory for the places of the rows, some of them in a temporary file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent_branch import keptlines
from agent_branch.carriage import Carrier, Kept, Places, in_bulk, together
from agent_branch.conflictsets import Found
from agent_branch.contested import Contest
from agent_branch.merge import TableMerge
from agent_branch.mergeplan import TablePlan
from agent_branch.records import dataclass
from agent_branch.rowqueries import key_condition
from agent_branch.spool import Lines, Room
from agent_branch.sqltext import Row, Session, Statement, quote_literal
from agent_branch.staging import Stage, is_set
from agent_branch.tableshape import Column, positions

# Characters of places in one statement: some ten thousand rows.
AT_ONCE = 1 << 20

_WAYS = ("enable_hashjoin", "enable_mergejoin", "enable_seqscan")
_ONLY_LOOK_UP = "; ".join(f"SET LOCAL {way} = off" for way in _WAYS)
_AS_EVER = "; ".join(f"SET LOCAL {way} TO DEFAULT" for way in _WAYS)


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many rows: ``new`` of the source and ``old`` of the base in temporary tables of the
    target, ``updated`` in the stage."""

    new: int
    old: int
    updated: int


class Carrying:
    """Of one table.  ``kept``: None where nothing is to be done in the end."""

    def __init__(
        self,
        plan: TablePlan,
        stage: Stage,
        merge: TableMerge,
        carrier: Carrier,
        kept: Kept | None,
        contest: Contest,
        room: Room,
    ) -> None:
        self.plan = plan
        self.stage = stage
        self.merge = merge
        self.carrier = carrier
        self.kept = kept
        self.contest = contest
        self._same = Lines(room)
        self._made = False

    @property
    def _new(self) -> str:
        return f"ab_new_{self.stage.number}"

    @property
    def _old(self) -> str:
        return f"ab_old_{self.stage.number}"

    def run(self, places: Iterator[Places], theirs: Session) -> Iterator[Found]:
        """Stage all that is to be done; conflicts."""
        self.stage.make()
        self.contest.name_left_out()
        # Large as they are, places are looked up in the source as well.
        theirs.execute(Statement(_ONLY_LOOK_UP))
        loaded = self._load(in_bulk(places, AT_ONCE))
        theirs.execute(Statement(_AS_EVER))
        if self._made:
            yield from self._decide(loaded)
        self.contest.leave_out()
        for what, mask, number in list(self._run(self._counted())):
            self.stage.counts[what or "", int(mask or 0)] = int(number or 0)
        self._keep()
        self._same.close()

    def _run(self, sql: str) -> Iterator[Row]:
        return self.stage.session.rows(Statement(sql))

    def _execute(self, sql: str) -> int:
        return self.stage.session.execute(Statement(sql))

    # ---- loading ----

    def _load(self, places: Iterator[Places]) -> Loaded:
        """Updates of which all is known are staged; of the others, rows of the source, and those
        of the base that the target has no more as they were."""
        new = old = updated = 0
        for some in places:
            if some.columns is not None:
                updated += self._stage_updates(some)
                continue
            self._make()
            if some.same:
                self._same.add_line(some.same)
            names = [f"t.{column.sql}" for column in self.stage.shape.columns]
            if some.other:
                old += self.carrier.from_base(self._query(names, some.other), self._old)
            if some.theirs:
                names = ["t.ctid", *names]
                new += self.carrier.from_source(self._query(names, some.theirs), self._new)
        return Loaded(new, old, updated)

    def _make(self) -> None:
        """Tables for what is not known yet, unless there are."""
        if self._made:
            return
        self._made = True
        columns = [self._none(column) for column in self.stage.shape.columns]
        values = [f"{value} AS v{i}" for i, value in enumerate(columns)]
        self._create(self._new, ["NULL::pg_catalog.tid AS place", *values])
        self._create(self._old, [f"{value} AS b{i}" for i, value in enumerate(columns)])

    def _none(self, column: Column) -> str:
        """No value, with the collation that the target has: versions are compared by it, too."""
        if column.equals is None:
            return column.cast("NULL")
        return f"(SELECT t.{column.sql} FROM {self.stage.shape.only} AS t LIMIT 0)"

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

    def _decide(self, loaded: Loaded) -> Iterator[Found]:
        known = 0
        if self._same.count:
            found = ", ".join(f"v{i}" for i in self.stage.shape.key)
            self._execute(f"CREATE UNIQUE INDEX ON pg_temp.{self._new} ({found})")
            self._stage_known()
            known = self._count("'u', '='") - loaded.updated
        if loaded.old or loaded.new > known:
            new, old = f"pg_temp.{self._new}", f"pg_temp.{self._old}"
            query = self.contest.decide(new, old, known=known > 0)
            if self.kept is None:
                ((count, undecided),) = list(self._run(query))
                yield Found(int(count or 0), int(undecided or 0), "", "")
            else:
                yield Found(self.kept.decide(query), 0, "", "")
            yield from self.contest.open()

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
        """Have the actions kept, if any is: what the rows are now, and what they will be."""
        shape = self.stage.shape

        def old(i: int) -> str:
            return f"t.{shape.columns[i].sql}"

        for (what, _), number in self.stage.counts.items():
            self.merge.count_staged(what, number)
        if not self.stage.counts or self.kept is None:
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

"""Rows that only the source has changed: decided and written by a few statements for each table.

Changes are sent to the target a batch at a time, of updated rows no more than the columns that
differ.  There one statement looks the rows up: those that are as the source found them go into a
temporary table (the *stage*), and their actions come back as lines of JSON; the others are left
to be decided row by row (merge.py).  What is staged is written by one statement for all inserted
rows, one for all deleted ones, and one for each set of columns that are updated.  If a constraint
refuses such a statement, or the order of rows matters, the lines are there to do it in batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

from agent_branch.diff import RowChange
from agent_branch.merge import Action, Delete, Insert, Update
from agent_branch.records import dataclass, field
from agent_branch.revert import to_json
from agent_branch.rowqueries import key_condition
from agent_branch.sqltext import (
    Statement,
    WritingSession,
    columns_of,
    unnest,
)
from agent_branch.tableshape import Column, TableShape, mask_of, positions
from agent_branch.writes import DeletePart, InsertPart, Part, UpdatePart

# Changes in one statement.
BATCH = 2000
# Columns whose mask fits into a bigint.
MAX_COLUMNS = 62

_MAY = Statement(
    "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')"
    " AND pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'off'"
    " AND NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger AS e"
    " WHERE e.evtenabled OPERATOR(pg_catalog.<>) 'D')"
)

# Types of which a cast to text is what the output function gives.
_PLAIN = (
    r"(?:pg_catalog\.)?(?:text|character varying|smallint|integer|bigint|numeric|real|date|uuid|"
    r"double precision|timestamp with(?:out)? time zone|jsonb|json|bytea)(?:\(\d+(?:,\d+)?\))?"
)

# What is done, and for updates the mask of the columns that are set.
Kind = tuple[str, int]


def may_stage(session: WritingSession, shape: TableShape) -> bool:
    """Nobody is told of the temporary table, and the role may have it."""
    return (
        bool(shape.key)
        and len(shape.columns) <= MAX_COLUMNS
        and next(iter(list(session.rows(_MAY)))) == ("t",)
    )


@dataclass(slots=True)
class Stage:
    """What is staged of one table.  ``counts``: rows of each kind."""

    session: WritingSession
    shape: TableShape
    number: int = field(default_factory=count().__next__)
    counts: Counter[Kind] = field(default_factory=Counter)
    _made: bool = False

    @property
    def table(self) -> str:
        return f"pg_temp.ab_stage_{self.number}"

    @property
    def masks(self) -> list[int]:
        """The sets of columns that are updated."""
        return sorted(mask for what, mask in self.counts if what == "u")

    def rows(self, what: str) -> int:
        return sum(number for kind, number in self.counts.items() if kind[0] == what)

    # ---- deciding ----

    def feed(self, changes: Sequence[RowChange]) -> tuple[list[RowChange], str]:
        """(changes that are left to be decided row by row, actions of the others as lines)."""
        self.make()
        by_what: dict[str, list[RowChange]] = {"i": [], "u": [], "d": []}
        left: list[RowChange] = []
        lines: list[str] = []
        for change in changes:
            by_what[_what(change)].append(change)
        for what, some in by_what.items():
            if some:
                others, text = self._load(what, some)
                left += others
                lines.append(text)
        return left, "".join(lines)

    def make(self) -> None:
        """The temporary table, unless there is one."""
        if self._made:
            return
        columns = [
            "''::pg_catalog.text AS what",
            "0::pg_catalog.int8 AS mask",
            "0::pg_catalog.int8 AS n",
            # Of carrying.py: where the row is in the source, and in the target.
            "NULL::pg_catalog.tid AS place",
            "NULL::pg_catalog.tid AS at",
            *(f"{self.shape.columns[i].cast('NULL')} AS k{j}" for j, i in self._key()),
            # The type below a domain: values that are not used are NULL.
            *(
                f"COALESCE({c.cast('NULL')}, NULL) AS v{i}"
                for i, c in enumerate(self.shape.columns)
            ),
        ]
        self.session.execute(
            Statement(
                f"CREATE TEMPORARY TABLE {self.table.removeprefix('pg_temp.')} ON COMMIT DROP AS"
                f" SELECT {', '.join(columns)} WITH NO DATA"
            )
        )
        self._made = True

    def _key(self) -> Iterator[tuple[int, int]]:
        return enumerate(self.shape.key)

    def _load(self, what: str, changes: Sequence[RowChange]) -> tuple[list[RowChange], str]:
        able = self.shape.updatable
        masks = [change.changed & able for change in changes]
        if what == "u":
            changes = [change for change, mask in zip(changes, masks, strict=True) if mask]
            masks = [mask for mask in masks if mask]
            if not changes:
                return [], ""
        statement = self._deciding(what, changes, masks)
        ((staged, text),) = list(self.session.rows(statement))
        numbers = [int(n) for n in staged[1:-1].split(",")] if staged else []
        done = set(numbers)
        self.counts.update((what, masks[n] if what == "u" else 0) for n in numbers)
        if what == "i":
            text = "\n".join(
                to_json(Insert(changes[n].key, changes[n].after or ())) for n in numbers
            )
        left = [change for n, change in enumerate(changes) if n not in done]
        return left, text + "\n" if text else ""

    def _deciding(self, what: str, changes: Sequence[RowChange], masks: Sequence[int]) -> Statement:
        """Answer: numbers of the rows that were staged / lines of their actions."""
        shape = self.shape
        union = 0
        for mask in masks:
            union |= mask
        before = {"i": 0, "u": union, "d": shape.compared}[what]
        after = {"i": mask_of(shape.stored), "u": union, "d": 0}[what]
        # n, mask, key, values before, values after
        names = ["mask", *(f"k{j}" for j, _ in self._key())]
        casts = ["u.mask::pg_catalog.int8 AS mask"]
        casts += [f"{shape.columns[i].cast(f'u.k{j}')} AS k{j}" for j, i in self._key()]
        parameters: list[Sequence[str | None]] = [
            [str(mask if what == "u" else 0) for mask in masks],
            *columns_of([change.key for change in changes], len(shape.key)),
        ]
        for letter, wanted, rows in (
            ("b", before, [change.before for change in changes]),
            ("v", after, [change.after for change in changes]),
        ):
            for i in positions(wanted):
                names.append(f"{letter}{i}")
                casts.append(f"{shape.columns[i].cast(f'u.{letter}{i}')} AS {letter}{i}")
                parameters.append([None if row is None else row[i] for row in rows])
        values = [f"v{i}" for i in positions(after)]
        into = ["what", "mask", "n", *(f"k{j}" for j, _ in self._key()), *values]
        source = [f"'{what}'", *(f"j.{name}" for name in into[1:])]
        line = "pg_catalog.string_agg(j.line, E'\\n' ORDER BY j.n)" if what != "i" else "''"
        return Statement(
            f"WITH j AS MATERIALIZED (SELECT r.*, {self._line(what, union)} AS line"
            f" FROM (SELECT u.n OPERATOR(pg_catalog.-) 1 AS n, {', '.join(casts)}"
            f" FROM {unnest(1, len(parameters))} WITH ORDINALITY AS u ({', '.join(names)}, n)"
            f") AS r LEFT JOIN {shape.only} AS t ON {key_condition(shape, 't', 'r')}"
            f" WHERE {self._clean(what, before)}),"
            f" s AS (INSERT INTO {self.table} ({', '.join(into)})"
            f" SELECT {', '.join(source)} FROM j)"
            f" SELECT pg_catalog.array_agg(j.n ORDER BY j.n), {line} FROM j",
            tuple(parameters),
        )

    def _clean(self, what: str, before: int) -> str:
        """Condition: the target has the row as the source found it."""
        if what == "i":
            return "t.ctid IS NULL"
        conditions = ["t.ctid IS NOT NULL"]
        for i in positions(before):
            column = self.shape.columns[i]
            same = column.same(f"t.{column.sql}", f"r.b{i}")
            if what == "u":
                same = (
                    f"(r.mask OPERATOR(pg_catalog.&) {1 << i} OPERATOR(pg_catalog.=) 0 OR {same})"
                )
            conditions.append(same)
        return " AND ".join(conditions)

    def _line(self, what: str, union: int) -> str:
        """Of inserted rows it is made in ``_load``."""
        if what == "i":
            return "''"

        def old(i: int) -> str:
            return f"t.{self.shape.columns[i].sql}"

        if what == "d":
            return delete_line(self.shape, old)
        return update_line(self.shape, old, "r.v{}".format, union, "r.mask")

    # ---- writing ----

    def statements(self, part: Part) -> Iterator[tuple[Kind, Statement]]:
        """What writes the staged rows that a part takes."""
        for kind, rows in sorted(self.counts.items()):
            what, mask = kind
            if what == "i" and isinstance(part, InsertPart):
                yield kind, Statement(self._insert(), rows=rows)
            elif what == "d" and isinstance(part, DeletePart):
                yield kind, Statement(self._delete(), rows=rows)
            elif what == "u" and isinstance(part, UpdatePart):
                yield kind, Statement(self._update(mask), rows=rows)

    def _insert(self) -> str:
        stored = self.shape.stored
        return (
            f"INSERT INTO {self.shape.sql}"
            f" ({', '.join(self.shape.columns[i].sql for i in stored)}) OVERRIDING SYSTEM VALUE"
            f" SELECT {', '.join(f'r.v{i}' for i in stored)} FROM {self._rows('i', 0)}"
        )

    def _update(self, mask: int) -> str:
        assigned = ", ".join(f"{self.shape.columns[i].sql} = r.v{i}" for i in positions(mask))
        return (
            f"UPDATE {self.shape.only} AS t SET {assigned} FROM {self._rows('u', mask)}"
            f" WHERE {key_condition(self.shape, 't', 'r')}"
        )

    def _delete(self) -> str:
        return (
            f"DELETE FROM {self.shape.only} AS t USING {self._rows('d', 0)}"
            f" WHERE {key_condition(self.shape, 't', 'r')}"
        )

    def _rows(self, what: str, mask: int) -> str:
        return (
            f"(SELECT * FROM {self.table} AS x"
            f" WHERE x.what OPERATOR(pg_catalog.=) '{what}'"
            f" AND x.mask OPERATOR(pg_catalog.=) {mask}) AS r"
        )


def _what(change: RowChange) -> str:
    return {"added": "i", "modified": "u", "removed": "d"}[change.kind]


# ---- actions as revert.py writes them, from expressions for values by position ----

Values = Callable[[int], str]


def delete_line(shape: TableShape, old: Values) -> str:
    return f"{_json}('delete', {_key(shape, old)}, {_whole(shape, old)})::pg_catalog.text"


def update_line(shape: TableShape, old: Values, new: Values, known: int, mask: str) -> str:
    """``known``: which columns ``new`` has values for."""
    values = _array(output_text(shape.columns[i], new(i)) for i in positions(known))
    return (
        f"{_json}('set', {_key(shape, old)}, {mask}, {_whole(shape, old)}, {known}, {values})"
        "::pg_catalog.text"
    )


def is_set(mask: str, column: int, value: str) -> str:
    """A value, null if its column is not in a mask."""
    bit = f"{mask} OPERATOR(pg_catalog.&) '{1 << column}' OPERATOR(pg_catalog.<>) '0'"
    return f"CASE WHEN {bit} THEN {value} END"


_json = "pg_catalog.json_build_array"


def _key(shape: TableShape, values: Values) -> str:
    return _array(output_text(shape.columns[i], values(i)) for i in shape.key)


def _whole(shape: TableShape, values: Values) -> str:
    return _array(output_text(column, values(i)) for i, column in enumerate(shape.columns))


def _array(values: Iterable[str]) -> str:
    return f"pg_catalog.to_json(ARRAY[{', '.join(values)}]::pg_catalog.text[])"


def is_plain(column: Column) -> bool:
    """Of a usual type, the JSON of which has no line breaks?"""
    return _has_plain_text(column) and not column.type_name.endswith("json")


def _has_plain_text(column: Column) -> bool:
    import re  # many merges do not need it, and it takes long to import

    return re.fullmatch(_PLAIN, column.type_name) is not None


def output_text(column: Column, value: str) -> str:
    """What the output function of its type makes of a value."""
    if _has_plain_text(column):
        return f"{value}::pg_catalog.text"
    return f"CASE WHEN {value} IS DISTINCT FROM NULL THEN pg_catalog.concat({value}) END"


def kind_of(action: Action) -> Kind | None:
    match action:
        case Insert():
            return "i", 0
        case Update(_, columns):
            return "u", columns
        case Delete():
            return "d", 0
        case _:
            return None


def lists(changes: Iterable[RowChange]) -> Iterator[list[RowChange]]:
    """Changes in lists for ``Stage.feed``."""
    rest = iter(changes)
    while some := list(islice(rest, BATCH)):
        yield some

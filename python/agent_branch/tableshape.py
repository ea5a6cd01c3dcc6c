"""What is known of a table: columns, key, what must stay unique, where it points.

Values are compared by SQL, in the database that has the rows, by the equality of their types;
here values are texts.  A set of columns of a table is an integer, its *mask*: bit ``i`` stands
for ``columns[i]``.
"""

from __future__ import annotations

from agent_branch.hints import Collection, Iterable, Iterator, Sequence
from agent_branch.records import dataclass, field, replace
from agent_branch.sqltext import TEXT, Row, Value, qualified, quote_ident, quote_literal

# Referential actions that change other rows than the ones a statement names.
CASCADING = frozenset("cnd")


@dataclass(frozen=True, slots=True)
class Column:
    """A column.  ``type_name`` and ``equals`` are SQL text, written by the server.

    ``equals`` is the equality of the type's default operator class, as in
    ``OPERATOR(pg_catalog.=)``; None for types that have none (json, xml, point...): they are
    compared by their text.  So 1.0 and 1.00 of type numeric are the same, 0 and -0, what
    citext or a collation that is not deterministic takes for the same, char(n) with and
    without padding; and one json text with more blanks than another is not the same.

    ``identity``: '' none, 'a' GENERATED ALWAYS, 'd' BY DEFAULT.

    ``definition``: of a type that users have made, what tells it from others of its name: its
    labels, fields, constraints.  Values of one may be none of the other.

    ``exact``: two values are the same if and only if their texts are.

    ``stored``: where and how it is found in a row, the same on two sides if equal bytes mean
    equal values: its number, what rows have that are older than it, and the labels of enums in
    the order of the numbers that stand for them.

    ``missing``: what rows have, as text, that are older than the column and were not written since.

    ``number``: in pg_attribute.  ``bytes``: what the bytes of two values say: 'p' they are the
    same if and only if their bytes are, 'b' if their bytes are, 'u' nothing.
    """

    name: str
    type_name: str
    equals: str | None = "OPERATOR(pg_catalog.=)"
    not_null: bool = False
    generated: bool = False
    identity: str = ""
    definition: str = ""
    exact: bool = field(default=False, compare=False)
    stored: str = field(default="", compare=False)
    missing: Value = field(default=None, compare=False)
    number: int = field(default=0, compare=False)
    bytes: str = field(default="u", compare=False)

    @property
    def sql(self) -> str:
        return quote_ident(self.name)

    def cast(self, expression: str) -> str:
        """A text as a value of the column's type."""
        return f"{expression}::{self.type_name}"

    def cast_if_any(self, expression: str) -> str:
        """The same where there may be no row: NULL then, also of a domain that takes none."""
        if not self.definition:
            return self.cast(expression)
        return f"CASE WHEN {expression} IS NOT NULL THEN {self.cast(expression)} END"

    def same(self, left: str, right: str) -> str:
        """Condition: are two values of the column's type the same?  Never null.

        NULL is the same as NULL, also in a column that is NOT NULL: that may be so on one side
        only.  "IS NOT DISTINCT FROM NULL" is also right for composite
        values all of whose fields are null.
        """
        if self.equals is None:
            equal = f"{left}::{TEXT} OPERATOR(pg_catalog.=) {right}::{TEXT}"
        else:
            equal = f"{left} {self.equals} {right}"
        return (
            f"COALESCE({equal}, {left} IS NOT DISTINCT FROM NULL"
            f" AND {right} IS NOT DISTINCT FROM NULL)"
        )


@dataclass(frozen=True, slots=True)
class Unique:
    """A unique index other than the key, or an exclusion constraint.

    ``columns``: positions of the columns it depends on.  ``exact``: two rows collide if and
    only if these columns are equal; not so for indexes of expressions, partial ones, and
    exclusion constraints.
    """

    name: str
    columns: tuple[int, ...]
    exact: bool = True
    deferrable: bool = False
    nulls_distinct: bool = True


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A foreign key of the table that has it.

    ``target``: (schema, table); ``on_delete``: 'a' no action, 'r' restrict, 'c' cascade,
    'n' set null, 'd' set default (pg_constraint.confdeltype).
    """

    name: str
    columns: tuple[int, ...]
    target: tuple[str, str]
    target_columns: tuple[str, ...]
    deferrable: bool = False
    match_full: bool = False
    on_delete: str = "a"


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table: an ordinary one, or a leaf of a partitioned one.

    ``key``: positions of the columns that identify a row, none of them null: those of the
    primary key, else of the replica identity index.  Empty: there is none, and rows can only
    be counted.  ``other_keys``: further sets of columns that are unique and never null.

    ``lacking``: columns that the table does not have where it is read, and the texts that its rows
    have in them all the same.  ``aliases``: columns that have another name there, and that.
    """

    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[int, ...] = ()
    other_keys: tuple[tuple[int, ...], ...] = ()
    uniques: tuple[Unique, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    lacking: tuple[tuple[str, Value], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> tuple[str, str]:
        return self.schema, self.name

    @property
    def sql(self) -> str:
        return qualified(self.schema, self.name)

    @property
    def only(self) -> str:
        """The table without tables that inherit from it."""
        return f"ONLY {self.sql}"

    @property
    def rows(self) -> str:
        """What rows are read from: the table, with these columns under their names here."""
        if not self.lacking and not self.aliases:
            return self.only
        lacking, aliases = dict(self.lacking), dict(self.aliases)

        def value(name: str) -> str:
            if name not in lacking:
                return f"t.{quote_ident(aliases.get(name, name))}"
            text = lacking[name]
            return f"{'NULL' if text is None else quote_literal(text)}::{TEXT}"

        columns = ", ".join(f"{value(column.name)} AS {column.sql}" for column in self.columns)
        return f"(SELECT t.ctid, {columns} FROM {self.only} AS t)"

    @property
    def stored(self) -> tuple[int, ...]:
        """Positions of the columns that can be inserted: not the generated ones."""
        return tuple(i for i, column in enumerate(self.columns) if not column.generated)

    @property
    def compared(self) -> int:
        """Mask of the columns in which versions of a row can differ: neither key nor generated."""
        return mask_of(self.stored) & ~mask_of(self.key)

    @property
    def updatable(self) -> int:
        """Mask of the compared columns that UPDATE may set: not GENERATED ALWAYS AS IDENTITY."""
        return mask_of(i for i in positions(self.compared) if self.columns[i].identity != "a")

    @property
    def exact_key(self) -> bool:
        """Has it a key, and tells the text of two keys whether they are the same?"""
        return bool(self.key) and all(self.columns[i].exact for i in self.key)

    @property
    def exact(self) -> bool:
        """Do the texts of two versions of a row tell in which columns they differ?"""
        return self.exact_key and all(self.columns[i].exact for i in positions(self.compared))

    def position(self, name: str) -> int:
        """Raises ``KeyError`` if there is no such column."""
        for i, column in enumerate(self.columns):
            if column.name == name:
                return i
        raise KeyError(name)

    def key_of(self, row: Row) -> Row:
        return tuple(row[i] for i in self.key)


def mask_of(columns: Iterable[int]) -> int:
    mask = 0
    for i in columns:
        mask |= 1 << i
    return mask


def positions(mask: int) -> Iterator[int]:
    """Positions in a mask, ascending."""
    i = 0
    while mask:
        if mask & 1:
            yield i
        mask >>= 1
        i += 1


def names(shape: TableShape, mask: int) -> list[str]:
    return [shape.columns[i].name for i in positions(mask)]


def restricted(shape: TableShape, names: Collection[str]) -> TableShape:
    """A table as if it had some of its columns only; what depends on others is not exact."""
    if all(column.name in names for column in shape.columns):
        return shape
    kept = [i for i, column in enumerate(shape.columns) if column.name in names]
    place = {old: new for new, old in enumerate(kept)}

    def inside(columns: Sequence[int]) -> bool:
        return all(i in place for i in columns)

    def moved(columns: Sequence[int]) -> tuple[int, ...]:
        return tuple(place[i] for i in columns if i in place)

    return TableShape(
        shape.schema,
        shape.name,
        tuple(shape.columns[i] for i in kept),
        moved(shape.key) if inside(shape.key) else (),
        tuple(moved(key) for key in shape.other_keys if inside(key)),
        tuple(
            replace(one, columns=moved(one.columns), exact=one.exact and inside(one.columns))
            for one in shape.uniques
        ),
        tuple(
            replace(key, columns=moved(key.columns))
            for key in shape.foreign_keys
            if inside(key.columns)
        ),
    )


def same_rows(one: TableShape, other: TableShape) -> bool:
    """Can a row of one table be a row of the other: the same columns, of the same types?"""
    return {c.name: (c.type_name, c.generated) for c in one.columns} == {
        c.name: (c.type_name, c.generated) for c in other.columns
    }


def same_places(one: TableShape, other: TableShape) -> bool:
    """Do equal bytes mean equal values in two tables with the same columns, as far as these are
    of the same types?"""
    columns = {c.name: c for c in other.columns}
    return all(
        c.stored == columns[c.name].stored
        for c in one.columns
        if c.definition == columns[c.name].definition
    )


def common_key(shapes: Sequence[TableShape]) -> tuple[str, ...]:
    """Names of the columns by which rows of all these versions of a table can be matched.

    The key of the first if it is unique in the others, else the key of another one; empty if
    there is none.  A key column must have the same type everywhere.
    """

    def keys(shape: TableShape) -> list[tuple[str, ...]]:
        return [
            tuple(shape.columns[i].name for i in key)
            for key in (shape.key, *shape.other_keys)
            if key
        ]

    def identifies(shape: TableShape, key: tuple[str, ...]) -> bool:
        return any(set(key) == set(other) for other in keys(shape))

    def typed(shape: TableShape, key: tuple[str, ...]) -> list[str]:
        return [shape.columns[shape.position(name)].type_name for name in key]

    for shape in shapes:
        for key in keys(shape)[:1]:
            if all(identifies(other, key) for other in shapes) and all(
                typed(other, key) == typed(shape, key) for other in shapes
            ):
                return key
    return ()


def same_definition(one: TableShape, other: TableShape) -> bool:
    """Same columns, keys, unique and foreign keys, whatever the order of the columns?"""
    return _definition(one) == _definition(other)


def _definition(shape: TableShape) -> tuple[object, ...]:
    def named(columns: Iterable[int]) -> tuple[str, ...]:
        return tuple(shape.columns[i].name for i in columns)

    return (
        {column.name: column for column in shape.columns},
        named(shape.key),
        {
            unique.name: (replace(unique, columns=()), named(unique.columns))
            for unique in shape.uniques
        },
        {
            (key.name, key.target): (replace(key, columns=()), named(key.columns))
            for key in shape.foreign_keys
        },
    )

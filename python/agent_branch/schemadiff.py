"""Two databases compared object by object; no rows of tables, and no server here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent_branch.diff import ChangeKind
from agent_branch.records import dataclass
from agent_branch.sqltext import Row

# In the order in which they can be made.
KINDS = (
    "schema",
    "extension",
    "type",
    "sequence",
    "table",
    "column",
    "constraint",
    "index",
    "statistics",
    "function",
    "procedure",
    "aggregate",
    "view",
    "materialized view",
    "rule",
    "trigger",
    "event trigger",
    "policy",
    "publication",
    "grants",
    "default grants",
    "comment",
)

ObjectId = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SchemaObject:
    """``table``: name of the table that a column is part of, else ''."""

    kind: str
    name: str
    definition: str
    table: str = ""

    @property
    def id(self) -> ObjectId:
        return self.kind, self.name


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """An object that differs; the definition is None where there is no such object."""

    kind: str
    name: str
    change: ChangeKind
    before: str | None
    after: str | None


def object_from(row: Row) -> SchemaObject | None:
    """From a row of ``schemaobjects.OBJECTS``; None if the object went meanwhile."""
    kind, name, table, definition = row
    if kind is None or name is None or definition is None:
        return None
    return SchemaObject(kind, name, definition, table or "")


def compare_schemas(
    before: Iterable[SchemaObject], after: Iterable[SchemaObject]
) -> list[SchemaChange]:
    """Objects that differ, in the order of ``KINDS`` and by name.

    A table that only one side has is one object, with its columns.
    """
    old, new = _known(before), _known(after)
    tables = {name for kind, name in old.keys() & new.keys() if kind == "table"}
    found = [change for key in old.keys() | new.keys() for change in _change(key, old, new, tables)]
    return sorted(found, key=lambda change: (KINDS.index(change.kind), change.name))


def _known(objects: Iterable[SchemaObject]) -> dict[ObjectId, SchemaObject]:
    return {one.id: one for one in objects}


def _change(
    key: ObjectId,
    old: Mapping[ObjectId, SchemaObject],
    new: Mapping[ObjectId, SchemaObject],
    tables: set[str],
) -> Iterator[SchemaChange]:
    was, became = old.get(key), new.get(key)
    one = was or became
    assert one is not None
    if was == became or (one.kind == "column" and one.table not in tables):
        return
    change: ChangeKind = "added" if was is None else "removed" if became is None else "modified"
    whole = one.kind == "table" and change != "modified"
    yield SchemaChange(
        *key,
        change,
        None if was is None else _definition(was, old, with_columns=whole),
        None if became is None else _definition(became, new, with_columns=whole),
    )


def _definition(
    one: SchemaObject, known: Mapping[ObjectId, SchemaObject], *, with_columns: bool
) -> str:
    if not with_columns:
        return one.definition
    prefix = f"{one.name}."
    columns = [
        f"    {column.name.removeprefix(prefix)} {column.definition}"
        for column in known.values()
        if column.kind == "column" and column.table == one.name
    ]
    head, _, rest = one.definition.partition(one.name)
    return f"{head}{one.name} (\n" + ",\n".join(columns) + f"\n){rest}"

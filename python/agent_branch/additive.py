"""What a source has added to its schema, and how a target gets it; no server here.

Objects come as ``schemaobjects.OBJECTS`` tells of them: kind, name, definition, all names in their
schemas.  Only additions are carried over: what the source has changed or dropped, or what both
have made in different ways, are conflicts.  Statements come in the order in which they mostly can
be run; one that needs what a later one makes (a default that calls a function) is to be tried
again after the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from agent_branch.records import dataclass, field
from agent_branch.schemadiff import ObjectId, SchemaObject
from agent_branch.schematext import (
    OWNED,
    RefusedError,
    comment,
    grants,
    labels,
    owned_by,
    owner_statement,
    table_and_part,
    without_owner,
)
from agent_branch.sqltext import Statement

# Rows: table, column, as OBJECTS writes them, then schema, table, column; columns in their order.
COLUMN_ORDER = Statement(
    "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), pg_catalog.quote_ident(a.attname),"
    " n.nspname, c.relname, a.attname"
    " FROM pg_catalog.pg_attribute AS a"
    " JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid AND c.relkind = 'r'"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE a.attnum > 0 AND NOT a.attisdropped AND c.oid >= 16384"
    " ORDER BY c.oid, a.attnum"
)

# Made before rows are written, in this order; all others afterwards.
_BEFORE = ("schema", "extension", "type", "sequence", "function", "procedure", "aggregate")
_AFTER = (
    "constraint",
    "index",
    "statistics",
    "view",
    "materialized view",
    "rule",
    "trigger",
    "policy",
    "grants",
    "comment",
)

# A default that is the same value whenever it is asked for.
_CONSTANT = re.compile(
    r" DEFAULT (?:\(?-?[0-9.]+\)?|true|false|NULL|'(?:[^']|'')*')(?:::[a-z_ .\"0-9(),\[\]]+)?$"
)
_KEPT = re.compile(r"(?: STORAGE (PLAIN|EXTERNAL|MAIN|EXTENDED))?(?: COMPRESSION (pglz|lz4))?$")
# At the end: names and defaults may have these words, too.
_IDENTITY = re.compile(r" GENERATED (?:ALWAYS|BY DEFAULT) AS IDENTITY\Z")


@dataclass(frozen=True, slots=True)
class NewColumn:
    """``constant``: rows that nobody has written since have the same value everywhere.

    ``not_null``: to be set when the rows are there.
    """

    table: str
    name: str
    constant: bool
    not_null: bool = False


@dataclass(slots=True)
class Additions:
    """``labels``: of enums, to be committed first: a transaction cannot use a label that it has
    added.  ``before``, ``after``: the rows.  ``tables``: new ones.  ``refused``: (kind, name, why)
    of what is no addition.  ``made``: what is, as people call it.
    """

    labels: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    columns: list[NewColumn] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def additions(
    base: Iterable[SchemaObject],
    ours: Iterable[SchemaObject],
    theirs: Iterable[SchemaObject],
    order: Mapping[str, list[str]],
) -> Additions:
    """What theirs has more than the base, for ours.  ``order``: columns of theirs' tables."""
    return _Planner(_known(base), _known(ours), _known(theirs), order).plan()


def _known(objects: Iterable[SchemaObject]) -> dict[ObjectId, SchemaObject]:
    return {one.id: one for one in objects}


@dataclass(slots=True)
class _Planner:
    base: Mapping[ObjectId, SchemaObject]
    ours: Mapping[ObjectId, SchemaObject]
    theirs: Mapping[ObjectId, SchemaObject]
    order: Mapping[str, list[str]]
    found: Additions = field(default_factory=Additions)

    def plan(self) -> Additions:
        wanted: dict[str, list[SchemaObject]] = {}
        for key in sorted(self.base.keys() | self.theirs.keys()):
            one = self.theirs.get(key)
            was, here = self.base.get(key), self.ours.get(key)
            if one in (was, here):
                continue
            if one is None:
                self._refuse(key, "the source has dropped it")
            elif was is not None:
                self._changed(one, was, here)
            elif here is not None:
                self._refuse(key, "both have made it, and not the same")
            else:
                wanted.setdefault(one.kind, []).append(one)
        self._make(wanted)
        return self.found

    def _refuse(self, key: ObjectId, why: str) -> None:
        self.found.refused.append((*key, why))

    def _changed(self, one: SchemaObject, was: SchemaObject, here: SchemaObject | None) -> None:
        """More labels of an enum are an addition, if the target has it as it was."""
        old, new = labels(was), labels(one)
        if here != was or not old or not new or [x for x in new if x in old] != old:
            self._refuse(one.id, "the source has changed it")
            return
        for i, label in enumerate(new):
            if label not in old:
                place = f" AFTER {new[i - 1]}" if i else f" BEFORE {old[0]}"
                self.found.labels.append(
                    f"ALTER TYPE {one.name} ADD VALUE IF NOT EXISTS {label}{place}"
                )
                self.found.made.append(f"label {label} of type {one.name}")

    def _make(self, wanted: Mapping[str, list[SchemaObject]]) -> None:
        tables = {one.name for one in wanted.get("table", [])}
        for kind in wanted.keys() - {*_BEFORE, *_AFTER, "table", "column"}:
            for one in wanted[kind]:
                self._refuse(one.id, f"a {kind} is not carried over")
        for kind in (*_BEFORE, "table"):
            for one in wanted.get(kind, []):
                self._try(one, self.found.before, kind == "table")
        for one in wanted.get("column", []):
            if one.table not in tables:
                self._column(one)
        for kind in _AFTER:
            for one in sorted(wanted.get(kind, []), key=_keys_first):
                early = kind == "constraint" and self._is_key(one, tables)
                self._try(one, self.found.before if early else self.found.after, False)
        for one in wanted.get("sequence", []):
            owner = owned_by(one.definition)
            if owner and not self._is_identity(owner):
                self.found.after.append(f"ALTER SEQUENCE {one.name} OWNED BY {owner}")

    def _try(self, one: SchemaObject, into: list[str], is_table: bool) -> None:
        try:
            statements = self._table(one) if is_table else self._statements(one)
        except RefusedError as why:
            self._refuse(one.id, str(why))
            return
        into.extend(statements)
        if is_table:
            self.found.tables.append(one.name)
        if statements:
            self.found.made.append(f"{one.kind} {one.name}")

    @staticmethod
    def _is_key(one: SchemaObject, tables: set[str]) -> bool:
        """What tells the rows of a new table apart is there before them."""
        return one.definition.startswith(("PRIMARY KEY", "UNIQUE")) and any(
            one.name.startswith(f"{table}.") for table in tables
        )

    def _is_identity(self, column: str) -> bool:
        found = self.theirs.get(("column", column))
        return found is not None and _IDENTITY.search(_plain(found.definition)) is not None

    def _statements(self, one: SchemaObject) -> list[str]:
        text, own = one.definition, list[str]()
        if one.kind in OWNED:
            text, owner = without_owner(text)
            own = [] if owner is None else [owner_statement(one, owner)]
        match one.kind:
            case "sequence":
                text, _, column = text.partition("\nOWNED BY ")
                return [] if column and self._is_identity(column) else [text, *own]
            case "constraint":
                table, name = table_and_part(one.name)
                return [f"ALTER TABLE {table} ADD CONSTRAINT {name} {text}"]
            case "index":
                if "\n" in text:
                    raise RefusedError("it is not valid, or what the table is clustered by")
                return [text]
            case "rule" | "trigger":
                if re.search(r"\n(DISABLED|ENABLE REPLICA|ENABLE ALWAYS)$", text):
                    raise RefusedError("it does not fire as others do")
                return [text]
            case "grants":
                return grants(one)
            case "comment":
                return [comment(one)]
            case "aggregate":
                raise RefusedError("an aggregate is not carried over")
            case _:
                return [text, *own]

    def _table(self, one: SchemaObject) -> list[str]:
        text, owner = without_owner(one.definition)
        head, *more = text.split("\n")
        start, _, rest = head.partition(f"TABLE {one.name}")
        if start not in ("CREATE ", "CREATE UNLOGGED ") or rest.startswith(
            (" OF ", " INHERITS ", " PARTITION ")
        ):
            raise RefusedError(
                "partitions, foreign tables and tables that inherit are not carried over"
            )
        if one.name not in self.order:
            raise RefusedError("a table without columns is not carried over")
        if any(line.startswith("REPLICA IDENTITY USING") for line in more):
            raise RefusedError("its replica identity is an index")
        columns = [self.theirs["column", f"{one.name}.{name}"] for name in self.order[one.name]]
        parts = [f"{_column_name(column)} {self._type(column)}" for column in columns]
        made = [f"{start}TABLE {one.name} ({', '.join(parts)}){rest}"]
        for column in columns:
            made += self._kept(column)
        made += [f"ALTER TABLE {one.name} {line}" for line in more]
        if owner is not None:
            made.append(owner_statement(one, owner))
        return made

    def _column(self, one: SchemaObject) -> None:
        text = self._type(one)
        constant = " DEFAULT " not in text or _CONSTANT.search(text) is not None
        fills = " DEFAULT " in text or " GENERATED " in text
        not_null = " NOT NULL" in text.partition(" DEFAULT ")[0] and not fills
        if not_null:
            text = text.replace(" NOT NULL", "", 1)
        name = _column_name(one)
        self.found.before.append(f"ALTER TABLE {one.table} ADD COLUMN {name} {text}")
        self.found.before += self._kept(one)
        if not_null:
            self.found.after.insert(0, f"ALTER TABLE {one.table} ALTER COLUMN {name} SET NOT NULL")
        if " STORED" not in text or " GENERATED ALWAYS AS (" not in text:
            constant = constant and " AS IDENTITY" not in text
            self.found.columns.append(NewColumn(one.table, name, constant, not_null))
        self.found.made.append(f"column {one.name}")

    def _type(self, one: SchemaObject) -> str:
        """The definition as it is written in CREATE TABLE."""
        text = _plain(one.definition)
        identity = _IDENTITY.search(text)
        if identity is None:
            return text
        for other in self.theirs.values():
            if other.kind == "sequence" and owned_by(other.definition) == one.name:
                options = other.definition.partition("\n")[0].partition(" INCREMENT ")[2]
                sequence = f" (SEQUENCE NAME {other.name} INCREMENT {options})"
                return text + sequence
        return text

    @staticmethod
    def _kept(one: SchemaObject) -> list[str]:
        found = _KEPT.search(one.definition)
        assert found is not None
        alter = f"ALTER TABLE {one.table} ALTER COLUMN {_column_name(one)}"
        return [
            f"{alter} SET {word} {value}"
            for word, value in zip(("STORAGE", "COMPRESSION"), found.groups(), strict=True)
            if value
        ]


def _plain(definition: str) -> str:
    """Of a column, without what is set afterwards."""
    return _KEPT.sub("", definition, count=1)


def _keys_first(one: SchemaObject) -> tuple[bool, str]:
    return one.definition.startswith("FOREIGN KEY"), one.name


def _column_name(one: SchemaObject) -> str:
    return one.name.removeprefix(f"{one.table}.")

"""What a merge brings into the target's schema, planned without a server."""

from __future__ import annotations

import pytest
from agent_branch.additive import Additions, additions
from agent_branch.schemadiff import SchemaObject

OWNER = "\nOWNER TO bob"
MOOD = SchemaObject("type", "s.mood", "CREATE TYPE s.mood AS ENUM ('a', 'it''s')" + OWNER)
TABLE = SchemaObject("table", "s.t", "CREATE TABLE s.t" + OWNER)
ID = SchemaObject("column", "s.t.id", "integer NOT NULL", "s.t")
BASE = [MOOD, TABLE, ID]


def planned(theirs: list[SchemaObject], ours: list[SchemaObject] | None = None) -> Additions:
    order: dict[str, list[str]] = {}
    for one in theirs:
        if one.kind == "column":
            order.setdefault(one.table, []).append(one.name.removeprefix(f"{one.table}."))
    return additions(BASE, BASE if ours is None else ours, theirs, order)


def column(text: str) -> SchemaObject:
    return SchemaObject("column", "s.t.c", text, "s.t")


def test_nothing_new() -> None:
    assert planned(BASE) == Additions()
    both = [*BASE, column("integer")]
    assert planned(both, both) == Additions()
    # what only the target has changed is no concern of the source
    assert planned(BASE, [MOOD]) == Additions()


def test_labels() -> None:
    more = SchemaObject(
        "type", "s.mood", "CREATE TYPE s.mood AS ENUM ('0', 'a', 'b, c', 'it''s')" + OWNER
    )
    assert planned([more, TABLE, ID]).labels == [
        "ALTER TYPE s.mood ADD VALUE IF NOT EXISTS '0' BEFORE 'a'",
        "ALTER TYPE s.mood ADD VALUE IF NOT EXISTS 'b, c' AFTER 'a'",
    ]
    for text in ("('it''s', 'a')", "('a')", "('a', 'it')"):
        other = SchemaObject("type", "s.mood", f"CREATE TYPE s.mood AS ENUM {text}" + OWNER)
        found = planned([other, TABLE, ID])
        assert found.labels == []
        assert found.refused == [("type", "s.mood", "the source has changed it")]
    # the target has other labels of its own
    own = SchemaObject("type", "s.mood", "CREATE TYPE s.mood AS ENUM ('a', 'it''s', 'z')" + OWNER)
    assert planned([more, TABLE, ID], [own, TABLE, ID]).refused


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("integer", True),
        ("integer DEFAULT 7", True),
        ("integer DEFAULT '-7'::integer", True),
        ("text COLLATE s.c DEFAULT 'a ''b'' now()'::text", True),
        ("boolean NOT NULL DEFAULT true", True),
        ("text DEFAULT NULL::text", True),
        ("timestamp with time zone NOT NULL DEFAULT now()", False),
        ("text DEFAULT ('a'::text || now())", False),
        ("text DEFAULT lower('A'::text)", False),
        ("date DEFAULT CURRENT_DATE", False),
        ("integer DEFAULT nextval('s.q'::regclass)", False),
        ("timestamp with time zone DEFAULT ('now'::text)::timestamp with time zone", False),
    ],
)
def test_columns(text: str, constant: bool) -> None:
    """Only what is the same whenever it is asked for needs no look at rows nobody has written."""
    found = planned([*BASE, column(text)])
    assert found.before == [f"ALTER TABLE s.t ADD COLUMN c {text}"]
    assert [one.constant for one in found.columns] == [constant]


def test_columns_that_need_care() -> None:
    found = planned([*BASE, column("text NOT NULL STORAGE MAIN COMPRESSION pglz")])
    assert found.before == [
        "ALTER TABLE s.t ADD COLUMN c text",
        "ALTER TABLE s.t ALTER COLUMN c SET STORAGE MAIN",
        "ALTER TABLE s.t ALTER COLUMN c SET COMPRESSION pglz",
    ]
    assert found.after == ["ALTER TABLE s.t ALTER COLUMN c SET NOT NULL"]
    generated = planned([*BASE, column("integer GENERATED ALWAYS AS ((id * 2)) STORED")])
    assert generated.columns == []


def test_what_is_no_addition() -> None:
    theirs = [
        TABLE,
        SchemaObject("column", "s.t.id", "bigint NOT NULL", "s.t"),
        SchemaObject("table", "s.p", "CREATE TABLE s.p PARTITION BY RANGE (id)" + OWNER),
        SchemaObject("publication", "p", "CREATE PUBLICATION p"),
        SchemaObject("grants", "column s.t.id", "eve=r/bob"),
        SchemaObject("view", "s.v", "CREATE VIEW s.v AS\n SELECT 1;" + OWNER),
    ]
    ours = [*BASE, SchemaObject("view", "s.v", "CREATE VIEW s.v AS\n SELECT 2;" + OWNER)]
    found = planned(theirs, ours)
    assert {(kind, name) for kind, name, _ in found.refused} == {
        ("type", "s.mood"),
        ("column", "s.t.id"),
        ("table", "s.p"),
        ("publication", "p"),
        ("grants", "column s.t.id"),
        ("view", "s.v"),
    }


def test_table_without_columns() -> None:
    found = planned([*BASE, SchemaObject("table", "s.n", "CREATE TABLE s.n" + OWNER)])
    assert found.refused == [("table", "s.n", "a table without columns is not carried over")]


def test_grants() -> None:
    theirs = [
        *BASE,
        SchemaObject("table", "s.n", "CREATE TABLE s.n" + OWNER),
        SchemaObject("column", "s.n.id", "integer", "s.n"),
        SchemaObject("grants", "table s.n", '"e ve"=rw*/bob\n=r/bob\nbob=arwdDxt/bob'),
        SchemaObject("grants", "function s.f(a integer)", "bob=X/bob"),
    ]
    assert planned(theirs).after == [
        "REVOKE ALL ON FUNCTION s.f(a integer) FROM PUBLIC",
        'GRANT SELECT ON TABLE s.n TO "e ve"',
        'GRANT UPDATE ON TABLE s.n TO "e ve" WITH GRANT OPTION',
        "GRANT SELECT ON TABLE s.n TO PUBLIC",
    ]

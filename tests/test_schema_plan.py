"""Comparison of schemas: pure, no server."""

from __future__ import annotations

from agent_branch.schemadiff import KINDS, SchemaObject, compare_schemas, object_from


def table(name: str, head: str = "", columns: dict[str, str] | None = None) -> list[SchemaObject]:
    listed = columns if columns is not None else {"id": "integer NOT NULL"}
    return [
        SchemaObject("table", name, f"CREATE TABLE {name}{head}\nOWNER TO me"),
        *(
            SchemaObject("column", f"{name}.{column}", definition, name)
            for column, definition in listed.items()
        ),
    ]


def test_columns_of_tables_on_both_sides_only() -> None:
    """A new or dropped table is one row, with its columns in their order."""
    before = [*table("public.a"), *table("public.b", columns={"x": "text", "id": "integer"})]
    after = [*table("public.a", columns={"id": "bigint", "n": "text"}), *table("public.c")]
    found = compare_schemas(before, after)
    assert [(one.kind, one.name, one.change) for one in found] == [
        ("table", "public.b", "removed"),
        ("table", "public.c", "added"),
        ("column", "public.a.id", "modified"),
        ("column", "public.a.n", "added"),
    ]
    assert found[0].before == "CREATE TABLE public.b (\n    x text,\n    id integer\n)\nOWNER TO me"
    assert found[0].after is None
    assert (found[2].before, found[2].after) == ("integer NOT NULL", "bigint")
    assert (found[3].before, found[3].after) == (None, "text")


def test_a_changed_table_stands_without_its_columns() -> None:
    (found,) = compare_schemas(table("public.a"), table("public.a", " WITH (fillfactor=50)"))
    assert (found.change, found.before) == ("modified", "CREATE TABLE public.a\nOWNER TO me")


def test_same_name_of_another_kind_is_another_object() -> None:
    found = compare_schemas(
        [SchemaObject("view", "public.v", "x"), SchemaObject("function", "public.f()", "x")],
        [SchemaObject("materialized view", "public.v", "x")],
    )
    assert [(one.kind, one.change) for one in found] == [
        ("function", "removed"),
        ("view", "removed"),
        ("materialized view", "added"),
    ]


def test_nothing_differs() -> None:
    both = [SchemaObject(kind, "n", "d") for kind in KINDS]
    assert compare_schemas(both, reversed(both)) == []


def test_an_object_that_went_meanwhile_is_none() -> None:
    assert object_from(("index", "public.i", "", None)) is None
    assert object_from(("column", "public.t.c", "public.t", "text")) == SchemaObject(
        "column", "public.t.c", "text", "public.t"
    )

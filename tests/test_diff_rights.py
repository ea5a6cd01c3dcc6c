"""Who is told which rows differ: functions that find it in pages, called by anybody.

branch.diff and its like read tables with the rights of their caller.  The functions below them
look at pages instead, and can be called by everybody: they have to ask for the same rights.
"""

from __future__ import annotations

import psycopg
import pytest
from ab_changed import FUNCTIONS as CHANGED
from ab_changed import Pages, ask
from ab_cluster import Cluster

CLUSTER = {"settings": {"autovacuum": "off"}}

DATABASES = ("told", "told1")

FUNCTIONS = (*CHANGED, "_rows_apart")


@pytest.fixture(scope="module")
def pages(cluster: Cluster) -> Pages:
    for role in ("reader", "keeper", "passer BYPASSRLS"):
        cluster.sql(f"CREATE ROLE {role} LOGIN")
    cluster.sql("CREATE DATABASE told")
    cluster.psql(
        "CREATE TABLE p (id int PRIMARY KEY, v text, doc text);"
        "INSERT INTO p SELECT g, 'v', repeat(md5(g::text), 200) FROM generate_series(1, 50) AS g;"
        "ALTER TABLE p OWNER TO keeper; GRANT SELECT ON p TO passer;"
        "CREATE SEQUENCE s; ALTER SEQUENCE s OWNER TO keeper;"
        "CREATE SCHEMA fake AUTHORIZATION reader",
        "told",
    )
    cluster.sql("SELECT branch.create('told1', 'told')")
    cluster.sql("UPDATE p SET v = 'changed' WHERE id < 4", dbname="told1")
    return Pages(cluster, *DATABASES, "p")


def on_both(pages: Pages, statement: str, *databases: str) -> None:
    for database in databases or DATABASES:
        pages.cluster.psql(statement, database)


def told(pages: Pages, user: str, function: str, **other: object) -> str:
    """SQLSTATE, or how many lines were answered."""
    with pages.connected(user) as conn:
        given = {**pages.arguments(function, pages.sessions(conn)), **other}
        try:
            return f"{len(ask(conn, function, given))} lines"
        except psycopg.Error as error:
            return f"{error.sqlstate} {error.diag.message_primary}"


@pytest.mark.parametrize(
    ("places", "others", "message"),
    [
        ("soup", "", '"soup" is no text of places of rows'),
        ('{"(0,1)"', "", '"{"(0,1)"" is no text of places of rows'),
        ('{"(0,x)"}', "", "is no text of places of rows"),
        ('{"(0,1)","(0,2)"}', '{"(7,1)"}', "1 places cannot belong to 2"),
    ],
)
def test_no_places(pages: Pages, places: str, others: str, message: str) -> None:
    found = told(pages, "postgres", "_rows_apart", rows=places, others=others)
    assert found.startswith("22023 ")
    assert message in found


LINES = {function: f"{2 if function == '_changed_pairs' else 1} lines" for function in FUNCTIONS}
DENIED = "42501 permission denied for table public.p"
POLICY = '42501 query would be affected by row-level security policy for table "public.p"'


def test_rows_apart(pages: Pages) -> None:
    """Rows 1 and 5: the other side has changed the former; each with what belongs to it."""
    with pages.connected() as conn:
        given = pages.arguments("_rows_apart", pages.sessions(conn))
        first, fifth = '{"(0,1)"}', '{"(0,5)"}'
        assert ask(conn, "_rows_apart", given) == [(fifth, "", first, "")]
        given["others"] = '{"(7,1)","(7,5)"}'
        assert ask(conn, "_rows_apart", given) == [(fifth, '{"(7,5)"}', first, '{"(7,1)"}')]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_select(pages: Pages, function: str) -> None:
    """Of the whole table, on both sides; the right to connect is not enough."""
    assert told(pages, "reader", function) == DENIED
    assert told(pages, "keeper", function) == LINES[function]
    try:
        for granted, missing in (DATABASES, DATABASES[::-1]):
            on_both(pages, "GRANT SELECT ON p TO reader", granted)
            assert told(pages, "reader", function) == DENIED
            on_both(pages, "GRANT SELECT (id, v) ON p TO reader", missing)
            on_both(pages, "GRANT INSERT, UPDATE, DELETE ON p TO reader", missing)
            assert told(pages, "reader", function) == DENIED
            on_both(pages, "REVOKE ALL ON p FROM reader; REVOKE ALL (id, v) ON p FROM reader")
        on_both(pages, "GRANT SELECT ON p TO reader")
        assert told(pages, "reader", function) == LINES[function]
    finally:
        on_both(pages, "REVOKE ALL ON p FROM reader")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("side", DATABASES)
def test_row_security(pages: Pages, function: str, side: str) -> None:
    """Where a policy hides rows from the caller, on either side, nothing is told of any row."""
    on_both(pages, "GRANT SELECT ON p TO reader")
    try:
        on_both(pages, "ALTER TABLE p ENABLE ROW LEVEL SECURITY", side)
        assert told(pages, "reader", function) == POLICY
        for free in ("keeper", "passer", "postgres"):
            assert told(pages, free, function) == LINES[function]
        on_both(pages, "ALTER TABLE p FORCE ROW LEVEL SECURITY", side)
        assert told(pages, "keeper", function) == POLICY
        assert told(pages, "passer", function) == LINES[function]
        on_both(pages, "CREATE POLICY all_of_them ON p USING (true)", side)
        assert told(pages, "reader", function) == POLICY
    finally:
        on_both(
            pages,
            "DROP POLICY IF EXISTS all_of_them ON p; REVOKE ALL ON p FROM reader;"
            "ALTER TABLE p NO FORCE ROW LEVEL SECURITY; ALTER TABLE p DISABLE ROW LEVEL SECURITY",
        )


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_files(pages: Pages, function: str) -> None:
    """What belongs to a table tells of its rows, and has no rights and no policies of its own."""
    files = (
        "SELECT pg_relation_filenode(r) FROM (VALUES ('p_pkey'::regclass), ('s'),"
        " ((SELECT reltoastrelid FROM pg_class WHERE relname = 'p')), (NULL)) AS v (r)"
    )
    for (file,) in pages.cluster.sql(files, dbname="told"):
        number = file or 4_000_000_000
        for user in ("keeper", "postgres"):
            said = told(pages, user, function, one_file=number, other_file=number)
            assert said == f'22023 file {number} of database "told" is not a table\'s'
    for user in ("keeper", "postgres"):
        said = told(pages, user, function, space=1664, one_file=1260, other_file=1260)
        assert said == "22023 relations in tablespace 1664 are no database's"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_a_caller_makes_of_a_session(pages: Pages, function: str) -> None:
    """It is his own, and he may set and make there what he likes: the question means the same."""
    on_both(
        pages,
        "SET ROLE reader; SET search_path = fake, pg_catalog;"
        "CREATE OR REPLACE FUNCTION has_table_privilege(oid, text) RETURNS bool LANGUAGE sql"
        " AS 'SELECT true';"
        "CREATE OR REPLACE FUNCTION same(text, text) RETURNS bool LANGUAGE sql AS 'SELECT true';"
        "CREATE OR REPLACE FUNCTION same(oid, regclass) RETURNS bool LANGUAGE sql"
        " AS 'SELECT true';"
        "DO $$ BEGIN"
        " CREATE OPERATOR = (FUNCTION = same, LEFTARG = text, RIGHTARG = text);"
        " CREATE OPERATOR = (FUNCTION = same, LEFTARG = oid, RIGHTARG = regclass);"
        " EXCEPTION WHEN duplicate_function THEN NULL; END $$;"
        "CREATE TABLE IF NOT EXISTS pg_class (oid oid, relkind text, relname text)",
    )
    with pages.connected("reader") as conn:
        sessions = pages.sessions(conn)
        for session in sessions.values():
            for command in ("SET search_path = fake, pg_catalog", "SET row_security = off"):
                conn.execute("SELECT branch._remote_run(%s, %s)", [session, command])
            # an answer that is still to come is none to the question
            conn.execute(
                "SELECT branch._remote_send_each(ARRAY[%s]::int[], ARRAY[%s])",
                [session, "SELECT '1:1:', true, 'read', 'p'"],
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"):
            ask(conn, function, pages.arguments(function, sessions))

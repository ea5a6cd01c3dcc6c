"""Calls of the functions that tell from pages which rows of two tables differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from ab_checks import Conn
from ab_cluster import Cluster
from agent_branch.blocks import Blocks

FUNCTIONS = ("_changed_rows", "_changed_counts", "_changed_pairs")

# Types of which equal bytes are equal values, and other bytes other ones.
PLAIN = "bool bytea bpchar date int2 int4 int8 text timestamptz uuid varchar"

_LAYOUT = """
SELECT array_agg(a.attlen ORDER BY a.attnum), string_agg(a.attalign::text, '' ORDER BY a.attnum),
    string_agg(CASE WHEN a.attisdropped THEN '-'
        WHEN a.attnum = ANY (i.indkey::int2[]) THEN 'k'
        WHEN t.typname = ANY (string_to_array(%s, ' ')) THEN 'p'
        WHEN t.typname IN ('name', 'numeric') THEN 'b' ELSE 'u' END, '' ORDER BY a.attnum)
FROM pg_attribute AS a LEFT JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_index AS i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = %s::regclass AND a.attnum > 0"""


@dataclass(frozen=True)
class Pages:
    """Pages of a table that two databases have from one origin."""

    cluster: Cluster
    one: str
    other: str
    table: str

    def file(self, database: str) -> int:
        sql = "SELECT pg_relation_filenode(%s::regclass)"
        found: int = self.cluster.scalar(sql, [self.table], dbname=database)
        return found

    def layout(self) -> dict[str, object]:
        """How rows lie in the pages, as it is."""
        ((lengths, align, kinds),) = self.cluster.sql(_LAYOUT, [PLAIN, self.table], dbname=self.one)
        return {"lengths": lengths, "align": align, "kinds": kinds}

    @contextmanager
    def connected(self, user: str | None = None) -> Iterator[Conn]:
        """Who asks: with one snapshot, older than those of the sessions, so rows that they see stay
        for it, too."""
        with psycopg.connect(**self.cluster.conninfo("postgres", user)) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield conn
            conn.rollback()

    def sessions(self, conn: Conn) -> dict[str, object]:
        """Opened for this; each sees one moment to its end."""
        opened = {}
        for name, database in (("a", self.one), ("b", self.other)):
            sql = "SELECT branch._remote_open(%s, true, 'repeatable read')"
            ((opened[name],),) = conn.execute(sql, [database]).fetchall()
        for session in opened.values():
            conn.execute("SELECT branch._remote_run(%s, 'SELECT 1')", [session])
        return dict(opened)

    def arguments(self, function: str, sessions: dict[str, object]) -> dict[str, object]:
        """What is true of all of the table."""
        more: dict[str, object] = {}
        if function == "_rows_apart":
            more = {"rows": '{"(0,1)","(0,5)"}', "others": ""}
        elif function != "_changed_rows":
            more = self.layout()
        return {
            "one": self.one,
            "other": self.other,
            "space": 0,
            "one_file": self.file(self.one),
            "other_file": self.file(self.other),
            "blocks": Blocks.of([(0, 1_000_000)]).packed(),
            **sessions,
            **more,
        }


def ask(conn: Conn, function: str, given: dict[str, object]) -> Sequence[tuple[Any, ...]]:
    more = {"_changed_rows": "", "_rows_apart": ", %(rows)s, %(others)s"}.get(
        function, ", %(lengths)s::int2[], %(align)s, %(kinds)s, 0, ''"
    )
    one, other = (
        f"(SELECT oid FROM pg_database WHERE datname = %({name})s), %(space)s::oid,"
        f" %({name}_file)s::oid"
        for name in ("one", "other")
    )
    return conn.execute(
        f"SELECT * FROM branch.{function}({one}, {other}, %(blocks)s, %(a)s, %(b)s{more})", given
    ).fetchall()

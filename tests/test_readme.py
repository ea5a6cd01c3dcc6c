"""What README and the other documents tell users to type: the first minute is followed to the
letter, and every query names functions, arguments and columns that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ab_cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/operations.md", "monitoring/README.md")
PROMPT = re.compile(r"^(?:\$ psql (\w+)|(\w+)=# (.*?))\s*(?:-- .*)?$", re.MULTILINE)
# From SELECT to the semicolon that ends a line, or has a comment behind it.
BLOCK = re.compile(
    r"^(?:    |\w+=# )(SELECT\b(?:(?!\n\n|\\gexec)[\s\S])*?;) *(?:--.*)?$", re.MULTILINE
)
CALL = re.compile(r"`(?:SELECT |CALL )?(?:\* FROM )?((?:branch\.)?\w+)\(([^`]*?)\)`")
INLINE = re.compile(r"`(SELECT [^`]+?);?`")


def test_one_minute(cluster: Cluster) -> None:
    """Each line in the database that its prompt names, from a server without a database main."""
    section = (ROOT / "README.md").read_text().split("## One minute in psql\n", 1)[1]
    lines = PROMPT.findall(section.split("\n## ", 1)[0])
    cluster.sql("DROP DATABASE main")
    here = ""
    for first, database, typed in lines:
        if first:
            here = first
            continue
        assert database == here, f"{typed!r} comes with the prompt of another database"
        if typed.startswith("\\c "):
            here = typed.removeprefix("\\c ")
            continue
        cluster.psql(typed, dbname=database)
        if typed == "DELETE FROM orders;":
            assert cluster.sql("SELECT id FROM orders", dbname="agent_123") == []
    assert len(lines) > 15
    assert len(cluster.sql("SELECT id FROM orders", dbname="main")) == 2
    assert cluster.sql("SELECT name, current_state FROM branch.branches") == [
        ("agent_123", "deleted")
    ]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_queries_are_of_what_there_is(cluster: Cluster, name: str) -> None:
    """They are parsed, not run."""
    text = (ROOT / name).read_text()
    queries = {re.sub(r"\s+", " ", q) for q in [*BLOCK.findall(text), *INLINE.findall(text)]}
    ours = sorted(q for q in queries if re.search(r"branch\w*[.(]|_branch", q))
    assert ours
    with cluster.connect() as conn:
        for n, query in enumerate(ours):
            conn.execute(f"PREPARE example_{n} AS {query}".encode())


def test_arguments_are_called_what_they_are_called(cluster: Cluster) -> None:
    """In `branch.f(this, that => 'x')`; the agents' functions, with p_ before each, aside."""
    names = {
        call: set(arguments)
        for call, arguments in cluster.sql(
            "SELECT replace(p.oid::regproc::text, '\"', ''), array_agg(DISTINCT a.name)"
            " FROM pg_proc AS p, unnest(p.proargnames) AS a (name)"
            " WHERE p.pronamespace = 'branch'::regnamespace GROUP BY 1"
        )
    }
    wrong = []
    for document in DOCUMENTS:
        for call, given in CALL.findall((ROOT / document).read_text()):
            words = {word.split(" =>")[0].strip() for word in given.split(",")}
            named = {word for word in words if re.fullmatch(r"[a-z_]+", word)}
            if call in names and named - names[call] - {"true", "null"}:
                wrong.append(f"{document}: {call} has {names[call]}, not {named - names[call]}")
    assert not wrong, "\n".join(wrong)
    assert len(names) > 50

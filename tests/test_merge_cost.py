"""What a merge does once and no more: sessions, comparisons of pages, and what is imported."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import agent_branch
import psycopg
import pytest
from ab_cluster import Cluster
from agent_branch import jsontext
from agent_branch.carriage import Places, in_bulk
from hypothesis import given
from hypothesis import strategies as st

# Each takes longer to import than many a merge takes otherwise.
SLOW = {"dataclasses", "decimal", "hashlib", "json", "re", "tempfile", "typing"}

COMPARING = ("_changed_counts", "_changed_pairs", "_changed_rows")


def test_imports(tmp_path: Path) -> None:
    """Nothing that a merge has no need of."""
    (tmp_path / "plpy.py").write_text("class SPIError(Exception): pass\n")
    package = Path(agent_branch.__file__).parent.parent
    script = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(package)!r}]\n"
        "import agent_branch.merging\n"
        "print(*sys.modules)"
    )
    # Without what a site has every program import.
    made = subprocess.run(
        [sys.executable, "-S", "-E", "-c", script], check=True, capture_output=True, text=True
    )
    imported = set(made.stdout.split())
    assert "agent_branch.mergewrite" in imported
    assert not imported & {*SLOW, "agent_branch.additive", "agent_branch.mergeschema"}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda some: st.lists(some) | st.tuples(some, some) | st.dictionaries(st.text(), some),
    max_leaves=5,
)


@given(VALUES)
def test_json(value: object) -> None:
    """Read and written as the module json does it."""
    assert jsontext.written(value) == json.dumps(value, ensure_ascii=False)
    text = jsontext.compact(value)
    assert text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert jsontext.parsed(text) == json.loads(text)


@pytest.mark.parametrize("text", ["", "[1", "[1] ", "nul", '"\n"', "[1][2]"])
def test_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|control character|delimiter"):
        jsontext.parsed(text)
    with pytest.raises(TypeError):
        jsontext.written([text, object()])


def test_json_without_its_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_json", None)
    try:
        importlib.reload(jsontext)
        assert jsontext.compact({"a": ["ü", None, 1]}) == '{"a":["ü",null,1]}'
        assert jsontext.parsed('["ü", null]') == ["ü", None]
    finally:
        monkeypatch.undo()
        importlib.reload(jsontext)


def pairs(some: Places) -> list[tuple[int | None, str, str]]:
    """Places one by one, with what is known of the columns."""
    sides = ([] if not text else text[2:-2].split('","') for text in (some.same, some.theirs))
    return [(some.columns, *both) for both in zip(*sides, strict=True)]


@given(st.lists(st.tuples(st.sampled_from([None, 1, 2]), st.integers(1, 5))), st.integers(1, 60))
def test_places_put_together(lines: list[tuple[int | None, int]], most: int) -> None:
    """None is lost, added or out of order; only what differs alike comes together."""
    listed: list[Places] = []
    for block, (columns, number) in enumerate(lines):
        numbers = range(1, number + 1)
        same, theirs = (
            "{" + ",".join(f'"({block + further},{n})"' for n in numbers) + "}"
            for further in (0, 500)
        )
        listed.append(Places(same, "", theirs, columns))
    found = list(in_bulk(listed, most))
    assert [pair for some in found for pair in pairs(some)] == [
        pair for some in listed for pair in pairs(some)
    ]
    for some in found:
        assert some in listed or (some.columns is not None and len(some.same) <= most + 2)
    for one, other in itertools.pairwise(found):
        if one.columns is not None and one.columns == other.columns:
            assert sum(len(some.same) + some.same.count("(") for some in (one, other)) > most


@pytest.fixture
def counting(cluster: Cluster) -> Cluster:
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, v int, w text)", dbname="main")
    cluster.sql(
        "INSERT INTO t SELECT g, 0, repeat('w', 100) FROM generate_series(1, 5000) AS g",
        dbname="main",
    )
    return cluster


def calls(conn: psycopg.Connection[tuple[object, ...]]) -> dict[str, int]:
    """Of the extension's functions, since the last time."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    found = conn.execute("SELECT funcname, calls FROM pg_stat_user_functions").fetchall()
    conn.execute("SELECT pg_stat_reset()")
    return {str(name): int(str(number)) for name, number in found}


def test_sessions_and_pages(counting: Cluster) -> None:
    """However many rows, and with conflicts: one session in each database, the pages of base and
    source compared once; those of the target only where it has changed the same ones."""
    with counting.connect() as conn:
        conn.execute("SET track_functions = 'all'")
        for name, edit, beside in (
            ("few", "id <= 3", False),
            ("many", "id <= 1000", False),
            ("more", "id <= 2000", True),
            ("clash", "id = 4000", False),
        ):
            counting.sql(f"CREATE DATABASE {name} TEMPLATE main STRATEGY branch")
            counting.sql(f"UPDATE t SET v = v + 1 WHERE {edit}", dbname=name)
            if name == "more":
                counting.sql("UPDATE t SET w = 'main' WHERE id = 1999", dbname="main")
            if name == "clash":
                counting.sql(f"UPDATE t SET v = v + 2 WHERE {edit}", dbname="main")
            calls(conn)
            done = conn.execute("SELECT conflicts FROM branch.merge(%s)", (name,)).fetchone()
            assert done == (1 if name == "clash" else 0,)
            made = calls(conn)
            opened = [made.get(f"_remote_open{what}") for what in ("", "_book", "_target")]
            assert opened == [2, 1, 1], made
            assert sum(made.get(one, 0) for one in COMPARING) == 1, (name, made)
            assert (made.get("_rows_apart", 0) > 0) == beside, (name, made)
    rows = counting.sql("SELECT v, w = 'main', count(*) FROM t GROUP BY 1, 2", dbname="main")
    assert sorted(rows) == [
        (0, False, 2999),
        (1, False, 999),
        (1, True, 1),
        (2, False, 998),
        (3, False, 3),
    ]


def test_the_control_database(cluster: Cluster) -> None:
    """As target and as source, of which a snapshot is taken while there is a session in it."""
    cluster.sql("CREATE TABLE own (id int PRIMARY KEY, v int)")
    cluster.sql("INSERT INTO own SELECT g, 0 FROM generate_series(1, 1000) AS g")
    cluster.sql("SELECT branch.create('beside', 'postgres')")
    cluster.sql("UPDATE own SET v = 1 WHERE id <= 500", dbname="beside")
    merge = "SELECT rows_applied, conflicts FROM branch.merge(%s, %s)"
    assert cluster.sql(merge, ["beside", "postgres"]) == [(500, 0)]
    cluster.sql("UPDATE own SET v = 2 WHERE id > 500")
    assert cluster.sql(merge, ["postgres", "beside"]) == [(500, 0)]
    for dbname in ("postgres", "beside"):
        rows = cluster.sql("SELECT v, count(*) FROM own GROUP BY v ORDER BY v", dbname=dbname)
        assert rows == [(1, 500), (2, 500)]

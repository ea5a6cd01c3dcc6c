"""A restored base backup gets the holes of its branches' files back (tools/dig_holes.sh)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from ab_checks import contents, create, disk_bytes, healthy, oid_of, run
from ab_cluster import Cluster

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "dig_holes.sh"


def dig(place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), str(place)], check=False, capture_output=True, text=True)


def test_holes_come_back(make_cluster: Callable[..., Cluster]) -> None:
    """A branch of a table of 20 MB that wrote a few of its rows, and the branch of that: in a
    backup both have full size; dug out before the first start they have theirs again, and
    every row, as has a branch made then.  A running server is left alone."""
    server = make_cluster("holes", {"autovacuum": "off"})
    run(
        server,
        "main",
        "CREATE TABLE t (id int PRIMARY KEY, v int, pad text)",
        "INSERT INTO t SELECT i, 0, repeat('x', 1000) FROM generate_series(1, 20000) AS i",
        "VACUUM (FREEZE)",
    )
    create(server, "b")
    run(server, "b", "UPDATE t SET v = 1 WHERE id % 5000 = 0", "CREATE TABLE mine AS SELECT 1 AS x")
    create(server, "c", "b")
    run(server, "c", "UPDATE t SET v = 2 WHERE id = 1")
    expected = {name: contents(server, name) for name in ("main", "b", "c")}
    oids = {name: oid_of(server, name) for name in ("b", "c")}

    copy = server.backup(server.root / "backup")
    restored = Cluster.from_data(server.root.parent, "holes-restored", copy, start=False)

    def sizes() -> list[int]:
        places = [restored.data / "base" / str(oid) for oid in oids.values()]
        return [disk_bytes(list(place.iterdir())) for place in places]

    try:
        assert min(sizes()) > 20_000_000
        done = dig(restored.data)
        assert done.returncode == 0, done.stderr
        print(done.stdout)
        assert max(sizes()) < 1_000_000
        restored.start()
        assert {name: contents(restored, name) for name in expected} == expected
        healthy(restored)
        create(restored, "d", "c")
        assert contents(restored, "d") == expected["c"]
        refused = dig(restored.data)
        assert refused.returncode == 1
        assert "stop the server" in refused.stderr
    finally:
        restored.destroy()

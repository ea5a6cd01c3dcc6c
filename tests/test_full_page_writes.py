"""full_page_writes cannot go away while there are branches (audit rule 5)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from ab_cluster import Cluster, ServerError


def test_cannot_be_turned_off_while_there_are_branches(
    make_cluster: Callable[..., Cluster],
) -> None:
    """A reload with the setting off is refused as long as a branch exists, and works after
    the last one is gone; a server with branches does not start with it off."""
    c = make_cluster("fpw")
    c.sql("SELECT name FROM branch.create('b', 'main')")

    c.sql("ALTER SYSTEM SET full_page_writes = on")
    with pytest.raises(psycopg.Error, match="cannot be turned off while there are branches"):
        c.sql("ALTER SYSTEM SET full_page_writes = off")

    with (c.data / "postgresql.auto.conf").open("a") as conf:
        conf.write("full_page_writes = off\n")
    c.stop()
    with pytest.raises(ServerError):
        c.start()
    assert "branches need full_page_writes" in c.log_text()

    text = (c.data / "postgresql.auto.conf").read_text()
    (c.data / "postgresql.auto.conf").write_text(text.replace("full_page_writes = off\n", ""))
    c.start()
    c.sql("SELECT branch.delete('b', hard => true)")
    c.sql("SELECT * FROM branch.gc()")
    c.sql("ALTER SYSTEM SET full_page_writes = off")
    c.sql("SELECT pg_reload_conf()")
    c.wait_for(lambda: c.scalar("SHOW full_page_writes") == "off")
    with pytest.raises(psycopg.Error, match="branches need full_page_writes") as caught:
        c.sql("SELECT name FROM branch.create('b', 'main')")
    assert caught.value.sqlstate == "55000"


def test_standby_keeps_it_too(make_cluster: Callable[..., Cluster]) -> None:
    """A standby that has the setting off would be promoted with it; it does not start, and a
    parallel query on a server where it is off for good reason is none of the guard's business."""
    c = make_cluster("fpwprimary")
    standby = c.standby("fpwstandby")
    standby.stop()
    with (standby.data / "postgresql.auto.conf").open("a") as conf:
        conf.write("full_page_writes = off\n")
    with pytest.raises(ServerError):
        standby.start()
    assert "branches need full_page_writes" in standby.log_text()

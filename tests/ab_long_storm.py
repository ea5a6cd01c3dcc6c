"""The page oracle for long: a parent in a storm, hundreds of snapshots of it side by side.

Each has a branch whose every page must stay what its parent had, and branches of branches
hang as deep as asked for.  All of them are made first, with kill -9 in between, and compared;
then rounds of snapshots, deletions, garbage collection, checkpoints, clean stops, kill -9 (also
in recovery) follow one another at random; at the end all are compared again.  A standby goes
with them, takes over now and then, and then has one of its own.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import psycopg
from ab_checks import amcheck, branches, calm_log, create, delete, healthy, nothing_left, run
from ab_cluster import Cluster
from ab_oracle import (
    SETTINGS,
    State,
    Witness,
    check_all,
    drop_leaves,
    plain_again,
    rows_of,
    settle,
    usable,
)
from ab_storm import (
    Storm,
    checkpoints,
)

PARENT = "p"
ROOM = 20  # witnesses that may be there beside those on so many snapshots of the parent
STORM_SETTINGS: dict[str, object] = {
    **SETTINGS,
    "agent_branch.gather_after": "4",
    "agent_branch.max_snapshots": "4096",
    "hot_standby_feedback": "on",
    "max_wal_size": "512MB",
    "wal_keep_size": "16GB",
    "log_statement": "none",
}


class Torture:
    def __init__(
        self, cluster: Cluster, seed: object, snapshots: int, depth: int, standby: bool
    ) -> None:
        self.cluster = cluster
        self.seed = seed
        self.most = snapshots
        self.depth = depth
        self.rng = random.Random(f"{seed}/storm")
        self.witnesses: list[Witness] = []
        self.done: Counter[str] = Counter()
        self.names = 0
        self.numbers: set[int] = set()  # of files that some snapshot of the parent had
        # PostgreSQL leaves the old file of a mapped catalog behind if the crash comes when the
        # map is changed and the commit is not in WAL yet.
        self.mapped = {
            oid
            for (oid,) in cluster.sql(
                "SELECT oid::int8 FROM pg_class"
                " WHERE relfilenode = 0 AND relkind IN ('r', 'i', 't')",
                dbname=PARENT,
            )
        }
        self.deepest = 0
        self.most_at_once = 0
        self.standby: Cluster | None = None
        if standby:
            self.follow()

    def name(self) -> str:
        self.names += 1
        return f"t{self.names}"

    # ---- the standby ----

    def follow(self) -> None:
        self.names += 1
        self.standby = self.cluster.standby(
            f"torture-standby{self.names}", {"max_standby_streaming_delay": "-1"}
        )

    def take_over(self) -> None:
        """The server is gone, its standby is promoted."""
        assert self.standby is not None
        self.cluster.wait_caught_up(self.standby, 600)
        gone = self.cluster
        gone.kill()
        self.standby.promote()
        self.cluster, self.standby = self.standby, None
        gone.destroy()
        self.done["promoted"] += 1

    # ---- as many as asked for ----

    def fill(self) -> None:
        """Snapshots until there are as many as asked for, and below one of them branches of
        branches; a quarter of the way at a time, each ended by kill -9."""
        for quarter in range(1, 5):
            with (
                Storm(self.cluster, PARENT, f"{self.seed}/fill{quarter}", clients=3) as storm,
                checkpoints(self.cluster, f"{self.seed}/fill{quarter}"),
            ):
                if quarter == 1:
                    self.chain(storm, self.depth, every=10)
                for _ in range(self.most * quarter // 4 - self.most * (quarter - 1) // 4):
                    storm.run(self.rng.randint(1, 4))
                    self.take(storm)
                self.cluster.kill()
            self.cluster.start()
            self.done["end: kill"] += 1
        self.note_how_many()
        assert self.most_at_once >= self.most, f"{self.most_at_once} snapshots at once"
        assert self.deepest >= self.depth, f"{self.deepest} branches below each other"
        self.check(0)

    def note_how_many(self) -> None:
        """Snapshots of the parent that branches hang on, and how deep branches of branches are."""
        alive = self.cluster.scalar(
            "SELECT count(*) FROM branch.snapshots WHERE parent_name = %s AND branches > 0"
            " AND kind = 'before_image' AND NOT poisoned",
            (PARENT,),
        )
        deep = self.cluster.scalar("SELECT coalesce(max(depth), 0) FROM branch.branches")
        self.most_at_once = max(self.most_at_once, int(alive))
        self.deepest = max(self.deepest, int(deep))

    # ---- one round: a storm with things happening in it ----

    def round(self, number: int) -> None:
        with (
            Storm(self.cluster, PARENT, f"{self.seed}/{number}", clients=3) as storm,
            checkpoints(self.cluster, f"{self.seed}/{number}"),
        ):
            for _ in range(self.rng.randint(2, 8)):
                storm.run(self.rng.randint(1, 40))
                self.happen(storm)
            end = self.rng.choice(("kill", "kill", "kill-twice", "fast", "immediate", "go on"))
            if end in ("kill", "kill-twice"):
                self.cluster.kill()
            elif end == "immediate":
                self.cluster.stop("immediate")
        self.done[f"end: {end}"] += 1
        if end == "fast":
            self.cluster.restart("fast")
        elif end != "go on":
            if end == "kill-twice":
                self.cluster.kill_in_recovery()
            self.cluster.start()
        self.check(number)
        if self.standby is not None and self.rng.random() < 0.4:
            self.take_over()
            self.check(number)
            self.follow()

    def happen(self, storm: Storm) -> None:
        what = self.rng.choices(
            ("snapshot", "burst", "busy", "chain", "delete", "gc", "write", "checkpoint"),
            (8, 2, 4, 2, 4, 2, 2, 1),
        )[0]
        self.done[what] += 1
        if what == "snapshot":
            self.take(storm)
        elif what == "burst":
            for _ in range(min(10, self.most - len(self.witnesses))):
                storm.run(self.rng.randint(1, 4))
                self.take(storm)
        elif what == "busy":
            self.busy()
        elif what == "chain":
            self.chain(storm, self.rng.randint(2, self.depth))
        elif what == "delete":
            self.forget(self.rng.randint(1, 5))
        elif what == "gc":
            self.cluster.sql("SELECT * FROM branch.gc()")
        elif what == "write":
            self.write_in_branch()
        else:
            self.cluster.sql("CHECKPOINT")

    def take(self, storm: Storm) -> None:
        with storm.held():
            self.witnesses.append(Witness.make(self.cluster, self.name(), PARENT))
        surplus = len(self.witnesses) - self.most - ROOM
        if surplus > 0:
            self.forget(surplus)

    def busy(self) -> None:
        try:
            self.witnesses.append(Witness.of_itself(self.cluster, self.name(), PARENT))
        except psycopg.errors.LockNotAvailable:
            self.done["busy, timed out"] += 1

    def chain(self, storm: Storm, depth: int, every: int = 0) -> None:
        """Branches of branches down from a new one, each written before the next; beside the
        last there is a witness, and beside every so many-th."""
        source = self.name()
        with storm.held():
            create(self.cluster, source, PARENT)
        for level in range(2, depth + 1):
            low = self.rng.randrange(1, 3500)
            name = self.name()
            run(
                self.cluster,
                source,
                f"UPDATE a SET v = '{name}' WHERE id BETWEEN {low} AND {low + 30}",
                f"INSERT INTO c SELECT i, '{name}' FROM generate_series(1, 40) AS i",
                self.rng.choice(("TRUNCATE c", "VACUUM a", "REINDEX TABLE b", "SELECT 1")),
            )
            if level == depth or (every and level % every == 0):
                before = State.read(self.cluster, source)
                self.witnesses.append(Witness(f"{name}_w", source, [before]))
                create(self.cluster, f"{name}_w", source)
            create(self.cluster, name, source)
            source = name
        if self.rng.random() < 0.5:
            self.witnesses[-1].check(self.cluster, "at once")

    def write_in_branch(self) -> None:
        """A branch of a witness is written: what they share stays."""
        if not self.witnesses:
            return
        name = self.name()
        create(self.cluster, name, self.rng.choice(self.witnesses).name)
        run(
            self.cluster,
            name,
            "UPDATE pgbench_accounts SET filler = 'written' WHERE aid % 3 = 0",
            "DELETE FROM a WHERE id % 2 = 0",
            "VACUUM",
        )
        usable(self.cluster, name)
        if self.rng.random() < 0.7:
            delete(self.cluster, name)

    def forget(self, count: int) -> None:
        self.rng.shuffle(self.witnesses)
        gone, self.witnesses = self.witnesses[:count], self.witnesses[count:]
        for witness in gone:
            self.numbers |= {
                node
                for oid, (node, _) in witness.states[0].relations.items()
                if oid not in self.mapped
            }
        drop_leaves(self.cluster, {witness.name for witness in self.witnesses})
        self.done["deleted"] += len(gone)

    # ---- what must hold ----

    def check(self, number: int) -> None:
        when = f"round {number}"
        healthy(self.cluster)
        usable(self.cluster, PARENT)
        there = branches(self.cluster)
        assert {witness.name for witness in self.witnesses} <= set(there)
        self.note_how_many()
        some = self.witnesses
        if number % 5:
            some = self.rng.sample(self.witnesses, min(12, len(self.witnesses)))
        check_all(self.cluster, some, when)
        self.count(some)
        self.cluster.sql("SELECT * FROM branch.gc()")
        nothing_left(self.cluster, when)
        if self.standby is not None:
            if self.rng.random() < 0.3:
                self.standby.restart(self.rng.choice(("fast", "immediate")))
            elif self.rng.random() < 0.3:
                self.standby.crash()
            self.cluster.wait_caught_up(self.standby, 600)
            check_all(self.standby, some, f"{when}, standby")
            self.count(some)
            assert rows_of(self.standby, PARENT) == rows_of(self.cluster, PARENT), when
            calm_log(self.standby)
        if number % 10 == 0:
            amcheck(self.cluster, PARENT)
        calm_log(self.cluster)

    def count(self, witnesses: Sequence[Witness]) -> None:
        self.done["branches compared"] += len(witnesses)
        self.done["pages compared"] += sum(len(w.states[0].pages) for w in witnesses)

    def finish(self) -> None:
        self.check(0)
        if self.standby is not None:
            self.take_over()
            self.check(0)
        self.forget(len(self.witnesses))
        self.cluster.sql("SELECT * FROM branch.gc()")
        settle(self.cluster, PARENT)
        plain_again(self.cluster, PARENT, self.numbers)
        nothing_left(self.cluster, "at the end")
        amcheck(self.cluster, PARENT)

"""Branches are made, written and deleted while the machine misbehaves.

The disk of the databases or of the branches' own files is full now and then, at random offsets;
processes get no memory, or are killed one by one as the kernel does when there is none; the
clock jumps.  Whatever a statement answers is believed: done, refused, or (if the connection
was lost) one of both.  In the end, and after each server restart, all of it must hold.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from ab_checks import amcheck, branches, collect, disk_bytes, nothing_left
from ab_cluster import Cluster, ServerError, _children, identity, wait_for
from ab_faults import SmallDisk
from ab_power import SETTINGS
from ab_steps import ROWS, choose
from ab_tree import Node, Tree

# What a statement may answer when the machine is at fault (and the server goes on).
EXPECTED = ("53100", "53200", "57P", "58030", "08", "XX001")
# And what the server itself says for that, without a code of its own.
SERVERS = ("checkpoint request failed", "could not write init file")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
WEATHER_SETTINGS: dict[str, object] = {**SETTINGS, "restart_after_crash": "on"}


class Weather:
    def __init__(self, cluster: Cluster, seed: object) -> None:
        self.cluster = cluster
        self.seed = seed
        self.rng = random.Random(f"{seed}/weather")
        self.done: Counter[str] = Counter()
        self.tree = Tree(cluster, rows=ROWS)
        self.limited: list[int] = []
        self.poisoned_allowed = False
        self.trouble = False  # just now: what cannot be looked at is looked at later

    # ---- work ----

    def step(self) -> None:
        """One step of work; an answer that the machine is at fault for is not believed."""
        tree = self.tree
        nodes = [n for n in tree.nodes.values() if n.unsure is None and n.name not in tree.asked]
        leaves = [node for node in tree.leaves() if {node, node.parent} <= set(nodes)]
        what, step = choose(self.cluster, tree, self.rng, nodes, leaves)
        try:
            step()
        except psycopg.Error as error:
            self.refused(what, error)
        else:
            self.done[what] += 1

    def refused(self, what: str, error: psycopg.Error) -> None:
        """Look what is true: a connection may have been lost, or an answer."""
        state = error.sqlstate or "08"
        text = str(error)
        if not state.startswith(EXPECTED) and not any(word in text for word in SERVERS):
            raise AssertionError(f"{what}: {state} {error}") from error
        self.done[f"refused {state}"] += 1
        if self.trouble:
            return
        wait_for(self.answers, what="the server to answer")
        self.tree.settle()
        for node in list(self.tree.nodes.values()):
            if node.unsure is not None:
                self.look(node)

    def answers(self) -> bool:
        with suppress(psycopg.Error):
            return bool(self.cluster.scalar("SELECT true"))
        if not self.cluster.is_running():
            with suppress(ServerError):
                self.cluster.start()
        return False

    def look(self, node: Node) -> None:
        """A node's rows are right, or it says that it is lost, where that may be."""
        try:
            self.tree.check(node)
        except psycopg.Error as error:
            if not (self.poisoned_allowed and node.parent is not None and self.any_lost()):
                raise AssertionError(f'"{node.name}": {error}') from error
            self.done["lost branches"] += 1
            self.forget(node)

    def any_lost(self) -> bool:
        return bool(self.cluster.scalar("SELECT count(*) FROM branch.snapshots WHERE poisoned"))

    def forget(self, node: Node) -> None:
        """With all that hangs on it."""
        for child in [n for n in self.tree.nodes.values() if n.parent is node]:
            self.forget(child)
        self.tree.prune(node)

    # ---- what must hold ----

    def check(self, when: str) -> None:
        while self.limited:
            self.limit(self.limited.pop(), "unlimited")
        wait_for(self.answers, what="the server to answer")
        self.tree.settle()
        for node in list(self.tree.nodes.values()):
            if node.name in self.tree.nodes:
                self.look(node)
        collect(self.cluster)
        self.healthy()
        nothing_left(self.cluster, when)
        self.done["checks"] += 1

    def healthy(self) -> None:
        """Where branches may be lost, so may be the snapshot at which the next merge of a branch
        begins: it is kept until one of the two goes."""
        lost = self.cluster.sql(
            "SELECT 'snapshot ' || id FROM branch.snapshots AS s WHERE poisoned AND EXISTS"
            " (SELECT FROM branch.merge_log WHERE s.id IN (base_snapshot, source_snapshot))"
        )
        known = {what for (what,) in lost} if self.poisoned_allowed else set()
        found = self.cluster.sql("SELECT object, problem FROM branch.verify()")
        left = [(what, why) for what, why in found if what not in known]
        assert left == [], f"branch.verify(): {left}"

    def finish(self) -> None:
        self.cluster.crash()
        self.check("at the end")
        amcheck(self.cluster, self.tree.root.name, *sorted(branches(self.cluster))[:2])

    # ---- weathers ----

    def full_disk(self, rounds: Iterable[int], directory: str) -> None:
        """The directory is as good as full at a random byte, for some steps."""
        self.poisoned_allowed = True  # rule: poison the snapshot, never the parent
        self.cluster.stop()
        place = self.cluster.data / directory
        disk = SmallDisk(place, disk_bytes(list(place.rglob("*"))) + (64 << 20))
        try:
            self.cluster.start()
            for number in rounds:
                for _ in range(self.rng.randint(1, 4)):
                    self.step()
                self.fill(disk)
                self.trouble = True
                for _ in range(self.rng.randint(1, 5)):
                    self.step()
                if self.rng.random() < 0.2:
                    self.cluster.kill()
                disk.relieve()
                self.trouble = False
                self.check(f"full disk {number}")
            self.finish()
        finally:
            self.cluster.kill()
            disk.release()

    def fill(self, disk: SmallDisk) -> None:
        leave = self.rng.choice((0, 4096, 8192, 70_000, 1 << 20))
        for more in (0, 1 << 16, 1 << 20):
            with suppress(OSError):  # the server has taken some meanwhile
                disk.fill(leave + more)
                return

    def no_memory(self, rounds: Iterable[int]) -> None:
        """Processes are killed one by one, or may have no more memory than they have."""
        for number in rounds:
            for _ in range(self.rng.randint(1, 4)):
                self.step()
            self.strike()
            for _ in range(self.rng.randint(1, 4)):
                self.step()
            if number % 4 == 3:
                self.check(f"kill {number}")
        self.finish()

    def strike(self) -> None:
        postmaster = self.cluster.postmaster_pid()
        if postmaster is None:
            return
        victims = _children(postmaster)
        if not victims:
            return
        victim = self.rng.choice(victims)
        with suppress(ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
            if self.rng.random() < 0.5:
                os.kill(victim, signal.SIGKILL)
                self.done["killed one"] += 1
            else:
                pages = int(Path(f"/proc/{victim}/statm").read_text().split()[0])
                most = pages * resource.getpagesize() + self.rng.choice((0, 1 << 18, 1 << 20))
                self.done["limited one"] += self.limit(victim, str(most))
                self.limited.append(victim)

    @staticmethod
    def limit(pid: int, most: str) -> bool:
        """Its soft limit, which may be raised again."""
        call = ["prlimit", f"--pid={pid}", f"--as={most}:"]
        return subprocess.run(call, check=False, capture_output=True, **identity()).returncode == 0

    def jumping_clock(self, rounds: Iterable[int]) -> None:
        """Forward and backward, by up to a year."""
        if not FAKETIME.exists():
            pytest.skip(f"{FAKETIME} is not there (package faketime)")
        clock = self.cluster.root / "clock"
        clock.write_text("+0")
        clock.chmod(0o644)
        environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
        self.cluster.stop()
        with pytest.MonkeyPatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            self.cluster.start()
            for number in rounds:
                jump = self.rng.choice((-1, 1)) * self.rng.choice((1, 3600, 86400, 31_536_000))
                clock.write_text(f"{jump:+d}")
                self.done["jumps"] += 1
                for _ in range(self.rng.randint(1, 5)):
                    self.step()
                if self.rng.random() < 0.3:
                    self.cluster.crash()
                self.check(f"jump {number}")
            clock.write_text("+0")
            self.finish()

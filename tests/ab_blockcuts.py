"""Power cuts that reorder and tear what was written, at any moment of a recorded run.

One client works on a tree of branches, on a file system on a logged disk (ab_blocklog.py), and
notes how long the log was before and after each step.  Then disks are made as a power cut at
some position of the log would have left them, and a server is started on each: steps that had
ended by then are there whole, later ones are not, and of one in the middle either.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ab_blocklog import WRITE, LoggedDisk, image_at, records
from ab_checks import branches, calm_log, collect, healthy, nothing_left
from ab_cluster import Cluster, wait_for
from ab_faults import FailingDisk, call
from ab_power import SETTINGS
from ab_steps import ROWS, choose
from ab_storm import checkpoints
from ab_tree import Node, Rows, Tree

CUT_SETTINGS: dict[str, object] = {**SETTINGS, "full_page_writes": "on"}

State = dict[str, tuple[Node | None, Rows]]


@dataclass
class Moment:
    what: str
    before: int  # length of the log when it was begun
    after: int  # and when it had ended
    state: State


class BlockCuts:
    def __init__(self, cluster: Cluster, place: Path, kind: str, seed: object) -> None:
        """``place``: an empty directory for images.  The server runs, on an ordinary disk."""
        if not Path("/dev/fuse").exists() or os.geteuid() != 0:
            pytest.skip("a logged disk takes root and /dev/fuse")
        self.cluster = cluster
        self.place = place
        self.kind = kind
        self.seed = seed
        self.rng = random.Random(f"{seed}/blocks")
        self.done: Counter[str] = Counter()
        self.tree = Tree(cluster, rows=ROWS)
        self.options = FailingDisk.OPTIONS[kind]
        cluster.stop()
        self.base = place / "base.image"
        FailingDisk(cluster.data, self.base, kind)
        self._unmount()
        self.log = place / "log"
        self.history: list[Moment] = []
        self.started = 0  # length of the log when the server ran

    # ---- the run ----

    def record(self, steps: int) -> None:
        """So many steps, each noted; then everything is killed."""
        live = self.place / "live.image"
        subprocess.run(["cp", "--sparse=always", str(self.base), str(live)], check=True)
        try:
            self.disk = LoggedDisk(live, self.log, self.place / "disk")
        except OSError as problem:
            pytest.skip(f"cannot make a logged disk: {problem}")
        self.history = [Moment("nothing", 0, 0, self._state())]
        try:
            with self._mounted(self.place / "disk") as mounted:
                assert mounted
                self.cluster.start()
                self.started = self.disk.position()
                with checkpoints(self.cluster, self.seed):
                    for _ in range(steps):
                        self._step()
        finally:
            self.disk.close()
            live.unlink()
        self.done["steps"] += steps
        self.done["bytes logged"] += self.log.stat().st_size

    def _state(self) -> State:
        return {name: (node.parent, node.rows) for name, node in self.tree.nodes.items()}

    def _step(self) -> None:
        tree = self.tree
        what, step = choose(self.cluster, tree, self.rng, list(tree.nodes.values()), tree.leaves())
        before = self.disk.position()
        step()
        self.history.append(Moment(what, before, self.disk.position(), self._state()))

    # ---- the cuts ----

    def cut(self, number: int) -> None:
        """A power cut at some moment, and what must hold after it."""
        rng = random.Random(f"{self.seed}/cut {number}")
        at = self._position(rng)
        image = self.place / "cut.image"
        lost = image_at(self.base, self.log, at, image, rng)
        last = max(n for n, moment in enumerate(self.history) if moment.after <= at)
        allowed = [self.history[last].state]
        when = f"cut {number} at {at}, after {self.history[last].what}"
        if last + 1 < len(self.history) and self.history[last + 1].before <= at:
            allowed.append(self.history[last + 1].state)
            when += f", in {self.history[last + 1].what}"
        when += f"; {lost} pieces lost"
        print(when, flush=True)
        try:
            with self._mounted(image) as mounted:
                if not mounted:
                    self.done["cuts that the file system did not survive"] += 1
                    return
                position = len(self.cluster.log_text())
                self.cluster.start()
                self._check(allowed, when)
                calm_log(self.cluster, position)
        except AssertionError as failure:
            raise AssertionError(f"{when}: {failure}") from failure
        finally:
            image.unlink()
        self.done["cuts"] += 1
        self.done["pieces lost"] += lost

    def _position(self, rng: random.Random) -> int:
        """Anywhere since the server ran; half of the time where much has not been flushed."""
        if rng.random() < 0.5:
            return rng.randrange(self.started, self.log.stat().st_size + 1)
        ends, pending, waiting = [0], [1], 0
        with self.log.open("rb") as log:
            for kind, _, length, at in records(log, self.log.stat().st_size):
                waiting = waiting + 1 if kind == WRITE else 0
                if at + length > self.started:
                    ends.append(at + length)
                    pending.append(waiting)
        return int(rng.choices(ends, pending)[0])

    def _check(self, allowed: list[State], when: str) -> None:
        there = {self.tree.root.name, *branches(self.cluster)}
        alike = [state for state in allowed if state.keys() == there]
        assert alike, f"{sorted(there)} are there, not {[sorted(state) for state in allowed]}"
        for name in sorted(there):
            node = Node(name, None, alike[0][name][1])
            if len(alike) > 1 and alike[1][name][1] != node.rows:
                node.unsure = alike[1][name][1]
            self.tree.check(node)
        healthy(self.cluster)
        collect(self.cluster)
        nothing_left(self.cluster, when)

    # ---- mounting ----

    def _unmount(self) -> None:
        place = str(self.cluster.data)
        wait_for(lambda: call("umount", place).returncode == 0, what=f"{place} to be unmounted")

    @contextmanager
    def _mounted(self, device: Path) -> Iterator[bool]:
        """The server's data are on that device; in the end everything is killed.  False if the
        file system's own log is torn in a way that it refuses (XFS does, now and then)."""
        done = call("mount", "-t", self.kind, *self.options, str(device), str(self.cluster.data))
        if done.returncode != 0:
            print(done.stderr.strip())
            yield False
            return
        try:
            yield True
        finally:
            self.cluster.kill()
            self._unmount()

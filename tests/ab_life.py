"""What branches there are: a model of the life of branches, for one session at a time.

``Life`` knows every branch, what is in it, what hangs on it, and which events were to be
told.  Each operation has a method that answers with the SQLSTATEs that it has to fail
with; if there are none it is done, in the model as well.  Nothing here knows a server.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

NOTHING_WRONG: frozenset[str] = frozenset()
NO_SUCH = "3D000"
TAKEN = "42P04"
WRONG_STATE = "55000"
IN_USE = "55006"
NO_BRANCH = "42809"


@dataclass(eq=False)
class Node:
    """A database: a branch, living or deleted, or one that is none (``plain``)."""

    name: str
    parent: Node | None
    rows: set[str]
    oid: int = 0
    plain: bool = False
    deleted: int = 0  # 0: it is not; higher: later
    protected: bool = False
    lease: bool = False  # the protection ends by itself
    expires: str | None = None  # "later", "now"
    labels: dict[str, str] = field(default_factory=dict)
    resets: int = 0  # each gives it files of its own
    lends: bool = False  # a descendant, or its snapshot, may read pages of its files

    def lend_above(self) -> None:
        """Whoever hangs on this one may need pages that all those above it wrote."""
        above = self.parent
        while above is not None:
            above.lends = True
            above = above.parent

    @property
    def living(self) -> bool:
        return self.deleted == 0


@dataclass(eq=False)
class Snapshot:
    source: Node
    source_name: str  # then, which is told when the source is no more
    rows: set[str]
    resets: int  # of the source when it was taken: whose files it needs

    def needs_files(self, node: Node) -> bool:
        return self.source is node and self.resets == node.resets


class Life:
    def __init__(self) -> None:
        self.main = Node("main", None, set(), plain=True)
        self.nodes = [self.main]
        self.snapshots: dict[str, Snapshot] = {}
        self.told: list[tuple[str, str]] = []  # events since they were last looked at
        self.deletions = 0

    def copy(self) -> Life:
        return copy.deepcopy(self)

    # ---- questions ----

    def living(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.living and node.name == name), None)

    def deleted(self, name: str) -> Node | None:
        """The one that was deleted last."""
        found = [node for node in self.nodes if not node.living and node.name == name]
        return max(found, key=lambda node: node.deleted, default=None)

    def branches(self) -> list[Node]:
        return [node for node in self.nodes if not node.plain]

    def children(self, node: Node) -> list[Node]:
        return [child for child in self.nodes if child.parent is node]

    def living_children(self, node: Node) -> list[Node]:
        return [child for child in self.children(node) if child.living]

    def tree(self, node: Node) -> Iterator[Node]:
        yield node
        for child in self.children(node):
            yield from self.tree(child)

    def snapshots_of(self, node: Node | None) -> list[str]:
        return sorted(name for name, one in self.snapshots.items() if one.source is node)

    # ---- what several operations do ----

    def tell(self, event: str, name: str) -> None:
        self.told.append((event, name))

    def remove(self, node: Node) -> None:
        """It is gone; who hangs on it has no parent any more."""
        self.nodes.remove(node)
        for child in self.children(node):
            child.parent = None

    def delete_softly(self, node: Node) -> None:
        self.deletions += 1
        node.deleted = self.deletions
        self.tell("deleted", node.name)

    def delete_for_good(self, node: Node) -> None:
        self.tell("deleted" if node.living else "purged", node.name)
        self.remove(node)

    def refuses(self, node: Node | None) -> frozenset[str]:
        """Why nothing can be done with what has this name."""
        if node is None:
            return frozenset({NO_SUCH})
        return frozenset({NO_BRANCH}) if node.plain else NOTHING_WRONG

    # ---- operations ----

    def create(self, name: str, parent: str, at: str | None, new: Node) -> frozenset[str]:
        source = self.living(parent)
        wrong = set()
        if self.living(name) is not None:
            wrong.add(TAKEN)
        if source is None:
            wrong.add(NO_SUCH)
        if wrong or source is None:
            return frozenset(wrong)
        new.name, new.parent = name, source
        source.lend_above()
        new.rows = set(self.snapshots[at].rows if at else source.rows)
        self.nodes.append(new)
        self.tell("created", name)
        return NOTHING_WRONG

    def ensure(self, name: str) -> frozenset[str]:
        """Of one that is there; it may have another parent."""
        node = self.living(name)
        return frozenset({TAKEN}) if node is None or node.plain else NOTHING_WRONG

    def delete(self, name: str, hard: bool, on_children: str) -> frozenset[str]:
        node = self.living(name) or (self.deleted(name) if hard else None)
        if node is None or node.plain:
            return self.refuses(node)
        going = [node]
        if on_children == "cascade":
            going = [one for one in self.tree(node) if hard or one.living]
        wrong = {WRONG_STATE for one in going if one.living and one.protected}
        if on_children == "cascade" and any(one.plain for one in going):
            wrong.add(NO_BRANCH)
        if on_children == "error" and node.living and self.living_children(node):
            wrong.add(IN_USE)
        if wrong:
            return frozenset(wrong)
        for one in going:
            (self.delete_for_good if hard else self.delete_softly)(one)
        return NOTHING_WRONG

    def recover(self, name: str, new_name: str | None) -> frozenset[str]:
        node = self.deleted(name)
        target = new_name or name
        if node is None:
            return frozenset({NO_SUCH})
        if self.living(target) is not None:
            return frozenset({TAKEN})
        node.deleted, node.name = 0, target
        if node.expires == "now":
            node.expires = None
        self.tell("recovered", target)
        return NOTHING_WRONG

    def rename(self, name: str, new_name: str) -> frozenset[str]:
        node = self.living(name)
        wrong = set(self.refuses(node))
        if self.living(new_name) is not None:
            wrong.add(TAKEN)
        if wrong or node is None:
            return frozenset(wrong)
        node.name = new_name
        self.tell("renamed", new_name)
        return NOTHING_WRONG

    def change(self, name: str, event: str, **values: object) -> frozenset[str]:
        """protect, unprotect, set_labels, set_expiration."""
        node = self.living(name)
        if node is None or node.plain:
            return self.refuses(node)
        for key, value in values.items():
            setattr(node, key, value)
        self.tell(event, name)
        return NOTHING_WRONG

    def leased(self) -> list[Node]:
        return [node for node in self.branches() if node.protected and node.lease]

    def lease_ends(self, node: Node) -> None:
        """Time passes: nobody is told, and nothing else has happened."""
        node.protected = node.lease = False

    def reset(self, name: str, preserve: str | None, at: str | None = None) -> frozenset[str]:
        """To the parent as it is now, or to a snapshot of itself or of its parent."""
        node = self.living(name)
        if node is None or node.plain:
            return self.refuses(node)
        own = at is not None and self.snapshots[at].source is node
        wrong = set()
        if not own and node.parent is None:
            wrong.add(NO_SUCH)
        if not own and node.parent is not None and not node.parent.living:
            wrong.add(WRONG_STATE)
        if node.protected:
            wrong.add(WRONG_STATE)
        if preserve is None and self.living_children(node):
            wrong.add(IN_USE)
        if preserve is not None and self.living(preserve) is not None:
            wrong.add(TAKEN)
        if wrong:
            return frozenset(wrong)
        if at is not None:
            rows = set(self.snapshots[at].rows)
        else:
            assert node.parent is not None
            rows = set(node.parent.rows)
        if preserve is None:
            for child in self.children(node):
                child.parent = None  # it is deleted, and was of what is no more
            node.rows = rows
            node.resets += 1
            node.lends = False
        else:
            new = Node(name, node if own else node.parent, rows, labels=dict(node.labels))
            new.expires = node.expires
            node.name = preserve
            if new.parent is not None:
                new.parent.lend_above()
            self.nodes.append(new)
        self.tell("restored" if at else "reset", name)
        return NOTHING_WRONG

    def detach(self, name: str) -> frozenset[str]:
        node = self.living(name)
        if node is None or node.plain:
            return self.refuses(node)
        wrong = set()
        if node.protected:
            wrong.add(WRONG_STATE)
        if self.children(node) or any(s.needs_files(node) for s in self.snapshots.values()):
            wrong.add(IN_USE)
        if wrong:
            return frozenset(wrong)
        node.plain, node.parent = True, None
        node.labels, node.expires = {}, None
        self.tell("detached", name)
        return NOTHING_WRONG

    def expire(self) -> list[str]:
        """Names of those that go, children before their parents."""
        gone: list[str] = []
        while True:
            due = [
                node
                for node in self.branches()
                if node.living
                and node.expires == "now"
                and not node.protected
                and not self.living_children(node)
            ]
            if not due:
                return gone
            for node in due:
                self.tell("expired", node.name)
                self.delete_softly(node)
                gone.append(node.name)

    def take_snapshot(self, source: str, name: str) -> frozenset[str]:
        node = self.living(source)
        if node is None:
            return frozenset({NO_SUCH})
        node.lend_above()
        self.snapshots[name] = Snapshot(node, source, set(node.rows), node.resets)
        self.tell("snapshot_taken", source)
        return NOTHING_WRONG

    def drop_snapshot(self, name: str) -> None:
        gone = self.snapshots.pop(name)
        there = gone.source in self.nodes
        self.tell("snapshot_dropped", gone.source.name if there else gone.source_name)

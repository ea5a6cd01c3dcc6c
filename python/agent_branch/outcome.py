"""What comes of a merge: rows and conflicts of each table while it is tried, and the answer."""

from __future__ import annotations

from agent_branch.clashes import Clash, Clashes
from agent_branch.records import dataclass, field


@dataclass(frozen=True, slots=True)
class Result:
    """branch.merge_result."""

    merge_id: int | None
    fast_forward: bool
    rows_applied: int
    conflicts: int
    message: str


@dataclass(slots=True)
class Line:
    """What a merge does with one table."""

    table: str
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    conflicts: int = 0
    pages_read: int = 0
    note: str = ""

    @property
    def rows(self) -> int:
        return self.inserted + self.updated + self.deleted


@dataclass(slots=True)
class Outcome:
    """Of one attempt.  ``open``: conflicts for which nothing was decided.  ``again``: rows are to
    be left out that were not; ``left_out``: conflicts that say so."""

    lines: list[Line]
    fast_forward: bool
    clashes: Clashes
    open: int = 0
    made: list[str] = field(default_factory=list)
    again: bool = False
    left_out: list[Clash] = field(default_factory=list)

    def add(self, clash: Clash) -> None:
        self.clashes.add(clash)
        if clash.resolution is None:
            self.open += 1
        elif clash.kind in ("constraint", "cascade") and clash.resolution == "ours":
            self.left_out.append(clash)

    def add_found(self, count: int, undecided: int, lines: str) -> None:
        """Conflicts between rows, as lines of ``Clashes``."""
        self.clashes.add_lines(count, lines)
        self.open += undecided

    def total(self, name: str) -> int:
        return sum(getattr(line, name) for line in self.lines)

    @property
    def rows(self) -> int:
        return sum(self.total(name) for name in ("inserted", "updated", "deleted"))

    @property
    def note(self) -> str | None:
        """Which tables were read further than what changed, and why."""
        said = [f"{line.table}: {line.note}" for line in self.lines if line.note]
        return "; ".join(said) or None


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def conflicts_are(number: int) -> str:
    return f"{counted(number, 'conflict')} {'is' if number == 1 else 'are'}"


def changed_in(rows: int, tables: int) -> str:
    return f"{counted(rows, 'row')} changed in {counted(tables, 'table')}"


def result_of(number: int | None, outcome: Outcome, *, done: bool) -> Result:
    rows = outcome.rows if done else 0
    if outcome.open:
        said = f"{conflicts_are(outcome.open)} open; nothing was changed"
    elif not outcome.rows and not outcome.clashes.count and not outcome.made:
        said = "nothing to merge"
    else:
        said = changed_in(rows, sum(1 for line in outcome.lines if line.rows))
        if outcome.clashes.count:
            said += f", {counted(outcome.clashes.count, 'conflict')} decided"
        if outcome.made:
            said += f", {counted(len(outcome.made), 'definition')} added"
    return Result(number, outcome.fast_forward, rows, outcome.clashes.count, said)

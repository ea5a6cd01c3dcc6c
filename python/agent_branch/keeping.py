"""What is done to rows that were carried to the target (carrying.py), kept for branch.revert
without coming here; in the server.

So are conflicts that were decided (contested.py).

The target's session makes the lines, and they are inserted by one in the control database, whose
transaction is the one that says in the end that the merge was done (mergechanges.py).  If that is
not how it ends, it is rolled back, and what was kept is read from it before, if need be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import plpy

from agent_branch import keptconflicts, mergechanges
from agent_branch.logbook import Book, Log
from agent_branch.records import dataclass
from agent_branch.remote import Remote
from agent_branch.sqltext import quote_literal
from agent_branch.tableorder import TableId
from agent_branch.tableshape import TableShape


class Keeper:
    """Of the merge with a number, made of rows in the session ``target``."""

    def __init__(self, number: int, target: Remote, book: Book) -> None:
        self.number = number
        self.book = book
        self.target = target
        self.next = 1
        self.tables: dict[TableId, KeptLines] = {}
        self.fits = True
        self.decided = 0
        self._next_decided = 1
        self._log: Log | None = None

    @property
    def log(self) -> Log:
        if self._log is None:
            self._log = self.book.log()
            mergechanges.prepare(self._log)
        return self._log

    def table(self, shape: TableShape) -> KeptLines:
        found = self.tables[shape.id] = KeptLines(self, shape)
        return found

    def holds(self, triggered: Collection[TableId]) -> bool:
        """Is there something kept, and may all of it stay, but for these tables?"""
        kept = {table for table, lines in self.tables.items() if lines.count}
        return self.fits and bool(kept or self.decided) and kept.isdisjoint(triggered)

    def gather(self, query: str, head: str, first: int) -> tuple[int, int]:
        """Have lines of rows that a query in the target gives inserted in pieces, with numbers
        from ``first`` on; how many lines, and the next number."""
        rows = plpy.execute(
            plpy.prepare(
                "SELECT * FROM branch._remote_gather($1, $2, $3, $4, $5)",
                ["int4", "text", "int4", "text", "int8"],
            ),
            [self.target.number, query, self.log.number, head, first],
        )
        return rows[0]["lines"], rows[0]["next"]

    def decide(self, query: str) -> int:
        """Lines of conflicts that are decided; how many."""
        head = keptconflicts.insertion(self.number)
        lines, self._next_decided = self.gather(query, head, self._next_decided)
        self.decided += lines
        return lines

    def move(self, log: Log) -> None:
        """Decided conflicts, if there are any, to where they are to stay instead."""
        if self.decided:
            keptconflicts.copy(self.log, log, self.number, self._next_decided)

    def give_up(self) -> Log:
        """The session, which is the caller's from now on."""
        log, self._log = self.log, None
        return log

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


@dataclass(slots=True)
class KeptLines:
    keeper: Keeper
    shape: TableShape
    count: int = 0

    def keep(self, query: str) -> None:
        head = mergechanges.insertion(self.keeper.number, self.shape)
        lines, self.keeper.next = self.keeper.gather(query, head, self.keeper.next)
        self.count += lines

    def decide(self, query: str) -> int:
        return self.keeper.decide(query)

    def pieces(self) -> Iterator[str]:
        schema, name = map(quote_literal, self.shape.id)
        where = f"c.table_schema = {schema} AND c.table_name = {name}"
        for _, text in mergechanges.texts(self.keeper.log, self.keeper.number, where):
            yield text

    def drop(self) -> None:
        self.keeper.fits = False

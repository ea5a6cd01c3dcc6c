"""Conflicts of a merge that were decided when they were found, many in a row of
branch.merge_decided: lines of JSON objects as COPY writes them.
"""

from __future__ import annotations

from agent_branch.mergechanges import Log
from agent_branch.sqltext import quote_literal

# Rows of about a megabyte that are fetched at once.
FETCHED = 4


def insertion(number: int) -> str:
    """An INSERT up to where the number within the merge, the number of lines and the text come."""
    return f"INSERT INTO branch.merge_decided (merge_id, n, rows, conflicts) VALUES ({number}, "


def copy(source: Log, target: Log, number: int, first: int) -> None:
    """From a transaction that is not to stay into another one, with numbers from ``first`` on: what
    it has taken nobody else can have as long as it lasts."""
    head = insertion(number)
    found = source.stream(
        "SELECT d.rows, d.conflicts FROM branch.merge_decided AS d"
        f" WHERE d.merge_id = {number} ORDER BY d.n",
        FETCHED,
    )
    for n, (rows, text) in enumerate(found, first):
        target.run(f"{head}{n}, {rows}, {quote_literal(text or '')})")

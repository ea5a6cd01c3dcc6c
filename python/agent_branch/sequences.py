"""Sequences in a merge: none goes back, so that no number is given out twice."""

from __future__ import annotations

from agent_branch.records import dataclass
from agent_branch.sqltext import Statement, qualified, quote_literal


@dataclass(frozen=True, slots=True)
class SequenceState:
    """``last`` and ``is_called`` as the sequence's own row has them; ``step``: its increment."""

    last: int
    is_called: bool
    step: int = 1
    cycles: bool = False

    @property
    def reached(self) -> tuple[int, bool]:
        """Orders states: what comes later in the sequence's own direction is larger."""
        return (self.last if self.step > 0 else -self.last), self.is_called


def advanced(
    base: SequenceState | None, ours: SequenceState, theirs: SequenceState
) -> SequenceState | None:
    """What the target's sequence is set to; None: it stays.

    The further one, in the direction of ours.  One that cycles has no further one: theirs is
    taken if it alone was used since the base.
    """
    if ours.cycles:
        used_here = base is None or ours.reached != base.reached
        used_there = base is not None and theirs.reached != base.reached
        return theirs if used_there and not used_here else None
    there = SequenceState(theirs.last, theirs.is_called, ours.step)
    return there if there.reached > ours.reached else None


# (schema, name, increment, cycles).  To be run under sqltext.SETTINGS.
READ_SEQUENCES = Statement(
    "SELECT n.nspname, c.relname, s.seqincrement, s.seqcycle"
    " FROM pg_catalog.pg_sequence AS s"
    " JOIN pg_catalog.pg_class AS c ON c.oid = s.seqrelid AND c.relpersistence <> 't'"
    " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    " WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
    " ORDER BY n.nspname, c.relname"
)


def read_state(schema: str, name: str) -> Statement:
    """A query for (last_value, is_called) of a sequence."""
    return Statement(f"SELECT s.last_value, s.is_called FROM {qualified(schema, name)} AS s")


def set_state(schema: str, name: str, state: SequenceState) -> Statement:
    """A query that sets a sequence.  The server does not take that back at ROLLBACK."""
    sequence = quote_literal(qualified(schema, name))
    return Statement(
        f"SELECT pg_catalog.setval({sequence}::pg_catalog.regclass, {state.last},"
        f" {'true' if state.is_called else 'false'})"
    )

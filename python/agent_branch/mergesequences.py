"""Sequences in a merge: the target's are advanced to where the source's are, if that is further."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent_branch.sequences import SequenceState, advanced, read_state, set_state
from agent_branch.sqltext import Session, Statement
from agent_branch.tableorder import TableId

# Sequences whose states are read by one query.
AT_ONCE = 200

# The target answers these when its search_path is the database's own again, under which no
# operator can be trusted to be the server's.
_EQ, _NE = "OPERATOR(pg_catalog.=)", "OPERATOR(pg_catalog.<>)"
_IN_CLASS = f"{_EQ} 'pg_catalog.pg_class'::pg_catalog.regclass"
_IN_DEFAULTS = f"{_EQ} 'pg_catalog.pg_attrdef'::pg_catalog.regclass"

# (schema, name, increment, cycles) of those that the role may read.
_READABLE = Statement(
    "SELECT n.nspname, c.relname, s.seqincrement, s.seqcycle"
    " FROM pg_catalog.pg_sequence AS s"
    f" JOIN pg_catalog.pg_class AS c ON c.oid {_EQ} s.seqrelid AND c.relpersistence {_NE} 't'"
    f" JOIN pg_catalog.pg_namespace AS n ON n.oid {_EQ} c.relnamespace"
    f" WHERE n.nspname {_NE} 'information_schema'"
    " AND n.nspname OPERATOR(pg_catalog.!~) '^pg_'"
    " AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
    f" AND CASE WHEN c.relkind {_EQ} 'S'"
    " THEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT') END"
    " ORDER BY n.nspname, c.relname"
)

# (sequence, table) of tables whose columns own a sequence, or have it in their defaults.
_USED = Statement(
    "SELECT DISTINCT n.nspname, c.relname, m.nspname, t.relname"
    " FROM pg_catalog.pg_class AS c"
    f" JOIN pg_catalog.pg_namespace AS n ON n.oid {_EQ} c.relnamespace"
    " CROSS JOIN LATERAL ("
    "SELECT d.refobjid AS oid FROM pg_catalog.pg_depend AS d"
    f" WHERE d.classid {_IN_CLASS} AND d.objid {_EQ} c.oid"
    f" AND d.refclassid {_IN_CLASS} AND d.refobjsubid OPERATOR(pg_catalog.>) 0"
    " UNION ALL SELECT e.adrelid FROM pg_catalog.pg_depend AS d"
    f" JOIN pg_catalog.pg_attrdef AS e ON e.oid {_EQ} d.objid"
    f" WHERE d.refclassid {_IN_CLASS} AND d.refobjid {_EQ} c.oid"
    f" AND d.classid {_IN_DEFAULTS}) AS u"
    f" JOIN pg_catalog.pg_class AS t ON t.oid {_EQ} u.oid"
    f" JOIN pg_catalog.pg_namespace AS m ON m.oid {_EQ} t.relnamespace"
    f" WHERE c.relkind {_EQ} 'S'"
)

States = dict[TableId, SequenceState]


def used_by(session: Session, wanted: Callable[[TableId], bool]) -> set[TableId]:
    """Sequences that some tables use."""
    return {
        (schema or "", name or "")
        for schema, name, table_schema, table in session.rows(_USED)
        if wanted((table_schema or "", table or ""))
    }


def read_sequences(session: Session, without: Iterable[str] = ()) -> States:
    found: dict[TableId, tuple[int, bool]] = {}
    for schema, name, step, cycles in session.rows(_READABLE):
        assert schema is not None
        assert name is not None
        if schema not in without:
            found[schema, name] = int(step or 1), cycles == "t"
    names = list(found)
    states: States = {}
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        query = " UNION ALL ".join(
            f"SELECT {n}, x.* FROM ({read_state(*one).template}) AS x" for n, one in enumerate(some)
        )
        for n, last, is_called in session.rows(Statement(query)):
            one = some[int(n or 0)]
            states[one] = SequenceState(int(last or 0), is_called == "t", *found[one])
    return states


def steps(base: States, ours: States, theirs: States) -> dict[TableId, SequenceState]:
    """What the target's sequences are set to."""
    found = {}
    for name, there in theirs.items():
        if name in ours and base.get(name) != there:
            state = advanced(base.get(name), ours[name], there)
            if state is not None:
                found[name] = state
    return found


def advance_sequences(
    base: Session,
    ours: Session,
    theirs: Session,
    without: Iterable[str] = (),
    wanted: Callable[[TableId], bool] | None = None,
) -> int:
    """How many were advanced.  The target's transaction is to be committed right after.

    ``wanted``: only those that such tables of the target use.
    """
    there, before = read_sequences(theirs, without), {}
    if there:
        before = read_sequences(base, without)
    if there == before:
        return 0
    found = steps(before, read_sequences(ours, without), there)
    if found and wanted is not None:
        used = used_by(ours, wanted)
        found = {name: state for name, state in found.items() if name in used}
    for name, state in found.items():
        for _ in ours.rows(_further(name, state)):
            pass
    return len(found)


def _further(name: TableId, state: SequenceState) -> Statement:
    """Somebody may use it meanwhile: it is looked at again."""
    if state.cycles:
        return set_state(*name, state)
    before = "<" if state.step > 0 else ">"
    return Statement(
        f"SELECT ({set_state(*name, state).template}) FROM ({read_state(*name).template}) AS s"
        f" WHERE s.last_value OPERATOR(pg_catalog.{before}) {state.last}::pg_catalog.int8"
        f" OR s.last_value OPERATOR(pg_catalog.=) {state.last}::pg_catalog.int8"
        " AND NOT s.is_called"
    )

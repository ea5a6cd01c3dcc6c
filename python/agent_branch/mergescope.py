"""What a merge is about, inside the server: its tables, and the states that they begin with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plpy

from agent_branch import bases
from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.mergelog import Pair
from agent_branch.mergeoptions import Options
from agent_branch.mergeparts import Base, Part, divide
from agent_branch.mergesequences import advance_sequences
from agent_branch.opening import Reading, required, target_of
from agent_branch.progress import Progress
from agent_branch.records import dataclass, replace
from agent_branch.remote import close_each
from agent_branch.sqltext import Session, Statement, qualified, unnest
from agent_branch.tableorder import TableId

NOTHING_IN_COMMON = "55000"
UNDEFINED_TABLE = "42P01"

# (which of those asked for, table that has its rows); a partitioned one may have none.
_LISTED = (
    "SELECT u.n, m.nspname, t.relname"
    f" FROM {unnest(1, 2)} WITH ORDINALITY AS u (schema, name, n)"
    " JOIN pg_catalog.pg_namespace AS n ON n.nspname = u.schema"
    " JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid AND c.relname = u.name"
    " AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'"
    " LEFT JOIN LATERAL (SELECT c.oid AS relid UNION"
    " SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) AS p WHERE c.relkind = 'p'"
    ") AS p ON true"
    " LEFT JOIN pg_catalog.pg_class AS t ON t.oid = p.relid AND t.relkind = 'r'"
    " LEFT JOIN pg_catalog.pg_namespace AS m ON m.oid = t.relnamespace"
)


@dataclass(frozen=True, slots=True)
class Frozen:
    """A session in database ``name``, which has a state of another one."""

    state: bases.State
    name: str
    session: Reading


@dataclass(frozen=True, slots=True)
class Begin:
    """Tables that begin with one state, and that."""

    part: Part
    base: Frozen


def find_pair(source: str | None, target: str | None) -> Pair:
    named = required("source", source)
    other = target_of(named, target)
    pair = Pair(named, bases.database_oid(named), other, bases.database_oid(other))
    if pair.source_id == pair.target_id:
        raise ReportedError(
            INVALID_PARAMETER_VALUE, f'database "{named}" cannot be merged into itself'
        )
    return pair


def open_bases(
    pair: Pair,
    found: Iterable[Base],
    listed: frozenset[TableId] | None,
    progress: Progress,
) -> list[Begin]:
    """Of a merge; that of the tables not merged apart from others last."""
    return [Begin(part, _open_base(pair, part.base, progress)) for part in divide(found, listed)]


def close_sides(begins: Iterable[Begin], *others: Reading) -> None:
    """Sessions of bases, and others."""
    sessions = [*(begin.base.session for begin in begins), *others]
    close_each([session.remote for session in sessions])


def _open_base(pair: Pair, base: Base | None, progress: Progress) -> Frozen:
    state, name = _base_of(pair, base)
    return Frozen(state, name, Reading(name, progress))


def _base_of(pair: Pair, base: Base | None) -> tuple[bases.State, str]:
    """(state, name of a database that has it): of the last merge, else of their common origin."""
    if base is not None:
        state = bases.State(base.snapshot, base.of)
        try:
            return state, bases.open_base(state)
        except plpy.SPIError as error:
            if error.sqlstate != NOTHING_IN_COMMON:
                raise
            # It is too old.  What both have had since is then compared as if both had made it.
    found = bases.merge_base(pair.source, pair.target)
    if found is None:
        raise ReportedError(
            NOTHING_IN_COMMON,
            f'databases "{pair.source}" and "{pair.target}" have no state in common',
            detail="Neither is a branch of the other, and they descend from no common one.",
        )
    return found, bases.open_base(found)


def advance_all_sequences(
    begins: Sequence[Begin], ours: Session, theirs: Session, *, listed: bool
) -> None:
    """``listed``: only those that the tables which are merged use."""
    if not listed:
        advance_sequences(begins[-1].base.session, ours, theirs, ("branch",))
        return
    for begin in begins:
        advance_sequences(begin.base.session, ours, theirs, ("branch",), begin.part.has)


def parse_name(name: str | list[str]) -> list[str]:
    """Schema and table, or the table alone; a list: of an array with more dimensions."""
    if isinstance(name, list):
        raise ReportedError(
            INVALID_PARAMETER_VALUE, 'argument "tables" must be a one-dimensional array'
        )
    rows = plpy.execute(plpy.prepare("SELECT parse_ident($1) AS p", ["text"]), [name])
    parts: list[str] = rows[0]["p"]
    return parts


def with_leaves(options: Options, databases: Sequence[str]) -> Options:
    """Partitioned tables replaced by their partitions; what is said of fewer of these counts.

    Raises ``ReportedError`` 42P01: none of the databases has such a table.
    """
    asked = sorted({*(options.tables or ()), *options.strategies})
    if not asked:
        return options
    found = _leaves(databases, asked)
    wide_first = sorted(options.strategies, key=lambda t: (t in found[t], -len(found[t])))
    strategies = {leaf: options.strategies[table] for table in wide_first for leaf in found[table]}
    tables = options.tables
    if tables is not None:
        tables = frozenset(leaf for table in tables for leaf in found[table])
    return replace(options, tables=tables, strategies=strategies)


def _leaves(databases: Sequence[str], asked: Sequence[TableId]) -> dict[TableId, set[TableId]]:
    """Each of the tables asked for, and those that have its rows in one of the databases: of a
    partitioned one its partitions, of another one itself."""
    found: dict[TableId, set[TableId]] = {}
    for database in databases:
        session = Reading(database)
        columns = [schema for schema, _ in asked], [name for _, name in asked]
        for n, schema, name in session.rows(Statement(_LISTED, columns)):
            those = found.setdefault(asked[int(n or 0) - 1], set())
            if schema is not None and name is not None:
                those.add((schema, name))
        session.close()
    for table in asked:
        if table not in found:
            places = " or ".join(f'"{database}"' for database in databases)
            raise ReportedError(
                UNDEFINED_TABLE,
                f"table {qualified(*table)} does not exist in database {places}",
                hint="Name tables with their schemas, if that is not public; views and foreign"
                " tables are not merged.",
            )
    return found

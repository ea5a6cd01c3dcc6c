"""How a merge is to be done, checked; no server here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError
from agent_branch.hints import Any
from agent_branch.jsontext import parsed
from agent_branch.merge import Decisions, Side, Strategy
from agent_branch.records import dataclass, field
from agent_branch.sqltext import Row
from agent_branch.tableorder import TableId
from agent_branch.threeway import SchemaMode

# A name as people write it -> (schema, name), or (name,).
Parse = Callable[[str], Sequence[str]]

STRATEGIES: tuple[Strategy, ...] = ("manual", "ours", "theirs")
SCHEMA_MODES: tuple[SchemaMode, ...] = ("stop", "ignore", "additive")


@dataclass(frozen=True, slots=True)
class Options:
    """``strategies``: of single tables; ``tables``: only these are merged; ``left_out``: rows that
    stay as the target has them."""

    strategy: Strategy = "manual"
    strategies: Mapping[TableId, Strategy] = field(default_factory=dict)
    fire_triggers: bool = True
    schema: SchemaMode = "stop"
    message: str | None = None
    tables: frozenset[TableId] | None = None
    decisions: Mapping[TableId, Decisions] = field(default_factory=dict)
    left_out: dict[TableId, set[Row]] = field(default_factory=dict)

    def strategy_of(self, table: TableId) -> Strategy:
        return self.strategies.get(table, self.strategy)

    def side_of(self, table: TableId, versions: int) -> Side | None:
        """Whom a conflict is decided for."""
        decided = self.decisions.get(table, Decisions()).side(versions)
        if decided is not None:
            return decided
        strategy = self.strategy_of(table)
        return None if strategy == "manual" else strategy

    def leave_out(self, table: TableId, key: Row) -> None:
        self.left_out.setdefault(table, set()).add(key)

    def recorded(self) -> dict[str, Any]:
        """What the row of the merge says about them."""
        said: dict[str, Any] = {}
        if self.strategies:
            said["strategies"] = [(*table, strategy) for table, strategy in self.strategies.items()]
        if not self.fire_triggers:
            said["fire_triggers"] = False
        if self.schema != "stop":
            said["schema"] = self.schema
        if self.tables is not None:
            said["tables"] = sorted(self.tables)
        return said


def not_null(name: str, value: object) -> None:
    if value is None:
        raise ReportedError(INVALID_PARAMETER_VALUE, f'argument "{name}" must not be null')


def _strategy(value: object) -> Strategy:
    for known in STRATEGIES:
        if value == known:
            return known
    raise ReportedError(
        INVALID_PARAMETER_VALUE,
        f'merge strategy "{value}" is not known',
        hint="There are: " + ", ".join(STRATEGIES) + ".",
    )


def _schema(value: str | None) -> SchemaMode:
    for known in SCHEMA_MODES:
        if value == known:
            return known
    raise ReportedError(
        INVALID_PARAMETER_VALUE,
        f'argument "schema" cannot be "{value}"',
        hint="There are: " + ", ".join(SCHEMA_MODES) + ".",
    )


def options(
    strategy: str | None,
    strategies: str | None,
    fire_triggers: bool | None,
    schema: str | None,
    message: str | None,
    parse: Parse,
    listed: Sequence[str | None] | None = None,
) -> Options:
    """From the arguments of branch.merge.  Raises ``ReportedError`` 22023.

    A table without its schema is one of schema public.  ``listed``: names of the only tables.
    """
    not_null("strategy", strategy)
    not_null("schema", schema)
    not_null("fire_triggers", fire_triggers)
    given = parsed(strategies or "{}")
    if not isinstance(given, dict):
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            'argument "strategies" must be a JSON object',
            detail="Its keys are names of tables, its values strategies.",
        )
    tables: dict[TableId, Strategy] = {}
    for name, value in given.items():
        tables[table_id(parse(name), name)] = _strategy(value)
    return Options(
        _strategy(strategy),
        tables,
        fire_triggers is not False,
        _schema(schema),
        message,
        None if listed is None else _listed(listed, schema, parse),
    )


def _listed(names: Sequence[str | None], schema: str | None, parse: Parse) -> frozenset[TableId]:
    if schema == "additive":
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            "argument \"tables\" does not go with schema => 'additive'",
            detail="Definitions can need others, of whatever is not listed.",
            hint="Merge all tables so, or have schema => 'ignore' leave definitions as they are.",
        )
    if not names or any(name is None for name in names):
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            'argument "tables" must not be empty or have nulls in it',
            hint="Without it, all tables are merged.",
        )
    return frozenset(table_id(parse(name), name) for name in names if name is not None)


def table_id(parts: Sequence[str], name: str) -> TableId:
    if len(parts) == 1:
        return "public", parts[0]
    if len(parts) == 2:
        return parts[0], parts[1]
    raise ReportedError(INVALID_PARAMETER_VALUE, f'"{name}" is not a name of a table')

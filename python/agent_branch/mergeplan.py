"""What a merge does with each table, before any row is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from agent_branch.diffplan import TableDiff, TableState, plan_diff
from agent_branch.hints import Literal
from agent_branch.newcolumns import added_alike, as_renamed, kind_of, renamed_alike
from agent_branch.records import dataclass, replace
from agent_branch.sqltext import TEXT, Value
from agent_branch.tableshape import (
    Column,
    TableShape,
    Unique,
    common_key,
    restricted,
    same_places,
    same_rows,
)
from agent_branch.widening import as_wide, widened

# nothing: the source has nothing to bring into it; rows: matched by key; counts: rows without a
# key; create: only the source has it; both: both have made it alike, with a key; conflict: the
# three are not the same kind of table.
Course = Literal["nothing", "rows", "counts", "create", "both", "conflict"]

UNLOGGED = "the table is unlogged in the source: its rows are in no snapshot"


@dataclass(frozen=True, slots=True)
class TablePlan:
    """``shape``: the target's table with the key that rows are matched by.

    ``theirs``: how the source is compared with the base; for the course "counts", its blocks are
    what is read of all three.  ``reason``: in a conflict, what differs; else why more is read
    than what changed, empty if not so.
    """

    course: Course
    shape: TableShape | None = None
    theirs: TableDiff | None = None
    reason: str = ""

    @property
    def pages_read(self) -> int:
        return self.theirs.pages_read if self.theirs else 0


def plan_table(
    base: TableState | None,
    ours: TableState | None,
    theirs: TableState | None,
    *,
    lenient: bool = False,
    added: Collection[str] = (),
    vetted: bool = False,
) -> TablePlan:
    """Plan the merge of one table, given its three versions; None where it does not exist.

    ``changed`` of ours and theirs counts from the base, whose own is empty.  A column that only
    ours has keeps what it has, or gets its default; one that both have added alike is merged as if
    the base had it; ``lenient``: tables and columns that only one
    of the two has are left as they are.  ``added``: columns that ours has got from theirs;
    ``vetted``: so are labels of enums, and nothing else about types differs.
    """
    if theirs is None:
        if base is None or ours is None or lenient:
            return TablePlan("nothing")
        return TablePlan("conflict", ours.shape, reason="the source has dropped the table")
    if base is None:
        if ours is None:
            return TablePlan("create", theirs.shape)
        return _made_by_both(ours, theirs)
    if not theirs.logged:
        # Its rows were not frozen, which does not mean that they were deleted.
        if lenient or not base.logged:
            return TablePlan("nothing", theirs.shape, reason=UNLOGGED)
        return TablePlan("conflict", theirs.shape, reason=UNLOGGED)
    aliases: tuple[tuple[str, str], ...] = ()
    if ours is not None:
        aliases = renamed_alike(base, ours, theirs)
        base = replace(base, shape=as_renamed(base.shape, aliases))
    if untouched(base, theirs) and not added:
        return TablePlan("nothing")
    if ours is None:
        if lenient:
            return TablePlan("nothing", theirs.shape, reason="the target has dropped the table")
        return TablePlan("conflict", theirs.shape, reason="the target has dropped the table")
    lacking = tuple(one for one in added_alike(base, ours, theirs) if one[0] not in added)
    named = {*added, *(name for name, _ in lacking)}
    different = _different_columns(base, ours, theirs, lenient, named, vetted)
    if different:
        return TablePlan("conflict", ours.shape, reason=different)
    called = None if base.shape.id == ours.shape.id else base.shape.id
    plan = _plan_rows(base, ours, theirs, lacking, added)
    if plan.theirs is None or (called is None and not aliases):
        return plan
    return replace(plan, theirs=replace(plan.theirs, aliases=aliases, called=called))


def _made_by_both(ours: TableState, theirs: TableState) -> TablePlan:
    """All rows are new on either side.  Without a key nothing tells which are the same."""
    shape = ours.shape
    kinds = ({c.name: kind_of(c) for c in one.shape.columns} for one in (ours, theirs))
    if theirs.logged and shape.key and common_key([shape, theirs.shape]) and not _differ(kinds):
        return TablePlan("both", shape, reason="both have made the table")
    return TablePlan("conflict", shape, reason="both have made a table of this name")


def _plan_rows(
    base: TableState,
    ours: TableState,
    theirs: TableState,
    lacking: tuple[tuple[str, Value], ...],
    added: Collection[str],
) -> TablePlan:
    key = common_key([ours.shape, theirs.shape, as_wide(base.shape, theirs.shape)])
    common = _common_columns(base, ours, theirs).union(name for name, _ in lacking)
    common -= set(added)
    shape = with_key(restricted(ours.shape, common), key)
    # A preview: the target has not got labels yet that values of the source have.
    shape = _readable(shape, theirs.shape)
    diff = plan_diff(base, theirs, _readable(shape, base.shape, theirs.shape))
    diff = replace(diff, lacking=lacking)
    if shape.key:
        return TablePlan("rows", shape, diff, reason=diff.reason)
    other = plan_diff(base, ours, shape)
    blocks = diff.blocks | other.blocks
    pages = sum(blocks.count(side.pages) for side in (base, ours, theirs))
    reason = diff.reason or other.reason
    if ours.shape.key or theirs.shape.key:
        reason = "the key was changed: rows are counted"
    return TablePlan("counts", shape, TableDiff(shape, blocks, reason, pages, lacking), reason)


def _readable(shape: TableShape, *sides: TableShape) -> TableShape:
    """Values of a type that is not the same on all sides are no values of one of them."""
    kinds = [{c.name: c.definition for c in side.columns} for side in (shape, *sides)]
    columns = tuple(
        column
        if all(kind.get(column.name) == column.definition for kind in kinds)
        else replace(column, type_name=TEXT, equals=None, definition="", exact=False)
        for column in shape.columns
    )
    return shape if columns == shape.columns else replace(shape, columns=columns)


def untouched(base: TableState, version: TableState) -> bool:
    """Is a version surely the same as its base, without reading it?

    Not if its columns are found elsewhere in the same rows: names that changed places, or one that
    was dropped and made again.
    """
    return (
        version.changed is not None
        and not version.changed
        and version.lineage is not None
        and version.lineage == base.lineage
        and version.pages == base.pages
        and same_rows(version.shape, base.shape)
        and same_places(version.shape, base.shape)
    )


def is_fast_forward(pairs: Iterable[tuple[TableState | None, TableState | None]]) -> bool:
    """Has the target nothing of its own, given each table's base and ours?

    The source then only has to be taken over.  False also where that cannot be told without
    reading rows; the result of a merge does not depend on it.
    """
    return all(
        base is ours or (base is not None and ours is not None and untouched(base, ours))
        for base, ours in pairs
    )


def _common_columns(*states: TableState) -> set[str]:
    named = [{column.name for column in state.shape.columns} for state in states]
    return set.intersection(*named)


def _different_columns(
    base: TableState,
    ours: TableState,
    theirs: TableState,
    lenient: bool,
    added: Collection[str],
    vetted: bool,
) -> str:
    sides = (("base", base.shape), ("target", ours.shape), ("source", theirs.shape))
    kinds = {
        side: {c.name: _kind(c, vetted=vetted) for c in shape.columns} for side, shape in sides
    }
    wider = widened(base.shape, theirs.shape)
    every = dict.fromkeys(name for columns in kinds.values() for name in columns)
    for name in every:
        if name in added:
            continue
        having = [side for side, columns in kinds.items() if name in columns]
        if having in (["target"], ["base"]):
            continue
        if lenient and ("target" not in having or "source" not in having):
            continue
        if name in wider and kinds["target"].get(name) == kinds["source"].get(name):
            continue
        if len({columns.get(name) for columns in kinds.values()}) > 1:
            facts = ", ".join(
                f"{side}: {columns[name][0] if name in columns else 'missing'}"
                for side, columns in kinds.items()
            )
            if len({columns.get(name, "")[:2] for columns in kinds.values()}) == 1:
                facts = f"{facts}; the type is not the same everywhere"
            return f'column "{name}" differs ({facts})'
    return ""


def _kind(column: Column, *, vetted: bool) -> tuple[str, bool, str]:
    type_name, generated, definition = kind_of(column)
    return type_name, generated, "" if vetted else definition


def _differ(kinds: Iterable[object]) -> bool:
    first, *others = kinds
    return any(other != first for other in others)


def with_key(shape: TableShape, names: tuple[str, ...]) -> TableShape:
    """A table whose rows are matched by other columns than its own key."""
    key = tuple(shape.position(name) for name in names)
    if key == shape.key:
        return shape
    uniques = tuple(one for one in shape.uniques if not one.exact or set(one.columns) != set(key))
    if shape.key:
        uniques += (Unique("the key", shape.key),)
    return replace(shape, key=key, uniques=uniques)

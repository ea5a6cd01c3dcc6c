"""The order in which tables are written, so that foreign keys hold at every step.

Rows are inserted into a table after those it points to, and deleted before them.  Where tables
point to each other in a circle (one that points to itself included) some foreign keys must not
count for a moment; the circle is broken, in this order of preference, by

1. foreign keys that can be deferred,
2. foreign keys with columns that can be null (*late* ones): rows are inserted with NULL there
   and updated when all rows are in; before rows are deleted, NULL is put there,
3. writing all rows of the circle in one statement, at whose end foreign keys are checked.
"""

from __future__ import annotations

from agent_branch.hints import Callable, Iterable, Mapping, Sequence
from agent_branch.records import dataclass, field
from agent_branch.tableshape import CASCADING, ForeignKey, TableShape, mask_of

TableId = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Group:
    """Tables that are written together; more than one only in a circle of the third kind.

    ``late``: for each table, mask of the columns that are written late.  ``at_once``: all rows
    of the group in one statement.
    """

    tables: tuple[TableShape, ...]
    late: Mapping[TableId, int] = field(default_factory=dict)
    at_once: bool = False


def late_columns(shape: TableShape, key: ForeignKey) -> int:
    """Mask of the columns to put NULL in so that the foreign key does not count; 0: none can.

    One NULL is enough, but MATCH FULL wants all of them to be.  Rows without a key cannot be
    found again to be written late.
    """
    if not shape.key:
        return 0
    nullable = [i for i in key.columns if not _fixed(shape, i)]
    if key.match_full:
        return mask_of(nullable) if len(nullable) == len(key.columns) else 0
    return mask_of(nullable[:1])


def _fixed(shape: TableShape, position: int) -> bool:
    column = shape.columns[position]
    return column.not_null or column.generated or position in shape.key


def order_tables(tables: Sequence[TableShape]) -> list[Group]:
    """Groups of tables, those that others point to first; deterministic.

    Foreign keys to tables that are not among them do not count.
    """
    known = {table.id: table for table in tables}

    def all_keys(table: TableShape) -> list[ForeignKey]:
        return [key for key in table.foreign_keys if key.target in known]

    def not_deferrable(table: TableShape) -> list[ForeignKey]:
        # What cascades does so at once, whether the check can be deferred or not.
        return [k for k in all_keys(table) if not k.deferrable or k.on_delete in CASCADING]

    groups: list[Group] = []
    for circle in _circles(known.values(), all_keys):
        inside = {table.id for table in circle}
        if len(circle) == 1 and not any(k.target in inside for k in all_keys(circle[0])):
            groups.append(Group(tuple(circle)))
        else:
            groups.extend(_break(circle, not_deferrable))
    return groups


def _break(
    circle: Sequence[TableShape], counts: Callable[[TableShape], list[ForeignKey]]
) -> list[Group]:
    """Groups for tables in a circle, given the foreign keys that cannot be deferred."""
    groups: list[Group] = []
    for part in _circles(circle, counts):
        inside = {table.id for table in part}
        keys = {t.id: [k for k in counts(t) if k.target in inside] for t in part}
        if not any(keys.values()):
            groups.append(Group(tuple(part)))
            continue
        late = {t.id: [k for k in keys[t.id] if late_columns(t, k)] for t in part}
        kept = {t.id: [k for k in keys[t.id] if k not in late[t.id]] for t in part}
        for rest in _circles(part, _keys_in(kept)):
            among = {table.id for table in rest}
            stuck = any(k.target in among for t in rest for k in kept[t.id])
            masks = {t.id: _mask(t, late[t.id]) for t in rest if late[t.id]}
            groups.append(Group(tuple(rest), masks, stuck))
    return groups


def _keys_in(kept: Mapping[TableId, list[ForeignKey]]) -> Callable[[TableShape], list[ForeignKey]]:
    return lambda table: kept[table.id]


def _mask(table: TableShape, keys: Iterable[ForeignKey]) -> int:
    mask = 0
    for key in keys:
        mask |= late_columns(table, key)
    return mask


def _circles(
    tables: Iterable[TableShape], keys: Callable[[TableShape], list[ForeignKey]]
) -> list[list[TableShape]]:
    """Strongly connected components, those that others point to first (Tarjan, 1972).

    Without recursion: a chain of foreign keys can be longer than Python's stack.
    """
    by_id = {table.id: table for table in sorted(tables, key=lambda table: table.id)}
    edges = {
        name: sorted({key.target for key in keys(table) if key.target in by_id})
        for name, table in by_id.items()
    }
    index: dict[TableId, int] = {}
    low: dict[TableId, int] = {}
    stack: list[TableId] = []
    waiting: set[TableId] = set()
    found: list[list[TableShape]] = []
    for root in by_id:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        while work:
            name, rest = work[-1]
            if name not in index:
                index[name] = low[name] = len(index)
                stack.append(name)
                waiting.add(name)
            step = next(rest, None)
            if step is None:
                work.pop()
                if work:
                    above = work[-1][0]
                    low[above] = min(low[above], low[name])
                if low[name] == index[name]:
                    circle = _pop(stack, name)
                    waiting.difference_update(circle)
                    found.append([by_id[member] for member in sorted(circle)])
            elif step not in index:
                work.append((step, iter(edges[step])))
            elif step in waiting:
                low[name] = min(low[name], index[step])
    return found


def _pop(stack: list[TableId], name: TableId) -> list[TableId]:
    circle: list[TableId] = []
    while not circle or circle[-1] != name:
        circle.append(stack.pop())
    return circle


def pointed_to(tables: Sequence[TableShape]) -> set[TableId]:
    """Tables that a foreign key of another one, or of their own, points to."""
    return {key.target for table in tables for key in table.foreign_keys}

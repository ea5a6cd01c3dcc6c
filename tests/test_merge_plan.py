"""Planning of diff and merge without a server, against plain models of it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from agent_branch import bags
from agent_branch.apply import plan_passes, statements
from agent_branch.blocks import ALL, NONE, Blocks, block_of
from agent_branch.claims import Claims, claims_of
from agent_branch.diffplan import TableState, plan_diff
from agent_branch.keptlines import from_line
from agent_branch.merge import (
    Action,
    Decisions,
    Delete,
    Insert,
    Recount,
    Strategy,
    TableMerge,
    Update,
    Versions,
    digest,
)
from agent_branch.mergeplan import is_fast_forward, plan_table, untouched
from agent_branch.revert import from_json, inverse, to_json
from agent_branch.rowqueries import mask_from
from agent_branch.sequences import SequenceState, advanced
from agent_branch.sqltext import (
    TEXT,
    Limits,
    Row,
    Statement,
    array_text,
    batches,
    parse_array,
    placeholder,
    quote_ident,
    quote_literal,
    together,
)
from agent_branch.tableorder import Group, TableId, order_tables
from agent_branch.tableshape import (
    Column,
    ForeignKey,
    TableShape,
    Unique,
    common_key,
    mask_of,
    positions,
)
from agent_branch.widening import widened
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

Test = Callable[..., None]


def examples(seed: int, count: int) -> Callable[[Test], Test]:
    def wrap(test: Test) -> Test:
        chosen = settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        return hypothesis_seed(seed)(chosen(test))

    return wrap


# ---- the three-way rule ----------------------------------------------------------------

WIDTH = 3
SHAPE = TableShape(
    "s", "t", tuple(Column(name, "citext") for name in ("k", "a", "b", "c")), key=(0,)
)
Table = dict[str, Row]

# Values as of a type whose equality is not that of its text.
values = st.sampled_from(["x", "X", "y", "Y", None])
tables = st.dictionaries(st.sampled_from("1234"), st.tuples(*[values] * WIDTH), max_size=4)


def same(one: str | None, other: str | None) -> bool:
    return (one and one.lower()) == (other and other.lower())


def mask(one: Row | None, other: Row | None) -> int:
    if one is None or other is None:
        return 0
    return mask_of(i for i in range(len(one)) if not same(one[i], other[i]))


def full(key: str, table: Table) -> Row | None:
    return (key, *table[key]) if key in table else None


def run(
    base: Table,
    ours: Table,
    theirs: Table,
    strategy: Strategy = "manual",
    decisions: Decisions | None = None,
) -> tuple[Table, list[Action], TableMerge]:
    """The target after the planner's actions, the actions, and its counts."""
    planned = TableMerge(SHAPE, strategy, decisions or Decisions())
    actions = []
    for key in sorted({*base, *ours, *theirs}):
        b, o, t = (full(key, table) for table in (base, ours, theirs))
        action, _ = planned.feed(Versions((key,), b, o, t, mask(b, t), mask(b, o), mask(o, t)))
        if action is not None:
            actions.append(action)
    return applied(ours, actions), actions, planned


def applied(table: Table, actions: list[Action]) -> Table:
    result = dict(table)
    for action in actions:
        key = str(action.key[0])
        match action:
            case Insert(row=row):
                assert key not in result
                result[key] = row[1:]
            case Delete(before=before):
                assert result.pop(key) == before[1:]
            case Update(columns=columns, before=before, after=after):
                assert result[key] == before[1:]
                assert columns & SHAPE.updatable == columns != 0
                assert all((before[i] == after[i]) or columns >> i & 1 for i in range(len(before)))
                result[key] = after[1:]
    return result


def equal(one: Table, other: Table) -> bool:
    return one.keys() == other.keys() and all(
        same(a, b) for key in one for a, b in zip(one[key], other[key], strict=True)
    )


def reference(base: Table, ours: Table, theirs: Table, side: str) -> tuple[Table, int]:
    """The three-way merge of tables as plain mappings, and how many rows are in conflict."""
    conflicts = 0
    result: Table = {}

    def alike(one: Row | None, other: Row | None) -> bool:
        if one is None or other is None:
            return one is other
        return all(map(same, one, other))

    for key in {*base, *ours, *theirs}:
        b, o, t = base.get(key), ours.get(key), theirs.get(key)
        chosen: Row | None
        if alike(o, t) or alike(b, t):
            chosen = o
        elif alike(o, b):
            chosen = t
        elif b is None or o is None or t is None:
            conflicts += 1
            chosen = o if side == "ours" else t
        else:
            row: list[str | None] = []
            torn = 0
            for x, y, z in zip(b, o, t, strict=True):
                if same(y, z) or same(x, z):
                    row.append(y)
                elif same(x, y):
                    row.append(z)
                else:
                    torn = 1
                    row.append(y if side == "ours" else z)
            conflicts += torn
            chosen = tuple(row)
        if chosen is not None:
            result[key] = chosen
    return result, conflicts


def test_rows_as_the_plain_merge(seed: int) -> None:
    """The planner gives what the plain merge gives, for either side."""

    @examples(seed, 2000)
    @given(tables, tables, tables, st.sampled_from(["ours", "theirs"]))
    def check(base: Table, ours: Table, theirs: Table, side: Strategy) -> None:
        result, actions, planned = run(base, ours, theirs, side)
        expected, conflicts = reference(base, ours, theirs, side)
        assert equal(result, expected)
        assert (planned.conflicts, planned.unresolved) == (conflicts, 0)
        assert planned.rows == len(actions)

        # What is decided for theirs here is decided for ours there.
        other: Strategy = "theirs" if side == "ours" else "ours"
        mirrored, _, _ = run(base, theirs, ours, other)
        assert equal(result, mirrored)

        # The source's state is the base from now on: merging again changes nothing, ...
        assert run(theirs, result, theirs)[1] == []
        # ... and once the target came back, both are the same.
        back, _, backwards = run(theirs, theirs, result)
        assert backwards.conflicts == 0
        assert equal(back, result)
        assert run(result, result, back)[1] == []

        if not conflicts:
            assert run(base, result, theirs)[1] == []
            assert run(base, ours, theirs, "manual")[1] == actions

        # Taking it back gives what was there, under any strategy, with no conflict.
        undone, again = dict(result), TableMerge(SHAPE)
        for action in actions:
            change = inverse(from_json(to_json(action)))
            row = full(str(change.key[0]), undone)
            old, new = change.before, change.after
            step, conflict = again.feed(
                Versions(change.key, old, row, new, change.changed, mask(old, row), mask(row, new))
            )
            assert conflict is None
            undone = applied(undone, [step] if step else [])
        assert equal(undone, ours)

    check()


def test_decisions(seed: int) -> None:
    """Undecided conflicts get no action; decided ones do, while nobody changes them again."""

    @examples(seed, 300)
    @given(tables, tables, tables, tables)
    def check(base: Table, ours: Table, theirs: Table, later: Table) -> None:
        result, actions, planned = run(base, ours, theirs)
        assert planned.unresolved == planned.conflicts
        touched = {str(action.key[0]) for action in actions}
        assert all(result.get(key) == ours.get(key) for key in ours if key not in touched)
        keys = {*base, *ours, *theirs}
        stale = {key for key in {*keys, *later} if later.get(key) != ours.get(key)}

        def only(table: Table, chosen: set[str]) -> Table:
            return {key: row for key, row in table.items() if key in chosen}

        for side in ("ours", "theirs"):
            decisions = Decisions()
            getattr(decisions, side).extend(
                sorted(
                    digest((key,), full(key, base), full(key, ours), full(key, theirs))
                    for key in keys
                )
            )
            decided, _, counts = run(base, ours, theirs, "manual", decisions)
            assert equal(decided, reference(base, ours, theirs, side)[0])
            assert counts.unresolved == 0
            for chosen in (stale, keys - stale):
                b, o, t = (only(table, chosen) for table in (base, later, theirs))
                _, _, counts = run(b, o, t, "manual", decisions)
                assert counts.unresolved == (counts.conflicts if chosen is stale else 0)

    check()


def test_every_kind_of_conflict() -> None:
    """What each kind shows, and what each side's decision does."""
    base: Table = {"1": ("x", "x", "x"), "2": ("x", "x", "x"), "3": ("x", "x", "x")}
    ours: Table = {"1": ("y", "x", "x"), "2": ("y", "x", "x"), "4": ("x", "x", "x")}
    theirs: Table = {"1": ("z", "x", "y"), "3": ("x", "x", "y"), "4": ("y", "x", "X")}
    planned = TableMerge(SHAPE)
    found = []
    for key in "1234":
        b, o, t = (full(key, table) for table in (base, ours, theirs))
        action, conflict = planned.feed(
            Versions((key,), b, o, t, mask(b, t), mask(b, o), mask(o, t))
        )
        assert action is None
        assert conflict is not None
        found.append((conflict.kind, conflict.columns, conflict.merged))
    assert found == [
        ("update_update", 0b0010, 0b1000),
        ("update_delete", 0, 0),
        ("delete_update", 0, 0),
        ("insert_insert", 0b0010, 0),
    ]
    assert run(base, ours, theirs, "ours")[0] == {**ours, "1": ("y", "x", "y")}
    assert run(base, ours, theirs, "theirs")[0] == {**theirs, "4": ("y", "x", "x")}


def test_counts_as_bags(seed: int) -> None:
    """Rows without a key: added copies of both sides stay, removed ones are the same."""
    bag = st.dictionaries(st.sampled_from("abc"), st.integers(1, 3))

    def lines(rows: dict[str, int]) -> Iterator[bags.Line]:
        return ((row, (row,), number) for row, number in sorted(rows.items()))

    @examples(seed, 300)
    @given(bag, bag, bag)
    def check(base: dict[str, int], ours: dict[str, int], theirs: dict[str, int]) -> None:
        b, o, t = Counter(base), Counter(ours), Counter(theirs)
        result = Counter(o)
        for action in bags.merge_counts(lines(base), lines(ours), lines(theirs)):
            result[str(action.key[0])] += action.copies
            assert from_json(to_json(action)) == action
        for row in "abc":
            added = max(o[row] - b[row], 0) + max(t[row] - b[row], 0)
            removed = max(b[row] - o[row], b[row] - t[row], 0)
            assert result[row] == b[row] + added - removed
        assert not list(bags.merge_counts(lines(theirs), lines(dict(+result)), lines(theirs)))
        difference = {
            str(c.key[0]): c.copies * (1 if c.kind == "added" else -1)
            for c in bags.changes(lines(base), lines(theirs))
        }
        assert difference == {r: t[r] - b[r] for r in "abc" if t[r] != b[r]}

    check()


def test_sequences_never_go_back() -> None:
    def state(last: int, called: bool = True, step: int = 1, cycles: bool = False) -> SequenceState:
        return SequenceState(last, called, step, cycles)

    assert advanced(state(1), state(5), state(7)) == state(7)
    assert advanced(state(1), state(7), state(5)) is None
    assert advanced(state(1), state(5, False), state(5)) == state(5)
    assert advanced(None, state(5), state(5)) is None
    assert advanced(state(-1, step=-1), state(-5, step=-1), state(-7, step=-1)) == state(
        -7, step=-1
    )
    # The step may be another one on the other side; the direction of ours counts.
    assert advanced(state(1), state(5, step=2), state(6, step=-1)) == state(6, step=2)
    # One that starts over has no larger value.
    used = state(9, cycles=True)
    assert advanced(used, used, state(2, cycles=True)) == state(2, cycles=True)
    assert advanced(used, state(1, cycles=True), state(2, cycles=True)) is None


# ---- what is read ----------------------------------------------------------------

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6)


def blocks_in(given: list[tuple[int, int]]) -> set[int]:
    return {block for start, end in given for block in range(start, end)}


def test_blocks_as_sets(seed: int) -> None:
    @examples(seed, 300)
    @given(ranges, ranges, st.integers(0, 50))
    def check(one: list[tuple[int, int]], other: list[tuple[int, int]], total: int) -> None:
        blocks, more = Blocks.of(one), Blocks.of(other)
        expected = blocks_in(one)
        assert {block for block in range(45) if block in blocks} == expected
        assert bool(blocks) == bool(expected)
        assert blocks.count(total) == len({block for block in expected if block < total})
        union = blocks | more
        assert union == Blocks.of([(b, b + 1) for b in expected | blocks_in(other)])
        assert union.ranges is not None
        assert all(a[1] < b[0] for a, b in zip(union.ranges, union.ranges[1:], strict=False))

    check()
    assert (ALL | NONE) == ALL
    assert 10**9 in ALL
    assert ALL.count(7) == 7
    assert block_of("(4294967294,12)") == 4294967294
    with pytest.raises(ValueError, match="block -1"):
        Blocks.of([(-1, 2)])


def test_what_is_read() -> None:
    """Changed pages of both sides, and what only the longer one has; all where files differ."""
    base = TableState(SHAPE, "f", NONE, 10)
    branch = TableState(SHAPE, "f", Blocks.of([(2, 4)]), 12)
    plan = plan_diff(base, branch)
    assert plan.blocks == Blocks.of([(2, 4), (10, 12)])
    assert (plan.pages_read, plan.reason) == (2 + 4, "")
    shorter = TableState(SHAPE, "f", Blocks.of([(9, 10)]), 5)
    assert plan_diff(shorter, branch).blocks == Blocks.of([(2, 4), (5, 12)])
    for other in (
        TableState(SHAPE, "g", Blocks.of([(2, 4)]), 12),
        TableState(SHAPE, "f", None, 12),
        TableState(SHAPE, None, NONE, 10),
    ):
        whole = plan_diff(base, other)
        assert whole.blocks == ALL
        assert whole.reason
        assert whole.pages_read == 10 + other.pages


def test_columns_in_common() -> None:
    """Columns are matched by name; one of another type by its text; keys as they are in both."""
    old = TableShape(
        "s",
        "t",
        (Column("id", "integer", not_null=True), Column("a", "integer"), Column("gone", "text")),
        key=(0,),
    )
    new = TableShape(
        "s",
        "t",
        (Column("new", "text"), Column("a", "bigint"), Column("id", "integer", not_null=True)),
        key=(2,),
    )
    shape = plan_diff(TableState(old), TableState(new)).shape
    assert [(c.name, c.type_name, c.equals is None) for c in shape.columns] == [
        ("a", "pg_catalog.text", True),
        ("id", "integer", False),
    ]
    assert shape.key == (1,)
    other = TableShape("s", "t", old.columns, key=(1,), other_keys=((0,),))
    assert common_key([old, other]) == ("id",)
    assert common_key([other, old]) == ("id",)
    assert common_key([TableShape("s", "t", old.columns, key=(1,)), old]) == ()


def test_courses() -> None:
    """What becomes of a table, seen from its three versions."""

    def version(
        lineage: str = "f", changed: Blocks | None = NONE, shape: TableShape = SHAPE
    ) -> TableState:
        return TableState(shape, lineage, changed, 10)

    base, edited = version(), version(changed=Blocks.of([(1, 2)]))
    assert plan_table(base, edited, version()).course == "nothing"
    assert plan_table(base, edited, None).course == "conflict"
    assert plan_table(None, edited, None).course == "nothing"
    assert plan_table(base, None, None).course == "nothing"
    assert plan_table(base, None, version()).course == "nothing"
    assert plan_table(base, None, edited).course == "conflict"
    assert plan_table(None, None, edited).course == "create"
    assert plan_table(None, edited, edited).course == "both"
    plan = plan_table(base, version(), edited)
    assert (plan.course, plan.pages_read, plan.reason) == ("rows", 2, "")
    plan = plan_table(base, edited, version("g"))
    assert (plan.course, plan.pages_read) == ("rows", 20)
    assert plan.reason

    wider = TableShape("s", "t", (*SHAPE.columns, Column("d", "text")), key=(0,))
    plan = plan_table(base, version(), version(changed=None, shape=wider))
    assert (plan.course, plan.reason) == (
        "conflict",
        'column "d" differs (base: missing, target: missing, source: text)',
    )
    keyless = TableShape("s", "t", SHAPE.columns)
    plan = plan_table(*(version(changed=Blocks.of([(i, i + 1)]), shape=keyless) for i in range(3)))
    assert plan.course == "counts"
    assert plan.theirs is not None
    assert plan.theirs.blocks == Blocks.of([(0, 3)])
    assert plan.pages_read == 9
    rekeyed = version(changed=None, shape=TableShape("s", "t", SHAPE.columns, key=(1,)))
    plan = plan_table(base, version(), rekeyed)
    assert (plan.course, "key" in plan.reason) == ("counts", True)
    assert plan.shape is not None
    assert not plan.shape.key
    assert [one.columns for one in plan.shape.uniques] == [(0,)]

    assert untouched(base, version())
    assert not untouched(base, edited)
    assert not untouched(base, version(changed=None))
    assert is_fast_forward([(base, version()), (None, None)])
    assert not is_fast_forward([(base, edited)])
    assert not is_fast_forward([(None, version())])
    assert not is_fast_forward([(base, None)])


# ---- the order of writing ----------------------------------------------------------------


def point(
    source: str, goal: str, *, null: bool = False, deferrable: bool = False, action: str = "a"
) -> tuple[str, str, bool, bool, str]:
    return source, goal, null, deferrable, action


def schema(edges: list[tuple[str, str, bool, bool, str]], names: str) -> list[TableShape]:
    shapes = []
    for name in names:
        mine = [edge for edge in edges if edge[0] == name]
        columns = [Column("id", "integer", not_null=True)]
        keys = []
        for i, (_, goal, null, deferrable, action) in enumerate(mine):
            columns.append(Column(f"f{i}", "integer", not_null=not null))
            keys.append(
                ForeignKey(
                    f"{name}{goal}{i}",
                    (i + 1,),
                    ("s", goal),
                    ("id",),
                    deferrable=deferrable,
                    on_delete=action,
                )
            )
        shapes.append(TableShape("s", name, tuple(columns), (0,), foreign_keys=tuple(keys)))
    return shapes


def brief(groups: list[Group]) -> list[tuple[str, dict[str, int], bool]]:
    return [
        (
            "".join(table.name for table in group.tables),
            {name: columns for (_, name), columns in group.late.items()},
            group.at_once,
        )
        for group in groups
    ]


def test_circles_are_broken_where_it_costs_least() -> None:
    def order(*edges: tuple[str, str, bool, bool, str]) -> list[tuple[str, dict[str, int], bool]]:
        return brief(order_tables(schema(list(edges), "abc")))

    plain: dict[str, int] = {}
    # In a row.
    assert order(point("a", "b"), point("b", "c")) == [
        ("c", plain, False),
        ("b", plain, False),
        ("a", plain, False),
    ]
    # By a foreign key that can be deferred, unless deleting cascades.
    ring = [point("a", "b"), point("b", "a", deferrable=True)]
    assert order(*ring) == [("b", plain, False), ("a", plain, False), ("c", plain, False)]
    ring = [point("a", "b"), point("b", "a", deferrable=True, null=True, action="c")]
    assert order(*ring) == [("b", {"b": 2}, False), ("a", plain, False), ("c", plain, False)]
    # By a column that can be null.
    ring = [point("a", "b", null=True), point("b", "a")]
    assert order(*ring) == [("a", {"a": 2}, False), ("b", plain, False), ("c", plain, False)]
    # By one statement.
    ring = [point("a", "b"), point("b", "a"), point("c", "a")]
    assert order(*ring) == [("ab", plain, True), ("c", plain, False)]
    assert order(point("c", "c")) == [("a", plain, False), ("b", plain, False), ("c", plain, True)]


def test_order_of_any_schema(seed: int) -> None:
    """Every table once; what counts at once points to earlier groups, or is one statement."""
    letters = "abcdefg"
    edge = st.tuples(
        st.sampled_from(letters),
        st.sampled_from(letters),
        st.booleans(),
        st.booleans(),
        st.sampled_from("acn"),
    )

    @examples(seed, 300)
    @given(st.lists(edge, max_size=14), st.randoms(use_true_random=False))
    def check(edges: list[tuple[str, str, bool, bool, str]], rng: random.Random) -> None:
        shapes = schema(edges, letters)
        groups = order_tables(shapes)
        place = {table.id: i for i, group in enumerate(groups) for table in group.tables}
        assert sorted(place) == sorted(shape.id for shape in shapes)
        assert sum(len(group.tables) for group in groups) == len(shapes)
        for group in groups:
            assert group.at_once or len(group.tables) == 1
            for table in group.tables:
                late = group.late.get(table.id, 0)
                assert not any(table.columns[i].not_null for i in positions(late))
                for key in table.foreign_keys:
                    if key.deferrable and key.on_delete == "a":
                        continue
                    earlier = place[key.target] < place[table.id]
                    beside = place[key.target] == place[table.id] and group.at_once
                    assert earlier or beside or late & mask_of(key.columns)
        shuffled = list(shapes)
        rng.shuffle(shuffled)
        assert brief(order_tables(shuffled)) == brief(groups)

    check()
    # A chain longer than Python's stack.
    long = [
        TableShape(
            "s",
            f"t{i:05}",
            (Column("id", "integer"), Column("f", "integer", not_null=True)),
            (0,),
            foreign_keys=(ForeignKey("f", (1,), ("s", f"t{i + 1:05}"), ("id",)),),
        )
        for i in range(3000)
    ]
    assert [group.tables[0].name for group in order_tables(long)][:2] == ["t02999", "t02998"]


def test_who_gives_up_a_value() -> None:
    """Only rows whose value another row takes; by null if that may be, else by a value."""
    columns = (
        Column("id", "integer", not_null=True),
        Column("a", "pg_catalog.text"),
        Column("b", "integer", not_null=True),
        Column("c", "boolean", not_null=True),
    )
    one, two, three = Unique("a", (1,)), Unique("b", (2,)), Unique("c", (3,))
    shape = TableShape("s", "t", columns, (0,), uniques=(one, two, three))

    def update(key: str, before: Row, after: Row) -> Update:
        return Update((key,), mask_of(i for i in (1, 2, 3) if before[i] != after[i]), before, after)

    swap: list[Action] = [
        update("1", ("1", "x", "1", "t"), ("1", "y", "2", "f")),
        update("2", ("2", "y", "2", "f"), ("2", "x", "1", "t")),
        update("3", ("3", "z", "3", "t"), ("3", "w", "3", "t")),
        Insert(("4",), ("4", None, "9", "t")),
        Delete(("5",), ("5", "v", "9", "t")),
    ]
    claims = claims_of(shape, [shape])
    for action in swap:
        for claim in claims:
            claim.feed(action)
    ways = [[claim.vacate(action) for action in swap] for claim in claims]
    assert ways[0] == [(1, "null"), (1, "null"), None, None, None]
    # The deleted row goes first, nothing points to it.
    assert ways[1] == [(2, "value"), (2, "value"), None, None, None]
    assert ways[2] == [None, None, None, None, None]  # no boolean is free

    # A table that others point to is deleted from last.
    child = TableShape(
        "s",
        "child",
        (columns[0],),
        (0,),
        foreign_keys=(ForeignKey("f", (0,), ("s", "t"), ("id",)),),
    )
    late = claims_of(shape, [shape, child])[1]
    for action in swap:
        late.feed(action)
    assert late.vacate(swap[4]) == (2, "value")

    # Too many to remember: everybody gives up their place.
    crowded = Claims(shape, one, limit=1)
    for action in swap[:3]:
        crowded.feed(action)
    assert crowded.needed
    assert crowded.vacate(swap[2]) == (1, "null")
    # Constraints that can be deferred need nothing.
    deferred = TableShape("s", "t", columns, (0,), uniques=(Unique("a", (1,), deferrable=True),))
    assert claims_of(deferred, [deferred]) == []


def test_batches_of_a_pass() -> None:
    """Batches keep to their limits; all rows of a circle are in one statement."""
    circle = schema([point("a", "b"), point("b", "a"), point("c", "a")], "abc")
    actions: dict[TableId, list[Action]] = {
        ("s", name): [Insert((str(i),), tuple(str(i) for _ in shape.columns)) for i in range(10)]
        for name, shape in zip("abc", circle, strict=True)
    }
    found = [
        (one.kind, part.shape.name, statement.rows, statement.answers)
        for one in plan_passes(circle, circle)
        for part, statement in statements(one, actions.__getitem__, Limits(rows=4))
    ]
    assert found == [
        ("insert", "a", 20, True),
        ("insert", "c", 4, False),
        ("insert", "c", 4, False),
        ("insert", "c", 2, False),
    ]
    sizes = [
        [len(item) for item in batch]
        for batch in batches(["a" * 5] * 5 + ["b" * 50], Limits(3, 12), len)
    ]
    assert sizes == [[5, 5], [5, 5], [5], [50]]


# ---- text ----------------------------------------------------------------

texts = st.text(
    st.one_of(st.sampled_from("\"\\'{},$ \n\tNUL1"), st.characters(exclude_characters="\0")),
    max_size=8,
)


def test_text_of_arrays(seed: int) -> None:
    @examples(seed, 300)
    @given(st.lists(st.none() | texts))
    def check(items: list[str | None]) -> None:
        assert parse_array(array_text(items)) == tuple(items)

    check()
    # As the server writes them: quotes only where they are needed.
    assert parse_array('{t,f,NULL,"NULL",a b,"",x\\"y}') == (
        "t", "f", None, "NULL", "a b", "", 'x\\"y',
    )  # fmt: skip
    assert mask_from("{f,t,t}") == 0b110
    for bad in ("", "{", "{a", "a}", "{a}}", "{{a}}", "{a,}", "[0:1]={a,b}", "{a}x"):
        with pytest.raises(ValueError, match="not the text of an array"):
            parse_array(bad)


def test_text_of_statements(seed: int) -> None:
    """Parameters stand where they belong, whatever the names and values look like."""

    @examples(seed, 300)
    @given(texts.filter(bool), st.lists(st.none() | texts, max_size=3))
    def check(name: str, items: list[str | None]) -> None:
        ident = quote_ident(name)
        assert ident[1:-1].replace('""', '"') == name
        one = Statement(f"DELETE FROM {ident} WHERE a = ANY ({placeholder(1)})", (items,), 1)
        assert one.sql == f"DELETE FROM {ident} WHERE a = ANY ($1::pg_catalog.text[])"
        assert one.inline().startswith(f"DELETE FROM {ident} WHERE a = ANY (")
        assert quote_literal(array_text(items)) in one.inline()
        both = together([one, one])
        assert both.sql.count("$1::") == both.sql.count("$2::") == 1 + name.count("$1::")
        assert both.parameters == (items, items)
        assert both.rows == 2

    check()
    assert quote_literal("a'b") == "'a''b'"
    assert quote_literal("a\\'b") == " E'a\\\\''b'"
    for name in ("", "a\0b"):
        with pytest.raises(ValueError, match="not a name"):
            quote_ident(name)
    with pytest.raises(ValueError, match="NUL"):
        quote_literal("\0")


def test_kept_actions(seed: int) -> None:
    row = st.lists(st.none() | texts).map(tuple)

    @examples(seed, 200)
    @given(
        st.one_of(
            st.builds(Insert, row, row),
            st.builds(Delete, row, row),
            st.builds(Update, row, st.integers(1), row, row),
            st.builds(Recount, row, st.integers()),
        )
    )
    def check(action: Action) -> None:
        text = to_json(action)
        assert "\n" not in text
        assert from_line(text) == from_json(text) == action

    check()
    for bad in ("[]", '["insert"]', '["insert", 1, []]', '["delete", [], [1]]', "1"):
        with pytest.raises(ValueError, match="not a"):
            from_line(bad)
    for bad in ("", "i", "i\t0\t0", "x\t0\t0\t0", "u\ta\t1\t1\t1", "d\t0\t0\tone\t1"):
        with pytest.raises(ValueError, match="not an action"):
            from_line(bad)


@pytest.mark.parametrize(
    ("before", "after", "wider"),
    [
        ("smallint", "bigint", True),
        ("integer", "numeric", True),
        ("bigint", "integer", False),
        ("bigint", "double precision", False),
        ("numeric", "numeric(6,2)", False),
        ("character varying(5)", "character varying(9)", True),
        ("character varying(5)", "character varying(5)", False),
        ("character varying(5)", "character varying", True),
        ("character varying(5)", TEXT, True),
        ("character varying(5)[]", "character varying(9)[]", False),
        ("character varying(5)", "integer", False),
        ("character varying", TEXT, False),
        ("numeric(6,2)", "numeric(8,2)", True),
        ("numeric(6,2)", "numeric(8,3)", False),
        ("numeric(8,2)", "numeric(6,2)", False),
        ("numeric(8,2)", "numeric(8,2)", False),
    ],
)
def test_wider_types(before: str, after: str, wider: bool) -> None:
    """Of which each value is one of the other by its text."""
    one, other = (TableShape("public", "t", (Column("c", name),)) for name in (before, after))
    assert widened(one, other) == ({"c"} if wider else set())

"""How two versions of a table are compared: which pages are read, and what of a row.

Files of a branch start as those of its parent, so what neither side has changed need not be
read.  Where a side's files were rewritten, or cannot tell, both are read whole.
"""

from __future__ import annotations

from agent_branch.blocks import ALL, Blocks
from agent_branch.records import dataclass, replace
from agent_branch.sqltext import Value
from agent_branch.tableshape import Column, TableShape, common_key


@dataclass(frozen=True, slots=True)
class TableState:
    """One side of a comparison.

    ``lineage``: same for two sides if they have the same file, or copies of one file that
    differ in the changed pages only.  ``changed``: pages changed since the two parted; None
    if that cannot be told.  ``pages``: size, in blocks.  ``logged``: if not, a frozen one is empty.
    ``oid``: the same for versions of one table, whatever it is called; 0: not known.
    """

    shape: TableShape
    lineage: object = None
    changed: Blocks | None = None
    pages: int = 0
    logged: bool = True
    oid: int = 0


@dataclass(frozen=True, slots=True)
class TableDiff:
    """How two versions of a table are compared.

    ``shape``: what is compared, which is the columns that both have, under the names of both;
    its key is what rows are matched by, empty if they can only be counted.  ``blocks``: what is
    read on either side.  ``reason``: why they are read whole, empty if they are not.  ``lacking``:
    columns of ``shape`` that the version before has not got, as TableShape has them, like
    ``aliases``.  ``called``: schema and name of the version before, if they are others.
    """

    shape: TableShape
    blocks: Blocks
    reason: str
    pages_read: int
    lacking: tuple[tuple[str, Value], ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    called: tuple[str, str] | None = None

    @property
    def alike(self) -> bool:
        """Is the version before read as the other one is?"""
        return not self.lacking and not self.aliases and self.called is None

    @property
    def before(self) -> TableShape:
        """``shape`` as the version before is read."""
        if self.alike:
            return self.shape
        schema, name = self.called or self.shape.id
        return replace(
            self.shape, schema=schema, name=name, lacking=self.lacking, aliases=self.aliases
        )

    @property
    def counted(self) -> bool:
        return not self.shape.key


def plan_diff(before: TableState, after: TableState, shape: TableShape | None = None) -> TableDiff:
    """Plan the comparison of two versions of a table.

    Columns are matched by name; one whose type differs is compared by its text.  ``shape``:
    to be compared by this one, the columns and the key of which both have.
    """
    blocks, reason = _blocks_to_read(before, after)
    if not blocks.whole:
        reason = _other_values(before.shape, after.shape)
        blocks = ALL if reason else blocks
    return TableDiff(
        shape or common_shape(before.shape, after.shape),
        blocks,
        reason,
        blocks.count(before.pages) + blocks.count(after.pages),
    )


def _blocks_to_read(before: TableState, after: TableState) -> tuple[Blocks, str]:
    if before.lineage != after.lineage:
        return ALL, "the table was rewritten"
    if before.changed is None or after.changed is None or before.lineage is None:
        return ALL, "it is not known which pages changed"
    # Beyond the end of the shorter one, whatever the list of changed pages says.
    low, high = sorted((before.pages, after.pages))
    return before.changed | after.changed | Blocks.of([(low, high)]), ""


def _other_values(before: TableShape, after: TableShape) -> str:
    """Why rows of the same bytes may be other rows; empty: they are not."""
    theirs = {column.name: column for column in before.columns}
    for column in after.columns:
        other = theirs.get(column.name, column)
        if (column.type_name, column.definition) != (other.type_name, other.definition):
            return f'the type of column "{column.name}" is another'
        if column.stored != other.stored:
            what = " or a label of its type" if column.definition else ""
            return f'column "{column.name}"{what} was made again'
    return ""


def common_shape(before: TableShape, after: TableShape) -> TableShape:
    """The columns that two versions of a table share, in the order of ``after``."""
    theirs = {column.name: column for column in before.columns}
    columns = tuple(
        _common_column(theirs[column.name], column)
        for column in after.columns
        if column.name in theirs
    )
    shape = TableShape(after.schema, after.name, columns)
    key = tuple(shape.position(name) for name in common_key([after, before]))
    return TableShape(after.schema, after.name, columns, key)


def _common_column(one: Column, other: Column) -> Column:
    same_type = (one.type_name, one.definition) == (other.type_name, other.definition)
    return Column(
        other.name,
        other.type_name if same_type else "pg_catalog.text",
        other.equals if same_type else None,
        not_null=one.not_null and other.not_null,
        generated=one.generated or other.generated,
        identity=other.identity,
        definition=other.definition if same_type else "",
        exact=same_type and one.exact and other.exact,
        number=other.number if one.number == other.number else 0,
        bytes=one.bytes if same_type and one.bytes == other.bytes else "u",
    )

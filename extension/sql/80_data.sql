-- Rows of branches: what differs.

CREATE FUNCTION branch._changed_blocks(
    a oid,
    a_spaces oid[],
    a_files oid[],
    b oid,
    b_spaces oid[],
    b_files oid[],
    OUT n integer,
    OUT a_blocks bigint,
    OUT b_blocks bigint,
    OUT blocks bytea
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_changed_blocks';

COMMENT ON FUNCTION branch._changed_blocks(oid, oid[], oid[], oid, oid[], oid[])
IS 'sizes of tables, given by their files, in two databases, and ranges of blocks that may differ; null: not known';

CREATE FUNCTION branch._changed_rows(
    a oid,
    a_space oid,
    a_file oid,
    b oid,
    b_space oid,
    b_file oid,
    blocks bytea,
    a_session integer,
    b_session integer,
    OUT a_rows text,
    OUT b_rows text
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'ab_sql_changed_rows';

COMMENT ON FUNCTION branch._changed_rows(oid, oid, oid, oid, oid, oid, bytea, integer, integer)
IS 'places of row versions, in some blocks of tables with one origin, that only one has; texts of tid[], in parts';

CREATE FUNCTION branch._changed_counts(
    a oid,
    a_space oid,
    a_file oid,
    b oid,
    b_space oid,
    b_file oid,
    blocks bytea,
    a_session integer,
    b_session integer,
    lengths smallint[],
    alignments text,
    kinds text,
    rows_before bigint,
    told_with text,
    OUT a_rows text,
    OUT b_rows text,
    OUT added bigint,
    OUT modified bigint,
    OUT removed bigint,
    OUT rows_read bigint
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'ab_sql_changed_counts';

COMMENT ON FUNCTION branch._changed_counts(
    oid, oid, oid, oid, oid, oid, bytea, integer, integer, smallint[], text, text, bigint, text
) IS 'numbers of rows, in some blocks of tables with one origin, that differ; and places of those yet to be compared';

CREATE FUNCTION branch._changed_pairs(
    a oid,
    a_space oid,
    a_file oid,
    b oid,
    b_space oid,
    b_file oid,
    blocks bytea,
    a_session integer,
    b_session integer,
    lengths smallint[],
    alignments text,
    kinds text,
    rows_before bigint,
    told_with text,
    OUT a_rows text,
    OUT b_rows text,
    OUT columns bigint
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'ab_sql_changed_pairs';

COMMENT ON FUNCTION branch._changed_pairs(
    oid, oid, oid, oid, oid, oid, bytea, integer, integer, smallint[], text, text, bigint, text
) IS 'places of rows, in some blocks of tables with one origin, that differ, in pairs with the columns that do';

CREATE FUNCTION branch._rows_apart(
    a oid,
    a_space oid,
    a_file oid,
    b oid,
    b_space oid,
    b_file oid,
    blocks bytea,
    a_session integer,
    b_session integer,
    a_rows text,
    others text,
    OUT same text,
    OUT same_others text,
    OUT apart text,
    OUT apart_others text
) RETURNS record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_rows_apart';

COMMENT ON FUNCTION branch._rows_apart(oid, oid, oid, oid, oid, oid, bytea, integer, integer, text, text)
IS 'which places of rows of a table another one of the same origin shares, and which not; each with another place';

CREATE FUNCTION branch._sides_ahead(source text, target text, at text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_sides_ahead';

COMMENT ON FUNCTION branch._sides_ahead(text, text, text)
IS 'begins to connect to the two databases that are compared next in this transaction, if it is clear which they are';

CREATE FUNCTION branch._diff_summary(
    source text,
    target text,
    at text,
    ahead boolean, -- noqa: RF04
    OUT table_name text,
    OUT data_change boolean,
    OUT schema_change boolean,
    OUT rows_added bigint,
    OUT rows_modified bigint,
    OUT rows_deleted bigint,
    OUT pages_read bigint,
    OUT note text
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import data
return data.diff_summary(source, target, at)
$$;

COMMENT ON FUNCTION branch._diff_summary(text, text, text, boolean)
IS 'branch.diff_summary, with sessions that connect already, or not';

-- Arguments come before the server loads PL/Python: sessions connect meanwhile.
CREATE FUNCTION branch.diff_summary(
    source text,
    target text DEFAULT null,
    at text DEFAULT null,
    OUT table_name text,
    OUT data_change boolean,
    OUT schema_change boolean,
    OUT rows_added bigint,
    OUT rows_modified bigint,
    OUT rows_deleted bigint,
    OUT pages_read bigint,
    OUT note text
) RETURNS SETOF record
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT d.* FROM branch._diff_summary($1, $2, $3, branch._sides_ahead($1, $2, $3)) AS d;
$$;

COMMENT ON FUNCTION branch.diff_summary(text, text, text)
IS 'tables of source that differ from target (its parent), and how many rows; at: a state of it, or ''base'' (common)';

CREATE FUNCTION branch.diff(
    source text,
    target text,
    table_name text,
    at text DEFAULT null,
    OUT from_row jsonb,
    OUT to_row jsonb,
    OUT diff_type text
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import data
return data.diff(source, target, table_name, at)
$$;

COMMENT ON FUNCTION branch.diff(text, text, text, text)
IS 'rows of a table that source has other than target (null: its parent); at: a state of it, ''base'': the common one';

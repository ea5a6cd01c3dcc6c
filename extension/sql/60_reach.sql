-- Reaching other databases, with the rights of whoever calls: a background worker connects there
-- as the current role. What is run there is not undone by ROLLBACK here.

CREATE FUNCTION branch._remote_open(
    db text,
    read_only boolean DEFAULT null,
    isolation text DEFAULT null
) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_open';

COMMENT ON FUNCTION branch._remote_open(text, boolean, text)
IS 'opens a session in another database, one transaction there, that ends with the transaction here; its number';

CREATE FUNCTION branch._remote_open_book(isolation text) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_open_book';

COMMENT ON FUNCTION branch._remote_open_book(text)
IS 'the same here, to write a merge down; for functions that merge';

CREATE FUNCTION branch._remote_open_target(db text) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_open_target';

COMMENT ON FUNCTION branch._remote_open_target(text)
IS 'the same to write what is merged, one at a time; for functions that merge';

CREATE FUNCTION branch._remote_run(
    session integer,
    statements text,
    savepoint boolean DEFAULT false
) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_run';

COMMENT ON FUNCTION branch._remote_run(integer, text, boolean)
IS 'runs statements: tag of the last one, or null if there are rows to fetch; savepoint: errors undo only these';

CREATE FUNCTION branch._remote_columns(
    session integer,
    OUT name text,
    OUT type oid,
    OUT typmod integer
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_columns';

COMMENT ON FUNCTION branch._remote_columns(integer) IS 'columns of the rows to fetch';

CREATE FUNCTION branch._remote_fetch(session integer, max_rows integer) RETURNS SETOF text[]
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_fetch';

COMMENT ON FUNCTION branch._remote_fetch(integer, integer)
IS 'the next rows, values as text; fewer than asked for: these were the last';

CREATE FUNCTION branch._remote_query(session integer, query text) RETURNS SETOF text[]
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'ab_sql_remote_query';

COMMENT ON FUNCTION branch._remote_query(integer, text)
IS 'runs a query in a session; its rows, all of them';

CREATE FUNCTION branch._remote_send_each(sessions integer[], queries text[]) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_send_each';

COMMENT ON FUNCTION branch._remote_send_each(integer[], text[])
IS 'has a query run in each session, side by side, and does not wait for them';

CREATE FUNCTION branch._remote_rows_each(
    sessions integer[],
    OUT n integer,
    OUT r text[]
) RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'ab_sql_remote_rows_each';

COMMENT ON FUNCTION branch._remote_rows_each(integer[])
IS 'what the queries sent last to some sessions give: numbers of sessions in the list, and rows';

CREATE FUNCTION branch._remote_copy(
    session integer,
    query text,
    target integer,
    temporary_table text
) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_copy';

COMMENT ON FUNCTION branch._remote_copy(integer, text, integer, text)
IS 'puts the rows of a query in one session into a temporary table of another; how many';

CREATE FUNCTION branch._remote_gather(
    session integer,
    query text,
    target integer,
    head text,
    first bigint,
    OUT lines bigint,
    OUT next bigint
) RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_gather';

COMMENT ON FUNCTION branch._remote_gather(integer, text, integer, text, bigint)
IS 'has rows of a query in one session, as lines of COPY, kept by INSERTs in another, many by each';

CREATE FUNCTION branch._remote_commit(session integer) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_commit';

COMMENT ON FUNCTION branch._remote_commit(integer) IS 'commits there, and closes the session';

CREATE FUNCTION branch._remote_save(session integer) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_save';

COMMENT ON FUNCTION branch._remote_save(integer) IS 'commits there, and goes on in another transaction';

CREATE FUNCTION branch._remote_close(VARIADIC sessions integer[]) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_close';

COMMENT ON FUNCTION branch._remote_close(integer[]) IS 'closes sessions; what they have not committed is rolled back';

CREATE FUNCTION branch._remote_rows(db text, query text) RETURNS SETOF text[]
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_remote_rows';

COMMENT ON FUNCTION branch._remote_rows(text, text)
IS 'rows of a query in another database, read only and of one moment, values as text';

CREATE FUNCTION branch.run_on_all(
    sql text, -- noqa: RF04
    where_labels jsonb DEFAULT null,
    parallel integer DEFAULT 4,
    dry_run boolean DEFAULT false,
    max_rows integer DEFAULT 100,
    OUT name text,
    OUT ok boolean,
    OUT command text,
    OUT rows_affected bigint,
    OUT result jsonb,
    OUT sqlstate text,
    OUT message text,
    OUT detail text,
    OUT hint text,
    OUT duration interval
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_run_on_all';

COMMENT ON FUNCTION branch.run_on_all(text, jsonb, integer, boolean, integer)
IS 'runs statements in each branch that the caller may connect to, one transaction each; dry_run: only says which';

CREATE FUNCTION branch.side_effects(
    name text,
    OUT kind text,
    OUT object text,
    OUT detail text,
    OUT active boolean
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import reach
return reach.side_effects(name)
$$;

COMMENT ON FUNCTION branch.side_effects(text)
IS 'what in a branch (or any database) could act on the world outside it; active: it does so by itself';

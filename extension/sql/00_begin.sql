-- agent_branch 0.1: what CREATE EXTENSION agent_branch makes.
--
-- Schema branch holds everything but the agents' functions, which stand in the schema of
-- CREATE EXTENSION (public by default).  Names that begin with an underscore are for the
-- extension itself.  Functions in C schema-qualify what they use; all others fix search_path.

\echo Use "CREATE EXTENSION agent_branch" to load this file. \quit

CREATE SCHEMA branch;

COMMENT ON SCHEMA branch IS 'copy-on-write branches of databases (agent_branch)';

CREATE FUNCTION branch._check_installable() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_check_installable';

COMMENT ON FUNCTION branch._check_installable()
IS 'raises an error unless the library is preloaded and this is the control database';

SELECT branch._check_installable();

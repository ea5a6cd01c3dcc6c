-- The language of the functions that are written in Python: PL/Python, but their errors begin with
-- what is wrong, not with the name of an exception. It is for the functions of this extension.

CREATE FUNCTION branch._python_handler() RETURNS language_handler
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_python_handler';

COMMENT ON FUNCTION branch._python_handler() IS 'calls functions in language agent_branch_python';

CREATE LANGUAGE agent_branch_python HANDLER branch._python_handler VALIDATOR pg_catalog.plpython3_validator; -- noqa: PRS

COMMENT ON LANGUAGE agent_branch_python
IS 'PL/Python for the functions of agent_branch: messages without names of exceptions';

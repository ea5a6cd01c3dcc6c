-- A branch that is to stand on its own.

CREATE FUNCTION branch.detach(name text, force boolean DEFAULT false) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_detach';

COMMENT ON FUNCTION branch.detach(text, boolean)
IS 'copies the inherited pages of a branch: a plain database with no parent; force ends the sessions in it';

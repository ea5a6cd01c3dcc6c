-- Objects of branches: what differs.

CREATE FUNCTION branch.schema_diff(
    source text,
    target text DEFAULT null,
    at text DEFAULT null,
    OUT object_type text,
    OUT object_name text,
    OUT diff_type text,
    OUT from_definition text,
    OUT to_definition text
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import data
return data.schema_diff(source, target, at)
$$;

COMMENT ON FUNCTION branch.schema_diff(text, text, text)
IS 'tables, columns, functions, grants and so on that source has other than target (its parent), with both definitions';

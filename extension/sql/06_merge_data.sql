-- Data of branches by the agents' names: in the schema that CREATE EXTENSION names, with the
-- caller's rights.

CREATE FUNCTION sync_branch_data(p_source_branch text, p_target_branch text) RETURNS bigint
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import merging
return merging.sync_branch_data(p_source_branch, p_target_branch)
$$;

COMMENT ON FUNCTION sync_branch_data(text, text)
IS 'brings the changes of source into target and keeps target''s own where both changed the same; how many rows';

CREATE FUNCTION merge_branch_data(
    p_source_branch text,
    p_target_branch text,
    OUT merge_id bigint,
    OUT fast_forward boolean,
    OUT rows_applied bigint,
    OUT conflicts bigint,
    OUT message text
) RETURNS record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import merging
return merging.merge(p_source_branch, p_target_branch, 'manual', None, None, True, 'stop', False)
$$;

COMMENT ON FUNCTION merge_branch_data(text, text) IS 'the same as branch.merge(source, target)';

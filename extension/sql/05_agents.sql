-- The agents' functions: they go into the schema that CREATE EXTENSION names. They run with the
-- caller's rights, which the functions in C that they come down to check.

CREATE FUNCTION create_agent_branch(
    p_agent_id text,
    p_parent_branch text DEFAULT 'main',
    p_password text DEFAULT null
) RETURNS TABLE (branch_name text, connection_string text)
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.create_agent_branches([p_agent_id], p_parent_branch, [p_password])
$$;

COMMENT ON FUNCTION create_agent_branch(text, text, text)
IS 'branch agent_<id> of an agent, with table agent_data; the same one when it is there already';

CREATE FUNCTION create_agent_branches(
    p_agent_ids text[],
    p_parent_branch text DEFAULT 'main',
    p_passwords text[] DEFAULT null
) RETURNS TABLE (branch_name text, connection_string text)
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.create_agent_branches(p_agent_ids, p_parent_branch, p_passwords)
$$;

COMMENT ON FUNCTION create_agent_branches(text[], text, text[])
IS 'branches of several agents, of one moment of the parent, all or none';

CREATE FUNCTION delete_agent_branch(p_agent_id text) RETURNS void
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import server
return server.delete_agent_branch(p_agent_id)
$$;

COMMENT ON FUNCTION delete_agent_branch(text) IS 'deletes the branch of an agent; branch.recover brings it back';

CREATE FUNCTION cleanup_inactive_branches(p_dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_cleanup_inactive_branches';

COMMENT ON FUNCTION cleanup_inactive_branches(boolean)
IS 'deletes branches unused for agent_branch.cleanup_after, recoverably, at most 1,000; returns how many';

CREATE FUNCTION auto_cleanup_branches(p_dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_auto_cleanup_branches';

COMMENT ON FUNCTION auto_cleanup_branches(boolean)
IS 'the same for schedulers: of several that are called at once, one does the work';

REVOKE ALL ON FUNCTION cleanup_inactive_branches(boolean) FROM public;
REVOKE ALL ON FUNCTION auto_cleanup_branches(boolean) FROM public;
REVOKE ALL ON FUNCTION create_agent_branch(text, text, text) FROM public;
REVOKE ALL ON FUNCTION create_agent_branches(text[], text, text[]) FROM public;
REVOKE ALL ON FUNCTION delete_agent_branch(text) FROM public;
GRANT EXECUTE ON FUNCTION create_agent_branch(text, text, text) TO public;
GRANT EXECUTE ON FUNCTION create_agent_branches(text[], text, text[]) TO public;
GRANT EXECUTE ON FUNCTION delete_agent_branch(text) TO public;

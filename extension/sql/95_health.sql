-- What an operator looks at, in one answer.

CREATE FUNCTION branch.health() RETURNS jsonb
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET intervalstyle = 'postgres'
AS $$
from agent_branch import health
return health.health()
$$;

COMMENT ON FUNCTION branch.health()
IS 'status (ok, warning, critical), the reasons for it, and facts about snapshots, disk, ages, workers and jobs';

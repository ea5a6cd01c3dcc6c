-- What the agents' functions need.

CREATE FUNCTION branch._ensure_agents(
    agent_ids text[],
    names text[],
    parent text,
    passwords text[] DEFAULT null
) RETURNS text[]
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_ensure_agents';

COMMENT ON FUNCTION branch._ensure_agents(text[], text[], text, text[])
IS 'branches of agents, those that are there and new ones, all or none; returns who logs in to each';

CREATE FUNCTION branch.adopt_agent_role(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_adopt_agent_role';

COMMENT ON FUNCTION branch.adopt_agent_role(text)
IS 'says that the role of a branch''s name is its agent''s, after a dump was restored that is older than the role';

CREATE FUNCTION branch._endpoint(
    OUT socket_directories text,
    OUT listen_addresses text,
    OUT port integer
) RETURNS record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_endpoint';

COMMENT ON FUNCTION branch._endpoint() IS 'where this server listens, for connection strings';

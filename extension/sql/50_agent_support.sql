-- What the agents' functions need.

CREATE FUNCTION branch._ensure_agent_table(parent text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_ensure_agent_table';

COMMENT ON FUNCTION branch._ensure_agent_table(text)
IS 'makes table public.agent_data in a parent unless that was done; commits there by itself';

CREATE FUNCTION branch._endpoint(
    OUT socket_directories text,
    OUT listen_addresses text,
    OUT port integer
) RETURNS record
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_endpoint';

COMMENT ON FUNCTION branch._endpoint() IS 'where this server listens, for connection strings';

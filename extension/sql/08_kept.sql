-- What pg_dump keeps of the tables that follow.
--
-- The rule for each new table: of what only this cluster's files say, or what can be had again,
-- nothing is dumped (say so in README, "Backup of the control database").  What people have said,
-- and what cannot be found out again, is: pg_extension_config_dump, of the sequence of an identity
-- column as well, a column
--     system_id bigint NOT NULL DEFAULT branch._cluster()
-- if there are OIDs or numbers that mean something here only, and a trigger branch._restored_row()
-- before each row is inserted, with 'here' (whatever this cluster has written stays), 'branch'
-- (columns db, origin_at), 'snapshot' (column id), or triples of 'database' or 'role', the column of
-- its OID, and one of its name: then also before each row is updated, and ab_keptnames.c has to
-- know the table.  tests/test_backup.py lists the tables that are not dumped.

CREATE FUNCTION branch._cluster() RETURNS bigint
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'ab_sql_cluster';

COMMENT ON FUNCTION branch._cluster() IS 'system identifier of the cluster';

CREATE FUNCTION branch._restored_row() RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_restored_row';

COMMENT ON FUNCTION branch._restored_row() IS 'leaves out rows of a dump that mean nothing in this cluster';

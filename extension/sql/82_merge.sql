-- Merging rows of one database into another.
--
-- A merge is written down by transactions of its own, before and after that of the target: what
-- happens to the caller's does not matter. Its row names the target's transaction before that
-- commits, so whoever looks later knows what became of it. Rows are written with the rights of
-- who merges; policies say who may. But only sessions that functions of the extension have opened
-- for it write them (branch._written_by_merges): nobody says by hand that something was merged.

CREATE FUNCTION branch._written_by_merges() RETURNS trigger
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_written_by_merges';

COMMENT ON FUNCTION branch._written_by_merges()
IS 'before a table of merges is written: an error but for merges, and those who restore a dump';

CREATE TABLE branch.merge_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_id oid NOT NULL,
    source_name text NOT NULL,
    target_id oid NOT NULL,
    target_name text NOT NULL,
    merged_by oid NOT NULL,
    strategy text NOT NULL,
    message text,
    options jsonb NOT NULL DEFAULT '{}' -- noqa: RF04
    CHECK (
        jsonb_typeof(options -> 'tables') = 'array'
        AND NOT options @? 'strict $.tables[*] ? (@.type() <> "array" || @.size() <> 2)'
    ),
    state text NOT NULL DEFAULT 'running'
    CHECK (state IN ('running', 'conflicts', 'resolved', 'committing', 'merged', 'failed')),
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    target_xid pg_catalog.xid8,
    base_snapshot text,
    source_snapshot text,
    fast_forward boolean,
    rows_inserted bigint NOT NULL DEFAULT 0,
    rows_updated bigint NOT NULL DEFAULT 0,
    rows_deleted bigint NOT NULL DEFAULT 0,
    conflicts bigint NOT NULL DEFAULT 0,
    note text,
    reverts bigint,
    resolution text CHECK (resolution IN ('ours', 'theirs')),
    resolves bigint,
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

CREATE INDEX merge_log_reverts_idx ON branch.merge_log (reverts) WHERE reverts IS NOT null;
CREATE INDEX merge_log_pair_idx ON branch.merge_log (
    least(source_id, target_id), greatest(source_id, target_id), id
);
CREATE INDEX merge_log_source_snapshot_idx ON branch.merge_log (source_snapshot)
WHERE source_snapshot IS NOT null;

COMMENT ON TABLE branch.merge_log IS 'merges that were begun; view branch.merges says what became of them';
COMMENT ON COLUMN branch.merge_log.id IS 'number of the merge';
COMMENT ON SEQUENCE branch.merge_log_id_seq IS 'ids of branch.merge_log';
COMMENT ON COLUMN branch.merge_log.source_id IS 'OID of the database whose changes were brought in';
COMMENT ON COLUMN branch.merge_log.source_name IS 'its name then';
COMMENT ON COLUMN branch.merge_log.target_id IS 'OID of the database they were brought into';
COMMENT ON COLUMN branch.merge_log.target_name IS 'its name then';
COMMENT ON COLUMN branch.merge_log.merged_by IS 'OID of the role that merged';
COMMENT ON COLUMN branch.merge_log.strategy IS 'manual, ours or theirs';
COMMENT ON COLUMN branch.merge_log.message IS 'what the caller said about it';
COMMENT ON COLUMN branch.merge_log.options IS 'the other arguments';
COMMENT ON COLUMN branch.merge_log.state
IS 'committing: what the transaction target_xid became decides; the others as in branch.merges';
COMMENT ON COLUMN branch.merge_log.started_at IS 'when it was begun';
COMMENT ON COLUMN branch.merge_log.finished_at IS 'when it was over';
COMMENT ON COLUMN branch.merge_log.target_xid IS 'transaction in the target; null: it has none yet';
COMMENT ON COLUMN branch.merge_log.base_snapshot
IS 'state that both sides were compared with; where tables had several, the oldest';
COMMENT ON COLUMN branch.merge_log.source_snapshot
IS 'state of the source that was looked at; if it was merged the base of the next merge between the two';
COMMENT ON COLUMN branch.merge_log.fast_forward IS 'whether the target had no changes of its own';
COMMENT ON COLUMN branch.merge_log.rows_inserted IS 'rows inserted into the target';
COMMENT ON COLUMN branch.merge_log.rows_updated IS 'rows updated there';
COMMENT ON COLUMN branch.merge_log.rows_deleted IS 'rows deleted there';
COMMENT ON COLUMN branch.merge_log.conflicts IS 'conflicts found';
COMMENT ON COLUMN branch.merge_log.note IS 'what else there is to say';
COMMENT ON COLUMN branch.merge_log.reverts IS 'the merge that this one takes back; null: none';
COMMENT ON COLUMN branch.merge_log.resolution
IS 'side that all conflicts are decided for which have none of their own; null: for none';
COMMENT ON COLUMN branch.merge_log.resolves IS 'the merge whose conflicts are those of this one; null: it has its own';
COMMENT ON COLUMN branch.merge_log.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.merge_log
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('merge');
CREATE TRIGGER written_by_merges BEFORE INSERT OR UPDATE ON branch.merge_log
FOR EACH STATEMENT EXECUTE FUNCTION branch._written_by_merges();
ALTER TABLE branch.merge_log ENABLE ALWAYS TRIGGER written_by_merges;

SELECT pg_catalog.pg_extension_config_dump('branch.merge_log', '');
SELECT pg_catalog.pg_extension_config_dump('branch.merge_log_id_seq', '');

CREATE TABLE branch.merge_conflicts (
    merge_id bigint REFERENCES branch.merge_log ON DELETE CASCADE,
    n bigint,
    table_name text,
    kind text NOT NULL,
    key jsonb, -- noqa: RF04
    columns text[], -- noqa: RF04
    base_row jsonb,
    our_row jsonb,
    their_row jsonb,
    constraint_name text,
    detail text,
    versions bigint,
    resolution text CHECK (resolution IN ('ours', 'theirs')),
    resolved_at timestamptz,
    resolved_by oid,
    system_id bigint NOT NULL DEFAULT branch._cluster(),
    PRIMARY KEY (merge_id, n)
);

COMMENT ON TABLE branch.merge_conflicts IS 'conflicts of merges; view branch.conflicts shows those that are open';
COMMENT ON COLUMN branch.merge_conflicts.merge_id IS 'the merge';
COMMENT ON COLUMN branch.merge_conflicts.n IS 'number within the merge';
COMMENT ON COLUMN branch.merge_conflicts.table_name IS 'table of the target, quoted where needed; null: not of one';
COMMENT ON COLUMN branch.merge_conflicts.kind
IS 'insert_insert, update_update, update_delete, delete_update, constraint, cascade, suppressed, schema';
COMMENT ON COLUMN branch.merge_conflicts.key IS 'key of the row';
COMMENT ON COLUMN branch.merge_conflicts.columns
IS 'columns that both sides changed; of rows that both inserted those that differ';
COMMENT ON COLUMN branch.merge_conflicts.base_row IS 'the row as both began with it';
COMMENT ON COLUMN branch.merge_conflicts.our_row IS 'the row of the target';
COMMENT ON COLUMN branch.merge_conflicts.their_row
IS 'the row of the source; for refused changes what the merge would have made of it';
COMMENT ON COLUMN branch.merge_conflicts.constraint_name IS 'constraint of the target that is violated';
COMMENT ON COLUMN branch.merge_conflicts.detail IS 'what the server said, or what differs';
COMMENT ON COLUMN branch.merge_conflicts.versions IS 'digest of the versions: a decision is about these';
COMMENT ON COLUMN branch.merge_conflicts.resolution IS 'side it was decided for; null: as the row of the merge says';
COMMENT ON COLUMN branch.merge_conflicts.resolved_at IS 'when that was';
COMMENT ON COLUMN branch.merge_conflicts.resolved_by IS 'OID of the role that decided';
COMMENT ON COLUMN branch.merge_conflicts.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.merge_conflicts
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');
CREATE TRIGGER written_by_merges BEFORE INSERT OR UPDATE ON branch.merge_conflicts
FOR EACH STATEMENT EXECUTE FUNCTION branch._written_by_merges();
ALTER TABLE branch.merge_conflicts ENABLE ALWAYS TRIGGER written_by_merges;

SELECT pg_catalog.pg_extension_config_dump('branch.merge_conflicts', '');

-- Who decides about a conflict writes it into its row. Those that a strategy has decided when they
-- were found, many at once, are not written any more: many of them are a row.
CREATE TABLE branch.merge_decided (
    merge_id bigint REFERENCES branch.merge_log ON DELETE CASCADE,
    n bigint,
    rows bigint NOT NULL, -- noqa: RF04
    conflicts text NOT NULL,
    system_id bigint NOT NULL DEFAULT branch._cluster(),
    PRIMARY KEY (merge_id, n)
);

COMMENT ON TABLE branch.merge_decided
IS 'conflicts of merges that were decided when they were found, many in a row';
COMMENT ON COLUMN branch.merge_decided.merge_id IS 'the merge';
COMMENT ON COLUMN branch.merge_decided.n IS 'number within the merge';
COMMENT ON COLUMN branch.merge_decided.rows IS 'how many conflicts these are';
COMMENT ON COLUMN branch.merge_decided.conflicts
IS 'in each line, as COPY writes it, a JSON object: what a row of branch.merge_conflicts has';
COMMENT ON COLUMN branch.merge_decided.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.merge_decided
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');
CREATE TRIGGER written_by_merges BEFORE INSERT OR UPDATE ON branch.merge_decided
FOR EACH STATEMENT EXECUTE FUNCTION branch._written_by_merges();
ALTER TABLE branch.merge_decided ENABLE ALWAYS TRIGGER written_by_merges;

SELECT pg_catalog.pg_extension_config_dump('branch.merge_decided', '');

-- Whoever may say that one database has another one's changes could as well write such changes
-- into the database that is theirs; hence the owner of either. Rows of tables are shown to who
-- merged them only. All rows are looked at by garbage collection and by others' merges, so what
-- would be an error there cannot be written down: options, numbers (nobody is granted to choose
-- one), transactions of the future (pg_xact_status raises an error).

CREATE FUNCTION branch._may_merge(source_id oid, target_id oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT
    count(*) = 2
    AND bool_and(has_database_privilege(d.oid, 'CONNECT'))
    AND bool_or(pg_has_role(d.datdba, 'USAGE'))
FROM pg_database AS d
WHERE d.oid IN ($1, $2)
$$;

COMMENT ON FUNCTION branch._may_merge(oid, oid)
IS 'whether the caller may connect to both databases and owns one of them';

CREATE FUNCTION branch._may_revert(merge_id bigint, target_id oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT
    has_database_privilege($2, 'CONNECT')
    AND EXISTS (
        SELECT FROM branch.merge_log AS m
        WHERE m.id = $1 AND m.target_id = $2 AND pg_has_role(m.merged_by, 'USAGE')
    )
$$;

COMMENT ON FUNCTION branch._may_revert(bigint, oid)
IS 'whether the caller made a merge into a database, and may connect to that';

ALTER TABLE branch.merge_log ENABLE ROW LEVEL SECURITY;
ALTER TABLE branch.merge_conflicts ENABLE ROW LEVEL SECURITY;
ALTER TABLE branch.merge_decided ENABLE ROW LEVEL SECURITY;

CREATE POLICY see ON branch.merge_log FOR SELECT
USING (
    pg_catalog.pg_has_role(merged_by, 'USAGE')
    OR branch._may_see(source_id) AND branch._may_see(target_id)
);
CREATE POLICY begin ON branch.merge_log FOR INSERT
WITH CHECK (
    merged_by = (
        SELECT r.oid FROM pg_catalog.pg_roles AS r
        WHERE r.rolname = current_user
    )
    AND state = 'running'
    AND CASE
        WHEN reverts IS null THEN branch._may_merge(source_id, target_id)
        ELSE branch._may_revert(reverts, target_id)
    END
);
CREATE POLICY go_on ON branch.merge_log FOR UPDATE
USING (pg_catalog.pg_has_role(merged_by, 'USAGE'))
WITH CHECK (
    pg_catalog.pg_has_role(merged_by, 'USAGE')
    AND CASE
        WHEN reverts IS null THEN branch._may_merge(source_id, target_id)
        ELSE source_snapshot IS null AND branch._may_revert(reverts, target_id)
    END
    AND coalesce(pg_catalog.pg_xact_status(target_xid), '') IS NOT null
);

CREATE POLICY see ON branch.merge_conflicts FOR SELECT
USING (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);
CREATE POLICY add ON branch.merge_conflicts FOR INSERT
WITH CHECK (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);
CREATE POLICY see ON branch.merge_decided FOR SELECT
USING (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);
CREATE POLICY add ON branch.merge_decided FOR INSERT
WITH CHECK (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);
CREATE POLICY resolve ON branch.merge_conflicts FOR UPDATE
USING (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);

CREATE FUNCTION branch._is_merging(target_id oid) RETURNS boolean
LANGUAGE sql VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT EXISTS (
    SELECT FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.database = 0 AND l.classid = 1094864199
        AND l.objid = $1 AND l.objsubid = 171 AND l.mode = 'ExclusiveLock' AND l.granted
)
$$;

COMMENT ON FUNCTION branch._is_merging(oid) IS 'whether somebody is merging into a database';

CREATE FUNCTION branch._merge_state(target_xid pg_catalog.xid8) RETURNS text
LANGUAGE sql VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT CASE pg_xact_status($1)
    WHEN 'committed' THEN 'merged'
    WHEN 'in progress' THEN 'running'
    ELSE 'failed'
END
$$;

COMMENT ON FUNCTION branch._merge_state(pg_catalog.xid8)
IS 'what became of a merge whose row names a transaction of the target';

CREATE VIEW branch."merges" WITH (security_barrier) AS
SELECT -- noqa: ST06
    m.id,
    m.source_name,
    m.target_name,
    m.strategy,
    m.message,
    CASE
        WHEN m.state = 'committing' THEN branch._merge_state(m.target_xid)
        WHEN m.state = 'running' AND NOT branch._is_merging(m.target_id) THEN 'failed'
        ELSE m.state
    END AS state,
    m.fast_forward,
    m.rows_inserted,
    m.rows_updated,
    m.rows_deleted,
    m.conflicts,
    m.note,
    m.started_at,
    m.finished_at,
    pg_catalog.pg_get_userbyid(m.merged_by) AS merged_by,
    m.options,
    m.base_snapshot,
    m.source_snapshot,
    m.reverts
FROM branch.merge_log AS m;

-- Policies of the tables are those for who asks.
ALTER VIEW branch."merges" SET (security_invoker = true);

COMMENT ON VIEW branch."merges" IS 'merges, and what became of them';
COMMENT ON COLUMN branch.merges.id IS 'number of the merge';
COMMENT ON COLUMN branch.merges.source_name IS 'database whose changes were brought in, by its name then';
COMMENT ON COLUMN branch.merges.target_name IS 'database they were brought into, by its name then';
COMMENT ON COLUMN branch.merges.strategy IS 'manual, ours or theirs';
COMMENT ON COLUMN branch.merges.message IS 'what the caller said about it';
COMMENT ON COLUMN branch.merges.state
IS 'merged; running; without any change of the target: conflicts, resolved (a later merge did it), failed';
COMMENT ON COLUMN branch.merges.fast_forward IS 'whether the target had no changes of its own';
COMMENT ON COLUMN branch.merges.rows_inserted IS 'rows inserted into the target';
COMMENT ON COLUMN branch.merges.rows_updated IS 'rows updated there';
COMMENT ON COLUMN branch.merges.rows_deleted IS 'rows deleted there';
COMMENT ON COLUMN branch.merges.conflicts IS 'conflicts found';
COMMENT ON COLUMN branch.merges.note IS 'what else there is to say';
COMMENT ON COLUMN branch.merges.started_at IS 'when it was begun';
COMMENT ON COLUMN branch.merges.finished_at IS 'when it was over; null: it is not, or was broken off';
COMMENT ON COLUMN branch.merges.merged_by IS 'role that merged';
COMMENT ON COLUMN branch.merges.options IS 'the other arguments';
COMMENT ON COLUMN branch.merges.base_snapshot
IS 'state that both sides were compared with; where tables had several, the oldest';
COMMENT ON COLUMN branch.merges.source_snapshot
IS 'state of the source that was merged: the base of the next merge between the two, if no later one is';
COMMENT ON COLUMN branch.merges.reverts IS 'the merge that this one takes back; null: none';

CREATE VIEW branch.conflicts WITH (security_barrier) AS
SELECT
    c.merge_id,
    c.n,
    m.source_name,
    m.target_name,
    c.table_name,
    c.kind,
    c.key,
    c.columns,
    c.base_row,
    c.our_row,
    c.their_row,
    c.constraint_name,
    c.detail
FROM branch.merge_conflicts AS c
INNER JOIN branch.merge_log AS m ON c.merge_id = m.id
WHERE m.state = 'conflicts' AND c.resolution IS null AND m.resolution IS null;

ALTER VIEW branch.conflicts SET (security_invoker = true);

COMMENT ON VIEW branch.conflicts IS 'conflicts that nobody has decided yet, of the caller''s merges';
COMMENT ON COLUMN branch.conflicts.merge_id IS 'the merge';
COMMENT ON COLUMN branch.conflicts.n IS 'number within the merge';
COMMENT ON COLUMN branch.conflicts.source_name IS 'database whose changes were to be brought in';
COMMENT ON COLUMN branch.conflicts.target_name IS 'database they were to be brought into';
COMMENT ON COLUMN branch.conflicts.table_name IS 'table of the target, quoted where needed; null: not of one';
COMMENT ON COLUMN branch.conflicts.kind IS 'as in branch.conflict_rows';
COMMENT ON COLUMN branch.conflicts.key IS 'key of the row';
COMMENT ON COLUMN branch.conflicts.columns IS 'columns in conflict';
COMMENT ON COLUMN branch.conflicts.base_row IS 'the row as both began with it';
COMMENT ON COLUMN branch.conflicts.our_row IS 'the row of the target';
COMMENT ON COLUMN branch.conflicts.their_row IS 'the row of the source';
COMMENT ON COLUMN branch.conflicts.constraint_name IS 'constraint of the target that is violated';
COMMENT ON COLUMN branch.conflicts.detail IS 'what the server said, or what differs';

CREATE FUNCTION branch._decided_conflicts(
    merge_id bigint,
    OUT n bigint,
    OUT table_name text,
    OUT kind text,
    OUT key jsonb,
    OUT columns text[],
    OUT base_row jsonb,
    OUT our_row jsonb,
    OUT their_row jsonb,
    OUT versions bigint,
    OUT resolution text
) RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT
    d.before + l.n, c.table_name, c.kind, c.key, c.columns, c.base_row, c.our_row, c.their_row,
    c.versions, c.resolution
FROM (
    SELECT d.conflicts, (sum(d.rows) OVER (ORDER BY d.n) - d.rows)::bigint AS before
    FROM branch.merge_decided AS d
    WHERE d.merge_id = $1
) AS d
CROSS JOIN LATERAL string_to_table(d.conflicts, chr(10)) WITH ORDINALITY AS l (line, n)
CROSS JOIN LATERAL json_to_record(replace(l.line, repeat(chr(92), 2), chr(92))::json) AS c (
    table_name text, kind text, key jsonb, columns text[], base_row jsonb, our_row jsonb,
    their_row jsonb, versions bigint, resolution text
)
WHERE l.line <> ''
$$;

COMMENT ON FUNCTION branch._decided_conflicts(bigint)
IS 'conflicts of a merge in branch.merge_decided, numbered in their order';

CREATE FUNCTION branch._require_merge(merge_id bigint) RETURNS void
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'ab_sql_require_merge';

COMMENT ON FUNCTION branch._require_merge(bigint) IS 'an error if that is no merge of the caller''s';

CREATE FUNCTION branch.conflict_rows(
    merge_id bigint,
    OUT n bigint,
    OUT table_name text,
    OUT kind text,
    OUT key jsonb,
    OUT columns text[],
    OUT base_row jsonb,
    OUT our_row jsonb,
    OUT their_row jsonb,
    OUT constraint_name text,
    OUT detail text,
    OUT resolution text
) RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
SELECT branch._require_merge($1);
SELECT
    c.n, c.table_name, c.kind, c.key, c.columns, c.base_row, c.our_row, c.their_row,
    c.constraint_name, c.detail, coalesce(c.resolution, o.resolution)
FROM branch.merge_log AS m
INNER JOIN branch.merge_log AS o ON o.id = coalesce(m.resolves, m.id)
INNER JOIN branch.merge_conflicts AS c ON o.id = c.merge_id
WHERE m.id = $1
UNION ALL
SELECT
    d.n + (SELECT count(*) FROM branch.merge_conflicts AS c WHERE c.merge_id = o.id),
    d.table_name, d.kind, d.key, d.columns, d.base_row, d.our_row, d.their_row,
    null, null, d.resolution
FROM branch.merge_log AS m
INNER JOIN branch.merge_log AS o ON o.id = coalesce(m.resolves, m.id)
CROSS JOIN LATERAL branch._decided_conflicts(o.id) AS d
WHERE m.id = $1
ORDER BY 1
$$;

COMMENT ON FUNCTION branch.conflict_rows(bigint) IS 'all conflicts of a merge, decided ones too';

CREATE FUNCTION branch._merge_lock(source_id oid, target_id oid) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_merge_lock';

COMMENT ON FUNCTION branch._merge_lock(oid, oid)
IS 'keeps others from merging into target, and into source, for the transaction; for functions that merge';

CREATE FUNCTION branch._merge_snapshot(source_id oid, target_id oid) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_merge_snapshot';

COMMENT ON FUNCTION branch._merge_snapshot(oid, oid)
IS 'the state of a database that is to be merged into another one: a snapshot of it, kept for the transaction';

CREATE FUNCTION branch._merge_over(merge_id bigint) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_merge_over';

COMMENT ON FUNCTION branch._merge_over(bigint)
IS 'writes down that the target of a merge of the caller''s has it, if that is so, and tells';

CREATE TYPE branch.merge_result AS (
    merge_id bigint,
    fast_forward boolean,
    rows_applied bigint,
    conflicts bigint,
    message text
);

COMMENT ON TYPE branch.merge_result IS 'what a merge did';
COMMENT ON COLUMN branch.merge_result.merge_id IS 'number of the merge, for branch.conflict_rows() and others';
COMMENT ON COLUMN branch.merge_result.fast_forward IS 'whether the target had no changes of its own';
COMMENT ON COLUMN branch.merge_result.rows_applied IS 'rows that were inserted, updated and deleted in the target';
COMMENT ON COLUMN branch.merge_result.conflicts IS 'conflicts found; by strategy manual nothing is applied then';
COMMENT ON COLUMN branch.merge_result.message IS 'the same in words';

CREATE FUNCTION branch.merge(
    source text,
    target text DEFAULT null,
    strategy text DEFAULT 'manual',
    message text DEFAULT null,
    strategies jsonb DEFAULT '{}',
    fire_triggers boolean DEFAULT true,
    schema text DEFAULT 'stop', -- noqa: RF04
    dry_run boolean DEFAULT false,
    tables text[] DEFAULT null
) RETURNS branch.merge_result
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import merging
return merging.merge(source, target, strategy, message, strategies, fire_triggers, schema, dry_run, tables)
$$;

COMMENT ON FUNCTION branch.merge(text, text, text, text, jsonb, boolean, text, boolean, text[])
IS 'brings the changes of source into target (its parent), by row and column; conflicts are rows of branch.conflicts';

CREATE FUNCTION branch.preview_merge(
    source text,
    target text DEFAULT null,
    strategy text DEFAULT 'manual',
    strategies jsonb DEFAULT '{}',
    schema text DEFAULT 'stop', -- noqa: RF04
    tables text[] DEFAULT null,
    OUT table_name text,
    OUT rows_inserted bigint,
    OUT rows_updated bigint,
    OUT rows_deleted bigint,
    OUT conflicts bigint,
    OUT pages_read bigint,
    OUT note text
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import merging
return merging.preview(source, target, strategy, strategies, schema, tables)
$$;

COMMENT ON FUNCTION branch.preview_merge(text, text, text, jsonb, text, text[])
IS 'what branch.merge() would do to each table of target; nothing is changed';

CREATE FUNCTION branch.conflicts_resolve(
    merge_id bigint,
    side text,
    tables text[] DEFAULT null
) RETURNS branch.merge_result
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import resolving
return resolving.conflicts_resolve(merge_id, side, tables)
$$;

COMMENT ON FUNCTION branch.conflicts_resolve(bigint, text, text[])
IS 'decides conflicts of a merge (in some tables); when none is open the merge is done, as a new one';

CREATE FUNCTION branch.sync(
    name text,
    strategy text DEFAULT 'manual',
    message text DEFAULT null,
    strategies jsonb DEFAULT '{}',
    fire_triggers boolean DEFAULT true,
    schema text DEFAULT 'stop', -- noqa: RF04
    dry_run boolean DEFAULT false,
    tables text[] DEFAULT null
) RETURNS branch.merge_result
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import merging
return merging.sync(name, strategy, message, strategies, fire_triggers, schema, dry_run, tables)
$$;

COMMENT ON FUNCTION branch.sync(text, text, text, jsonb, boolean, text, boolean, text[])
IS 'brings the changes of its parent into a branch, as branch.merge() does, and keeps the branch''s own';

REVOKE ALL ON TABLE branch.merge_log, branch.merge_conflicts, branch.merge_decided FROM public;

-- Events: what has happened to branches, and snapshots of databases.

CREATE TABLE branch.event_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL, -- noqa: RF04
    event text NOT NULL, -- noqa: RF04
    branch text NOT NULL,
    branch_id oid NOT NULL,
    parent text,
    by text NOT NULL, -- noqa: RF04
    owner_id oid NOT NULL,
    detail jsonb NOT NULL
);

-- Microseconds of now: who remembers an id of an earlier installation misses nothing of this one.
SELECT
    pg_catalog.setval(
        pg_catalog.pg_get_serial_sequence('branch.event_log', 'id'),
        (extract(EPOCH FROM pg_catalog.clock_timestamp()) * 1000000)::bigint
    );

COMMENT ON TABLE branch.event_log IS 'events, written by the library; view branch.events shows them';
COMMENT ON COLUMN branch.event_log.id
IS 'number; transactions commit in another order: branch.events_after() waits for them';
COMMENT ON SEQUENCE branch.event_log_id_seq IS 'ids of branch.event_log';
COMMENT ON COLUMN branch.event_log.at IS 'when it happened';
COMMENT ON COLUMN branch.event_log.event IS 'what happened: created, deleted, reset, ...';
COMMENT ON COLUMN branch.event_log.branch IS 'name of the database it happened to, then';
COMMENT ON COLUMN branch.event_log.branch_id IS 'OID of that database';
COMMENT ON COLUMN branch.event_log.parent IS 'name of its parent then';
COMMENT ON COLUMN branch.event_log.by IS 'role that did it';
COMMENT ON COLUMN branch.event_log.owner_id IS 'OID of the role that owned the database then';
COMMENT ON COLUMN branch.event_log.detail IS 'what there is to say beyond that';

CREATE VIEW branch.events WITH (security_barrier) AS
SELECT -- noqa: ST06
    e.id,
    e.at,
    e.event,
    e.branch,
    e.branch_id,
    e.parent,
    e.by,
    e.detail
FROM branch.event_log AS e
WHERE
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
    OR pg_catalog.pg_has_role(e.owner_id, 'USAGE');

COMMENT ON VIEW branch.events
IS 'what happened to the branches that the caller owns or owned; pg_read_all_stats: to all';
COMMENT ON COLUMN branch.events.id
IS 'number; transactions commit in another order: branch.events_after() waits for them';
COMMENT ON COLUMN branch.events.at IS 'when it happened';
COMMENT ON COLUMN branch.events.event IS 'what happened: created, deleted, reset, ...';
COMMENT ON COLUMN branch.events.branch IS 'name of the database it happened to, then';
COMMENT ON COLUMN branch.events.branch_id IS 'OID of that database';
COMMENT ON COLUMN branch.events.parent IS 'name of its parent then';
COMMENT ON COLUMN branch.events.by IS 'role that did it';
COMMENT ON COLUMN branch.events.detail IS 'what there is to say beyond that';

CREATE FUNCTION branch.events_after(id bigint, max_rows integer DEFAULT 1000) RETURNS SETOF branch.events
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_events_after';

COMMENT ON FUNCTION branch.events_after(bigint, integer)
IS 'events with higher ids, in order; who passes the last id that it got misses none and gets none twice';

REVOKE ALL ON TABLE branch.event_log FROM public;

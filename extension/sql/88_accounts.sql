-- What branches have used and what that costs, added up by branch._job_usage(). An account is a
-- branch's through resets and renames, and stays when the branch is gone.

CREATE TABLE branch.prices (
    since timestamptz PRIMARY KEY,
    compute_hour numeric NOT NULL,
    gb_month numeric NOT NULL,
    pinned_gb_month numeric NOT NULL,
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

COMMENT ON TABLE branch.prices IS 'prices and since when they hold, as the settings said';
COMMENT ON COLUMN branch.prices.since IS 'when this was noticed';
COMMENT ON COLUMN branch.prices.compute_hour IS 'agent_branch.price_per_compute_hour then';
COMMENT ON COLUMN branch.prices.gb_month IS 'agent_branch.price_per_gb_month then';
COMMENT ON COLUMN branch.prices.pinned_gb_month IS 'agent_branch.price_per_pinned_gb_month then';
COMMENT ON COLUMN branch.prices.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.prices
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');

SELECT pg_catalog.pg_extension_config_dump('branch.prices', '');

CREATE TABLE branch.accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    db oid NOT NULL,
    origin_at timestamptz NOT NULL,
    name text NOT NULL, -- noqa: RF04
    owner_id oid NOT NULL,
    labels jsonb NOT NULL DEFAULT '{}',
    opened_at timestamptz NOT NULL,
    missing_at timestamptz,
    closed_at timestamptz,
    sampled_at timestamptz NOT NULL,
    request_count bigint NOT NULL DEFAULT 0,
    active_us bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    bytes_written bigint NOT NULL DEFAULT 0,
    own_bytes bigint NOT NULL DEFAULT 0,
    pinned_bytes bigint NOT NULL DEFAULT 0,
    own_byte_seconds numeric NOT NULL DEFAULT 0,
    pinned_byte_seconds numeric NOT NULL DEFAULT 0,
    cost numeric NOT NULL DEFAULT 0, -- noqa: RF04
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

CREATE UNIQUE INDEX accounts_db_idx ON branch.accounts (db, origin_at) WHERE closed_at IS null;
CREATE INDEX accounts_name_idx ON branch.accounts (name);

COMMENT ON TABLE branch.accounts IS 'branches that there are and were, and what they cost so far';
COMMENT ON COLUMN branch.accounts.id IS 'number of the account; 0: those that are forgotten, together';
COMMENT ON SEQUENCE branch.accounts_id_seq IS 'ids of branch.accounts';
COMMENT ON COLUMN branch.accounts.db IS 'OID of the branch; of one that is gone the last one';
COMMENT ON COLUMN branch.accounts.origin_at IS 'when the database of that OID was made';
COMMENT ON COLUMN branch.accounts.name IS 'name of the branch, the last one known';
COMMENT ON COLUMN branch.accounts.owner_id IS 'OID of its owner, likewise';
COMMENT ON COLUMN branch.accounts.labels IS 'its labels, likewise';
COMMENT ON COLUMN branch.accounts.opened_at IS 'when it was created';
COMMENT ON COLUMN branch.accounts.missing_at IS 'when it was first not found; null: it was there';
COMMENT ON COLUMN branch.accounts.closed_at IS 'when it was not found again; null: it is there';
COMMENT ON COLUMN branch.accounts.sampled_at IS 'up to when it is added up';
COMMENT ON COLUMN branch.accounts.request_count IS 'branch._activity() at that time';
COMMENT ON COLUMN branch.accounts.active_us IS 'the same; as much was charged';
COMMENT ON COLUMN branch.accounts.rows_written IS 'the same';
COMMENT ON COLUMN branch.accounts.bytes_written IS 'the same';
COMMENT ON COLUMN branch.accounts.own_bytes IS 'pages it had written at that time';
COMMENT ON COLUMN branch.accounts.pinned_bytes
IS 'its share of what only its snapshot needed at that time; 0 while that costs nothing';
COMMENT ON COLUMN branch.accounts.own_byte_seconds IS 'own bytes by time, charged';
COMMENT ON COLUMN branch.accounts.pinned_byte_seconds IS 'pinned bytes by time, charged';
COMMENT ON COLUMN branch.accounts.cost IS 'all that, each part at the price of its time';
COMMENT ON COLUMN branch.accounts.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.accounts
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');

SELECT pg_catalog.pg_extension_config_dump('branch.accounts', '');
SELECT pg_catalog.pg_extension_config_dump('branch.accounts_id_seq', '');

CREATE TABLE branch.usage_rows (
    account bigint NOT NULL, -- noqa: RF04
    unit text NOT NULL CHECK (unit IN ('hour', 'day')),
    at timestamptz NOT NULL, -- noqa: RF04
    request_count bigint NOT NULL,
    active_us bigint NOT NULL,
    rows_written bigint NOT NULL,
    bytes_written bigint NOT NULL,
    own_byte_seconds numeric NOT NULL,
    pinned_byte_seconds numeric NOT NULL,
    cost numeric NOT NULL, -- noqa: RF04
    system_id bigint NOT NULL DEFAULT branch._cluster(),
    PRIMARY KEY (account, unit, at)
);

CREATE INDEX usage_rows_at_idx ON branch.usage_rows (unit, at);

COMMENT ON TABLE branch.usage_rows IS 'use by the hour and by the day (UTC); branch.usage_history() shows it';
COMMENT ON COLUMN branch.usage_rows.account IS 'whose it is';
COMMENT ON COLUMN branch.usage_rows.unit IS 'hour or day';
COMMENT ON COLUMN branch.usage_rows.at IS 'when that began';
COMMENT ON COLUMN branch.usage_rows.request_count IS 'statements in it';
COMMENT ON COLUMN branch.usage_rows.active_us IS 'microseconds in which statements were running';
COMMENT ON COLUMN branch.usage_rows.rows_written IS 'rows written in it';
COMMENT ON COLUMN branch.usage_rows.bytes_written IS 'bytes of WAL written in it';
COMMENT ON COLUMN branch.usage_rows.own_byte_seconds IS 'own bytes by time';
COMMENT ON COLUMN branch.usage_rows.pinned_byte_seconds IS 'pinned bytes by time';
COMMENT ON COLUMN branch.usage_rows.cost IS 'what it cost';
COMMENT ON COLUMN branch.usage_rows.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.usage_rows
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');

SELECT pg_catalog.pg_extension_config_dump('branch.usage_rows', '');

-- A GB is 1024^3 bytes, as the server's settings have it, a month 730 hours.
CREATE VIEW branch._price_periods AS
SELECT
    p.since,
    lead(p.since, 1, '9999-01-01 00:00:00+00'::timestamptz) OVER (ORDER BY p.since) AS until, -- noqa: RF04
    p.compute_hour / 3600000000 AS active_us,
    p.gb_month / (1073741824::numeric * 730 * 3600) AS own_byte_second,
    p.pinned_gb_month / (1073741824::numeric * 730 * 3600) AS pinned_byte_second
FROM branch.prices AS p
UNION ALL
SELECT
    '1970-01-01 00:00:00+00'::timestamptz,
    '9999-01-01 00:00:00+00'::timestamptz,
    current_setting('agent_branch.price_per_compute_hour')::numeric / 3600000000 AS active_us,
    current_setting('agent_branch.price_per_gb_month')::numeric / (1073741824::numeric * 730 * 3600) AS own_byte_second,
    current_setting('agent_branch.price_per_pinned_gb_month')::numeric
    / (1073741824::numeric * 730 * 3600) AS pinned_byte_second
WHERE NOT EXISTS (SELECT FROM branch.prices);

COMMENT ON VIEW branch._price_periods IS 'prices of a unit, from when to when';
COMMENT ON COLUMN branch._price_periods.since IS 'from when on';
COMMENT ON COLUMN branch._price_periods.until IS 'until when';
COMMENT ON COLUMN branch._price_periods.active_us IS 'price of a microsecond in which a statement runs';
COMMENT ON COLUMN branch._price_periods.own_byte_second IS 'price of an own byte for a second';
COMMENT ON COLUMN branch._price_periods.pinned_byte_second IS 'price of a pinned byte for a second';

CREATE FUNCTION branch._price_seconds(
    since timestamptz,
    until timestamptz,
    own_bytes bigint,
    pinned_bytes bigint
) RETURNS numeric
LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(
        extract(EPOCH FROM least($2, p.until) - greatest($1, p.since))
        * ($3 * p.own_byte_second + $4 * p.pinned_byte_second)
    ), 0)
    FROM branch._price_periods AS p
    WHERE p.since < $2 AND p.until > $1
$$;

COMMENT ON FUNCTION branch._price_seconds(timestamptz, timestamptz, bigint, bigint)
IS 'what bytes cost that are there for a time, at the prices of that time';

CREATE FUNCTION branch._price_use(used_at timestamptz, active_us bigint) RETURNS numeric
LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT $2 * p.active_us
    FROM branch._price_periods AS p
    WHERE p.since < $1 AND p.until >= $1
$$;

COMMENT ON FUNCTION branch._price_use(timestamptz, bigint) IS 'what active time costs at the price of a time';

-- One whose OID another branch had waits until that one's account is closed.
CREATE FUNCTION branch._open_accounts() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH opened AS (
        INSERT INTO branch.accounts AS a (db, origin_at, name, owner_id, labels, opened_at, sampled_at)
        SELECT d.oid, o.created_at, d.name, d.datdba, coalesce(r.labels, '{}'), o.created_at, o.created_at
        FROM branch._databases AS d
        CROSS JOIN LATERAL branch._origin(d.oid) AS o
        LEFT JOIN branch.registry AS r ON d.oid = r.db AND o.created_at = r.origin_at
        WHERE
            o.depth >= 1
            AND NOT EXISTS (
                SELECT FROM branch.accounts AS b
                WHERE b.db = d.oid AND b.closed_at IS null
            )
        ON CONFLICT DO NOTHING
        RETURNING 1
    )

    SELECT count(*) FROM opened
$$;

COMMENT ON FUNCTION branch._open_accounts() IS 'accounts for branches that have none; how many';

CREATE FUNCTION branch._note_prices() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH now AS (
        SELECT
            current_setting('agent_branch.price_per_compute_hour')::numeric AS compute_hour,
            current_setting('agent_branch.price_per_gb_month')::numeric AS gb_month,
            current_setting('agent_branch.price_per_pinned_gb_month')::numeric AS pinned_gb_month
    ),

    last AS (SELECT p.* FROM branch.prices AS p ORDER BY p.since DESC LIMIT 1),

    noted AS (
        INSERT INTO branch.prices (since, compute_hour, gb_month, pinned_gb_month)
        SELECT
            CASE WHEN l.since IS null THEN '1970-01-01 00:00:00+00' ELSE clock_timestamp() END,
            n.compute_hour,
            n.gb_month,
            n.pinned_gb_month
        FROM now AS n
        LEFT JOIN last AS l ON true
        WHERE
            (l.compute_hour, l.gb_month, l.pinned_gb_month)
            IS DISTINCT FROM (n.compute_hour, n.gb_month, n.pinned_gb_month)
        RETURNING 1
    )

    SELECT count(*) FROM noted
$$;

COMMENT ON FUNCTION branch._note_prices() IS 'remembers prices that are not those of before; from now on they hold';

-- Due are accounts in which something happened, those whose size may be changing, those that
-- cost something once an hour, and those that are gone or have another name; none twice in a run.
-- A pinned byte that several branches of one snapshot need is shared out among them. A branch that
-- is being reset is left for the next run, and one that just was may look as if it were gone: an
-- account is closed when that is so in two runs.
CREATE FUNCTION branch._roll_up(max_accounts integer, run_since timestamptz) RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH t AS MATERIALIZED (SELECT clock_timestamp() AS t),

    act AS MATERIALIZED (SELECT v.* FROM branch._activity() AS v),

    pin AS MATERIALIZED (
        SELECT s.id, p.freed_if_dropped / greatest(s.branches, 1) AS bytes
        FROM branch._snapshots() AS s
        INNER JOIN branch._pinned() AS p ON s.id = p.id
        WHERE current_setting('agent_branch.price_per_pinned_gb_month')::numeric > 0
    ),

    due AS MATERIALIZED (
        SELECT
            a.id,
            a.db,
            a.sampled_at,
            t.t,
            a.own_bytes,
            a.pinned_bytes,
            o.created_at IS null AS gone,
            coalesce(d.name, a.name) AS name,
            coalesce(d.datdba, a.owner_id) AS owner_id,
            CASE WHEN o.created_at IS null THEN a.labels ELSE coalesce(r.labels, '{}') END AS labels,
            coalesce(pin.bytes, 0) AS new_pinned,
            greatest(coalesce(v.request_count, 0) - a.request_count, 0) AS requests,
            greatest(coalesce(v.active_us, 0) - a.active_us, 0) AS active_us,
            greatest(coalesce(v.rows_written, 0) - a.rows_written, 0) AS rows_written,
            greatest(coalesce(v.bytes_written, 0) - a.bytes_written, 0) AS bytes_written,
            least(greatest(v.last_active_at, a.sampled_at + interval '1 microsecond'), t.t) AS used_at
        FROM branch.accounts AS a
        CROSS JOIN t
        LEFT JOIN branch._databases AS d ON a.db = d.oid
        LEFT JOIN LATERAL branch._origin(d.oid) AS o ON o.created_at = a.origin_at
        LEFT JOIN branch.registry AS r ON a.db = r.db AND a.origin_at = r.origin_at
        LEFT JOIN act AS v ON a.db = v.db AND a.origin_at = v.origin_at
        LEFT JOIN pin ON o.snapshot = pin.id
        WHERE
            a.closed_at IS null
            AND a.sampled_at < least($2, t.t)
            AND (
                o.created_at IS null
                OR v.active_us > a.active_us
                OR v.request_count > a.request_count
                OR v.bytes_written > a.bytes_written
                OR (v.last_active_at > t.t - interval '2 hours' AND a.sampled_at < t.t - interval '1 minute')
                OR (
                    (a.own_bytes > 0 OR a.pinned_bytes > 0 OR pin.bytes > 0)
                    AND date_trunc('hour', a.sampled_at, 'UTC') < date_trunc('hour', t.t, 'UTC')
                )
                OR d.name <> a.name
                OR d.datdba <> a.owner_id
                OR coalesce(r.labels, '{}') <> a.labels
            )
        ORDER BY a.sampled_at
        LIMIT $1
        FOR UPDATE OF a SKIP LOCKED
    ),

    parts AS (
        SELECT
            due.id,
            h.hour,
            due.requests * u.used AS requests,
            due.active_us * u.used AS active_us,
            due.rows_written * u.used AS rows_written,
            due.bytes_written * u.used AS bytes_written,
            due.own_bytes * b.seconds AS own_byte_seconds,
            due.pinned_bytes * b.seconds AS pinned_byte_seconds,
            round(
                due.active_us * u.used * p.active_us
                + due.own_bytes * b.seconds * p.own_byte_second
                + due.pinned_bytes * b.seconds * p.pinned_byte_second, 18
            ) AS cost
        FROM due
        CROSS JOIN LATERAL generate_series(
            date_trunc('hour', due.sampled_at, 'UTC'), due.t, interval '1 hour'
        ) AS h (hour)
        CROSS JOIN branch._price_periods AS p
        CROSS JOIN LATERAL (
            SELECT
                greatest(due.sampled_at, h.hour, p.since) AS since,
                least(due.t, h.hour + interval '1 hour', p.until) AS until -- noqa: RF04
        ) AS w
        CROSS JOIN LATERAL (SELECT extract(EPOCH FROM w.until - w.since) AS seconds) AS b
        CROSS JOIN LATERAL (
            SELECT CASE WHEN due.used_at > w.since AND due.used_at <= w.until THEN 1 ELSE 0 END AS used
        ) AS u
        WHERE w.until > w.since
    ),

    hours AS MATERIALIZED (
        SELECT
            x.id,
            x.hour,
            sum(x.requests)::bigint AS requests,
            sum(x.active_us)::bigint AS active_us,
            sum(x.rows_written)::bigint AS rows_written,
            sum(x.bytes_written)::bigint AS bytes_written,
            sum(x.own_byte_seconds) AS own_byte_seconds,
            sum(x.pinned_byte_seconds) AS pinned_byte_seconds,
            sum(x.cost) AS cost
        FROM parts AS x
        GROUP BY x.id, x.hour
    ),

    written AS (
        INSERT INTO branch.usage_rows AS w (
            account, unit, at, request_count, active_us, rows_written, bytes_written,
            own_byte_seconds, pinned_byte_seconds, cost
        )
        SELECT
            h.id,
            g.unit,
            date_trunc(g.unit, h.hour, 'UTC'),
            sum(h.requests),
            sum(h.active_us),
            sum(h.rows_written),
            sum(h.bytes_written),
            sum(h.own_byte_seconds),
            sum(h.pinned_byte_seconds),
            sum(h.cost)
        FROM hours AS h
        CROSS JOIN (VALUES ('hour'), ('day')) AS g (unit)
        GROUP BY h.id, g.unit, date_trunc(g.unit, h.hour, 'UTC')
        HAVING
            sum(h.requests) > 0 OR sum(h.active_us) > 0 OR sum(h.bytes_written) > 0
            OR sum(h.own_byte_seconds) > 0 OR sum(h.pinned_byte_seconds) > 0
        ON CONFLICT (account, unit, at) DO UPDATE SET
            request_count = w.request_count + excluded.request_count,
            active_us = w.active_us + excluded.active_us,
            rows_written = w.rows_written + excluded.rows_written,
            bytes_written = w.bytes_written + excluded.bytes_written,
            own_byte_seconds = w.own_byte_seconds + excluded.own_byte_seconds,
            pinned_byte_seconds = w.pinned_byte_seconds + excluded.pinned_byte_seconds,
            cost = w.cost + excluded.cost
    ),

    totals AS (
        SELECT
            h.id,
            sum(h.own_byte_seconds) AS own_byte_seconds,
            sum(h.pinned_byte_seconds) AS pinned_byte_seconds,
            sum(h.cost) AS cost
        FROM hours AS h
        GROUP BY h.id
    ),

    counted AS (
        UPDATE branch.accounts AS a SET
            name = due.name,
            owner_id = due.owner_id,
            labels = due.labels,
            missing_at = CASE WHEN due.gone THEN due.t END,
            closed_at = CASE WHEN due.gone AND a.missing_at IS NOT null THEN due.t END,
            sampled_at = due.t,
            request_count = a.request_count + due.requests,
            active_us = a.active_us + due.active_us,
            rows_written = a.rows_written + due.rows_written,
            bytes_written = a.bytes_written + due.bytes_written,
            own_bytes = coalesce(branch._own_bytes(due.db), 0),
            pinned_bytes = due.new_pinned,
            own_byte_seconds = a.own_byte_seconds + n.own_byte_seconds,
            pinned_byte_seconds = a.pinned_byte_seconds + n.pinned_byte_seconds,
            cost = a.cost + n.cost
        FROM due
        INNER JOIN totals AS n ON due.id = n.id
        WHERE a.id = due.id
        RETURNING 1
    )

    SELECT count(*) FROM counted
$$;

COMMENT ON FUNCTION branch._roll_up(integer, timestamptz)
IS 'adds up what was used since the last time, of at most so many branches, not since run_since; how many that were';

CREATE FUNCTION branch._prune_usage() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH kept AS (
        SELECT
            v.unit,
            extract(EPOCH FROM current_setting(v.setting)::interval) AS seconds
        FROM (VALUES
            ('hour', 'agent_branch.usage_retention'), ('day', 'agent_branch.usage_day_retention')
        ) AS v (unit, setting)
    ),

    old AS (
        SELECT w.account, w.unit, w.at
        FROM branch.usage_rows AS w
        INNER JOIN kept AS k ON w.unit = k.unit
        WHERE k.seconds > 0 AND w.at < clock_timestamp() - k.seconds * interval '1 second'
        LIMIT 10000
    ),

    gone AS (
        DELETE FROM branch.usage_rows AS w
        USING old AS o
        WHERE w.account = o.account AND w.unit = o.unit AND w.at = o.at
        RETURNING 1
    ),

    closed AS (
        DELETE FROM branch.accounts AS a
        USING kept AS k
        WHERE
            k.unit = 'day' AND k.seconds > 0
            AND a.id <> 0
            AND a.closed_at < clock_timestamp() - k.seconds * interval '1 second' - interval '1 day'
            AND NOT EXISTS (SELECT FROM branch.usage_rows AS w WHERE w.account = a.id)
        RETURNING a.*
    ),

    -- Totals only grow: account 0 is the sum of those that are forgotten.
    forgotten AS (
        INSERT INTO branch.accounts AS f (
            id, db, origin_at, name, owner_id, opened_at, closed_at, sampled_at,
            request_count, active_us, rows_written, bytes_written,
            own_byte_seconds, pinned_byte_seconds, cost
        )
        OVERRIDING SYSTEM VALUE
        SELECT
            0, 0, '1970-01-01 00:00:00+00', '', 0, min(c.opened_at), clock_timestamp(), clock_timestamp(),
            sum(c.request_count), sum(c.active_us), sum(c.rows_written), sum(c.bytes_written),
            sum(c.own_byte_seconds), sum(c.pinned_byte_seconds), sum(c.cost)
        FROM closed AS c
        HAVING count(*) > 0
        ON CONFLICT (id) DO UPDATE SET
            closed_at = excluded.closed_at,
            request_count = f.request_count + excluded.request_count,
            active_us = f.active_us + excluded.active_us,
            rows_written = f.rows_written + excluded.rows_written,
            bytes_written = f.bytes_written + excluded.bytes_written,
            own_byte_seconds = f.own_byte_seconds + excluded.own_byte_seconds,
            pinned_byte_seconds = f.pinned_byte_seconds + excluded.pinned_byte_seconds,
            cost = f.cost + excluded.cost
    )

    SELECT count(*) FROM gone
$$;

COMMENT ON FUNCTION branch._prune_usage() IS 'removes a batch of what is older than the settings say; how much';

REVOKE ALL ON TABLE branch.prices, branch.accounts, branch.usage_rows FROM public;

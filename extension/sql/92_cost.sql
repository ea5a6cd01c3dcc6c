-- What branches cost: history, report, budgets.

CREATE VIEW branch.usage_log WITH (security_barrier) AS
SELECT -- noqa: ST06
    w.unit,
    w.at,
    a.name, -- noqa: RF04
    a.id AS account, -- noqa: RF04
    a.labels,
    w.request_count,
    round(w.active_us / 1000000.0, 6) AS active_seconds,
    w.rows_written,
    w.bytes_written,
    round(w.own_byte_seconds / 3600 / 1073741824, 12) AS own_gb_hours,
    round(w.pinned_byte_seconds / 3600 / 1073741824, 12) AS pinned_gb_hours,
    w.cost
FROM branch.usage_rows AS w
INNER JOIN branch.accounts AS a ON w.account = a.id
WHERE
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
    OR pg_catalog.pg_has_role(a.owner_id, 'USAGE');

COMMENT ON VIEW branch.usage_log
IS 'use by the hour and by the day of the branches that the caller owns or owned, those that are gone, too';
COMMENT ON COLUMN branch.usage_log.unit IS 'hour or day: there are rows of both, of the same use';
COMMENT ON COLUMN branch.usage_log.at IS 'when that began, in UTC';
COMMENT ON COLUMN branch.usage_log.name IS 'name of the branch, the last one it had';
COMMENT ON COLUMN branch.usage_log.account IS 'number that a branch keeps through resets and renames';
COMMENT ON COLUMN branch.usage_log.labels IS 'labels of the branch, the last ones it had';
COMMENT ON COLUMN branch.usage_log.request_count IS 'statements that clients sent';
COMMENT ON COLUMN branch.usage_log.active_seconds IS 'time such statements were running, of all sessions';
COMMENT ON COLUMN branch.usage_log.rows_written IS 'rows written';
COMMENT ON COLUMN branch.usage_log.bytes_written IS 'bytes of WAL written';
COMMENT ON COLUMN branch.usage_log.own_gb_hours IS 'disk space of pages it has written, by time';
COMMENT ON COLUMN branch.usage_log.pinned_gb_hours IS 'disk space that only its snapshot needed, by time';
COMMENT ON COLUMN branch.usage_log.cost IS 'what it cost, at the prices of that time';

CREATE FUNCTION branch.usage_history(
    name text DEFAULT null,
    since timestamptz DEFAULT null,
    until timestamptz DEFAULT null,
    granularity text DEFAULT 'hour',
    OUT at timestamptz, -- noqa: RF04
    OUT request_count numeric,
    OUT active_seconds numeric,
    OUT rows_written numeric,
    OUT bytes_written numeric,
    OUT own_gb_hours numeric,
    OUT pinned_gb_hours numeric,
    OUT cost numeric
) RETURNS SETOF record
LANGUAGE agent_branch_python STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import usage
return usage.history(name, since, until, granularity)
$$;

COMMENT ON FUNCTION branch.usage_history(text, timestamptz, timestamptz, text)
IS 'use of a branch, or of all that the caller may see, by hour or day; since null: a day or a month ago';

CREATE FUNCTION branch.cost_report(
    hours_per_day numeric DEFAULT null,
    branches bigint DEFAULT null,
    gb_per_branch numeric DEFAULT null,
    instance_price_per_hour numeric DEFAULT null,
    gb_per_instance numeric DEFAULT null,
    server_price_per_month numeric DEFAULT 0,
    OUT item text,
    OUT unit text,
    OUT branches_quantity numeric,
    OUT branches_cost numeric,
    OUT instances_quantity numeric,
    OUT instances_cost numeric,
    OUT saved numeric
) RETURNS SETOF record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import usage
return usage.cost_report(
    hours_per_day, branches, gb_per_branch, instance_price_per_hour, gb_per_instance, server_price_per_month
)
$$;

COMMENT ON FUNCTION branch.cost_report(numeric, bigint, numeric, numeric, numeric, numeric)
IS 'a month of branches beside a month of one instance per agent that is always on; null: as measured';

-- Budgets.

CREATE TABLE branch.budget_list (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account bigint, -- noqa: RF04
    labels jsonb,
    period text NOT NULL CHECK (period IN ('day', 'month')),
    amount numeric NOT NULL,
    action text NOT NULL CHECK (action IN ('warn', 'suspend')), -- noqa: RF04
    warn_percent integer NOT NULL,
    warned_for timestamptz,
    exceeded_for timestamptz,
    set_by text NOT NULL DEFAULT session_user,
    set_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    system_id bigint NOT NULL DEFAULT branch._cluster()
);

CREATE UNIQUE INDEX budget_list_what_idx
ON branch.budget_list (coalesce(account, 0), coalesce(labels, 'null'), period);

COMMENT ON TABLE branch.budget_list
IS 'budgets; to be changed by branch.set_budget only, view branch.budgets shows them';
COMMENT ON COLUMN branch.budget_list.id IS 'number';
COMMENT ON SEQUENCE branch.budget_list_id_seq IS 'ids of branch.budget_list';
COMMENT ON COLUMN branch.budget_list.account IS 'account of the branch; null: of all with the labels';
COMMENT ON COLUMN branch.budget_list.labels IS 'labels of the branches together; null: of one branch';
COMMENT ON COLUMN branch.budget_list.period IS 'day or month, in UTC';
COMMENT ON COLUMN branch.budget_list.amount IS 'what they may cost in it';
COMMENT ON COLUMN branch.budget_list.action IS 'what happens when it is exceeded: warn, or suspend, too';
COMMENT ON COLUMN branch.budget_list.warn_percent IS 'share of it at which there is an event budget_warning';
COMMENT ON COLUMN branch.budget_list.warned_for IS 'beginning of the period in which that was last';
COMMENT ON COLUMN branch.budget_list.exceeded_for IS 'beginning of the period in which it was last exceeded';
COMMENT ON COLUMN branch.budget_list.set_by IS 'role that set it';
COMMENT ON COLUMN branch.budget_list.set_at IS 'when that was';
COMMENT ON COLUMN branch.budget_list.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.budget_list
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');

SELECT pg_catalog.pg_extension_config_dump('branch.budget_list', '');
SELECT pg_catalog.pg_extension_config_dump('branch.budget_list_id_seq', '');

CREATE VIEW branch._budget_use AS
SELECT
    b.id,
    date_trunc(b.period, statement_timestamp(), 'UTC') AS period_start,
    coalesce(sum(w.cost), 0) AS spent
FROM branch.budget_list AS b
LEFT JOIN branch.accounts AS a
    ON b.account = a.id OR (b.account IS null AND a.labels @> b.labels)
LEFT JOIN branch.usage_rows AS w
    ON
        a.id = w.account AND w.unit = 'day'
        AND w.at >= date_trunc(b.period, statement_timestamp(), 'UTC')
GROUP BY b.id, b.period;

COMMENT ON VIEW branch._budget_use IS 'what is spent of each budget in the present period';
COMMENT ON COLUMN branch._budget_use.id IS 'number of the budget';
COMMENT ON COLUMN branch._budget_use.period_start IS 'when the period began';
COMMENT ON COLUMN branch._budget_use.spent IS 'what its branches cost since, as added up last';

-- An account has the name of the last run, which may be another branch's by now.
CREATE VIEW branch.budgets WITH (security_barrier) AS
SELECT -- noqa: ST06
    coalesce((
        SELECT d.name::text FROM branch._databases AS d
        CROSS JOIN LATERAL branch._origin(d.oid) AS o
        WHERE d.oid = a.db AND o.created_at = a.origin_at
    ), a.name) AS name, -- noqa: RF04
    b.labels,
    b.period,
    b.amount,
    round(u.spent, 6) AS spent,
    round(100 * u.spent / nullif(b.amount, 0), 1) AS percent,
    b.action,
    b.warn_percent,
    u.period_start,
    coalesce(b.exceeded_for = u.period_start, false) AS exceeded,
    b.set_by,
    b.set_at
FROM branch.budget_list AS b
INNER JOIN branch._budget_use AS u ON b.id = u.id
LEFT JOIN branch.accounts AS a ON b.account = a.id
WHERE
    pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
    OR pg_catalog.pg_has_role(a.owner_id, 'USAGE');

COMMENT ON VIEW branch.budgets
IS 'budgets and what is spent of them, of the caller''s branches; pg_read_all_stats: all';
COMMENT ON COLUMN branch.budgets.name IS 'name of the branch; null: of all with the labels';
COMMENT ON COLUMN branch.budgets.labels IS 'labels of the branches together; {}: of all branches';
COMMENT ON COLUMN branch.budgets.period IS 'day or month, in UTC';
COMMENT ON COLUMN branch.budgets.amount IS 'what they may cost in it';
COMMENT ON COLUMN branch.budgets.spent IS 'what they cost in the present one, as job usage has added up';
COMMENT ON COLUMN branch.budgets.percent IS 'the share of it';
COMMENT ON COLUMN branch.budgets.action IS 'what happens when it is exceeded: warn, or suspend, too';
COMMENT ON COLUMN branch.budgets.warn_percent IS 'share at which there is an event budget_warning';
COMMENT ON COLUMN branch.budgets.period_start IS 'when the present period began';
COMMENT ON COLUMN branch.budgets.exceeded IS 'whether it was found exceeded in this period';
COMMENT ON COLUMN branch.budgets.set_by IS 'role that set it';
COMMENT ON COLUMN branch.budgets.set_at IS 'when that was';

CREATE FUNCTION branch._prune_budgets() RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM branch.budget_list AS b
    WHERE b.account IS NOT null AND NOT EXISTS (
        SELECT FROM branch.accounts AS a WHERE b.account = a.id AND a.closed_at IS null
    )
$$;

COMMENT ON FUNCTION branch._prune_budgets() IS 'removes budgets of branches that are gone';

CREATE FUNCTION branch._event(event text, db oid, name text, detail text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_event';

COMMENT ON FUNCTION branch._event(text, oid, text, text) IS 'says that something has happened to a branch';

CREATE FUNCTION branch.set_budget(
    name text DEFAULT null,
    labels jsonb DEFAULT null,
    amount numeric DEFAULT null,
    period text DEFAULT 'month',
    action text DEFAULT 'warn',
    warn_percent integer DEFAULT 80
) RETURNS void
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import usage
usage.set_budget(name, labels, amount, period, action, warn_percent)
$$;

COMMENT ON FUNCTION branch.set_budget(text, jsonb, numeric, text, text, integer)
IS 'what a branch, or all with some labels together, may cost in a day or month; amount null: no budget';

CREATE FUNCTION branch._job_usage(OUT done bigint, OUT again boolean) RETURNS record
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
from agent_branch import usage
return usage.roll_up()
$$;

COMMENT ON FUNCTION branch._job_usage() IS 'a batch of job usage: adds up use and cost, and looks after budgets';

REVOKE ALL ON TABLE branch.budget_list, branch._budget_use, branch._price_periods FROM public;

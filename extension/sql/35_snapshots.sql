CREATE FUNCTION branch.snapshot(
    parent text,
    name text DEFAULT null,
    keep interval DEFAULT null
) RETURNS branch.snapshots
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_snapshot';

COMMENT ON FUNCTION branch.snapshot(text, text, interval)
IS 'takes a snapshot of a database; one with a name, or with a time to keep it, is kept';

CREATE FUNCTION branch.drop_snapshot(name text, if_exists boolean DEFAULT false) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_drop_snapshot';

COMMENT ON FUNCTION branch.drop_snapshot(text, boolean)
IS 'takes a snapshot''s name away; garbage collection frees it when no branch hangs on it';

CREATE FUNCTION branch.schedule_snapshots(
    parent text,
    every interval,
    keep interval,
    name_prefix text DEFAULT null
) RETURNS branch.snapshot_schedules
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_schedule_snapshots';

COMMENT ON FUNCTION branch.schedule_snapshots(text, interval, interval, text)
IS 'has snapshots of a database taken again and again; the prefix tells several schedules of one database apart';

CREATE FUNCTION branch.unschedule_snapshots(parent text, name_prefix text DEFAULT null) RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_unschedule_snapshots';

COMMENT ON FUNCTION branch.unschedule_snapshots(text, text)
IS 'ends that, for one prefix or for all; snapshots that were taken stay as long as they were to';

CREATE FUNCTION branch.take_scheduled_snapshots(
    OUT parent_name text,
    OUT name text,
    OUT id text
) RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'ab_sql_take_scheduled_snapshots';

COMMENT ON FUNCTION branch.take_scheduled_snapshots()
IS 'takes the scheduled snapshots that are due; to be called by a scheduler, each minute';

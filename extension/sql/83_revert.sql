-- Taking merges back.
--
-- What a merge changed is written down by the transaction that has its row name the target's
-- transaction, and kept as long as agent_branch.merge_retention says; branch.gc() removes it then.
-- It has rows of tables, so it is for who merged.

CREATE TABLE branch.merge_changes (
    merge_id bigint REFERENCES branch.merge_log ON DELETE CASCADE,
    n bigint,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    shape jsonb NOT NULL,
    rows bigint NOT NULL, -- noqa: RF04
    changes text NOT NULL,
    system_id bigint NOT NULL DEFAULT branch._cluster(),
    PRIMARY KEY (merge_id, n)
);

COMMENT ON TABLE branch.merge_changes IS 'rows that merges changed, before and after, for branch.revert()';
COMMENT ON COLUMN branch.merge_changes.merge_id IS 'the merge';
COMMENT ON COLUMN branch.merge_changes.n IS 'number within the merge';
COMMENT ON COLUMN branch.merge_changes.table_schema IS 'schema of the table of the target';
COMMENT ON COLUMN branch.merge_changes.table_name IS 'the table';
COMMENT ON COLUMN branch.merge_changes.shape IS 'its columns with their types, and those of its key';
COMMENT ON COLUMN branch.merge_changes.rows IS 'how many rows this is about';
COMMENT ON COLUMN branch.merge_changes.changes
IS 'what was done to them, in each line a JSON array, or values as COPY writes them';
COMMENT ON COLUMN branch.merge_changes.system_id IS 'system identifier of the cluster that has it';

CREATE TRIGGER restored_row BEFORE INSERT ON branch.merge_changes
FOR EACH ROW EXECUTE FUNCTION branch._restored_row('here');
CREATE TRIGGER written_by_merges BEFORE INSERT OR UPDATE ON branch.merge_changes
FOR EACH STATEMENT EXECUTE FUNCTION branch._written_by_merges();
ALTER TABLE branch.merge_changes ENABLE ALWAYS TRIGGER written_by_merges;

SELECT pg_catalog.pg_extension_config_dump('branch.merge_changes', '');

ALTER TABLE branch.merge_changes ENABLE ROW LEVEL SECURITY;

CREATE POLICY see ON branch.merge_changes FOR SELECT
USING (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);
CREATE POLICY add ON branch.merge_changes FOR INSERT
WITH CHECK (
    merge_id IN (
        SELECT m.id FROM branch.merge_log AS m
        WHERE pg_catalog.pg_has_role(m.merged_by, 'USAGE')
    )
);

CREATE FUNCTION branch.revert(
    merge_id bigint,
    strategy text DEFAULT 'manual',
    message text DEFAULT null,
    strategies jsonb DEFAULT '{}',
    fire_triggers boolean DEFAULT true,
    dry_run boolean DEFAULT false
) RETURNS branch.merge_result
LANGUAGE agent_branch_python VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $$
from agent_branch import reverting
return reverting.revert(merge_id, strategy, message, strategies, fire_triggers, dry_run)
$$;

COMMENT ON FUNCTION branch.revert(bigint, text, text, jsonb, boolean, boolean)
IS 'takes a merge back: what nobody has changed since goes back, the rest are conflicts, as of branch.merge()';

REVOKE ALL ON TABLE branch.merge_changes FROM public;

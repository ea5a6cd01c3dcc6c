-- branch.revert: merges taken back, conflicts with what came since, what cannot be taken back.
\set SHOW_CONTEXT never
CREATE ROLE regress_reverter;
CREATE DATABASE revert_main;
\c revert_main
SET client_min_messages = warning;
CREATE TABLE item (id int PRIMARY KEY, a text UNIQUE, b int, twice int GENERATED ALWAYS AS (b * 2) STORED);
INSERT INTO item (id, a, b) SELECT x.n, 'a' || x.n AS a, x.n AS b FROM generate_series(1, 8) AS x (n);
CREATE TABLE bag (x int);
INSERT INTO bag VALUES (1), (1), (2);
CREATE TABLE person (id int PRIMARY KEY, friend int NOT NULL REFERENCES person);
INSERT INTO person VALUES (1, 1);
-- what triggers make of rows is what goes back
CREATE TABLE stamped (id int PRIMARY KEY, v text, stamp text DEFAULT 'none');
CREATE SEQUENCE stamps;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN new.stamp = 'stamp ' || nextval('public.stamps'); RETURN new; END $$;
INSERT INTO stamped VALUES (1, 'one'), (2, 'two');
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION stamp();
\c postgres
SELECT name FROM branch.create('revert_b', 'revert_main');
\c revert_b
UPDATE item SET a = CASE id WHEN 1 THEN 'x' ELSE 'a1' END, b = b + 10 WHERE id = 1;
UPDATE item SET a = 'a1' WHERE id = 2;
UPDATE item SET b = 30 WHERE id IN (3, 4);
DELETE FROM item WHERE id IN (5, 6);
INSERT INTO item (id, a, b) VALUES (20, 'new', 20), (21, 'newer', 21);
INSERT INTO bag VALUES (1), (9);
DELETE FROM bag WHERE x = 2;
INSERT INTO person VALUES (2, 3), (3, 2);
UPDATE stamped SET v = 'uno' WHERE id = 1;
INSERT INTO stamped VALUES (3, 'three');
\c postgres
SELECT merge_id AS m, rows_applied, conflicts FROM branch.merge('revert_b') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts;
SELECT table_name, rows, changes FROM branch.merge_changes WHERE merge_id = :m AND table_name <> 'stamped' ORDER BY n;

-- nobody has changed anything since: all goes back, also when the source is no more
SELECT rows_applied, conflicts, message FROM branch.revert(:m, dry_run => true);
SELECT merge_id AS back, rows_applied, conflicts, message FROM branch.revert(:m, message => 'back') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT source_name, target_name, state, message, reverts = :m AS reverts FROM branch.merges WHERE id >= :m ORDER BY id;
\c revert_main
SELECT * FROM item ORDER BY id; SELECT * FROM bag ORDER BY x; SELECT * FROM person; SELECT id, v FROM stamped ORDER BY id;
\c postgres
-- once; a revert can be taken back itself
\set VERBOSITY sqlstate
SELECT branch.revert(:m);
\set VERBOSITY default
SELECT merge_id AS m, rows_applied, conflicts FROM branch.revert(:back) \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts;
-- what was taken back is the target's own change: merging again does not bring it, sync takes it to the branch
SELECT rows_applied FROM branch.revert(:m);
SELECT rows_applied, conflicts FROM branch.merge('revert_b');
SELECT rows_applied, conflicts FROM branch.sync('revert_b');
SELECT * FROM branch.diff_summary('revert_b');

-- rows that changed since
\c revert_b
UPDATE item SET a = 'theirs ' || id WHERE id IN (1, 2, 3);
DELETE FROM item WHERE id = 4;
INSERT INTO item (id, a, b) VALUES (30, 'thirty', 30);
DELETE FROM bag WHERE x = 1;
INSERT INTO bag VALUES (5);
\c postgres
SELECT merge_id AS m, rows_applied, conflicts FROM branch.merge('revert_b') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts;
\c revert_main
UPDATE item SET a = 'later' WHERE id = 1;
UPDATE item SET b = 222 WHERE id = 2;
INSERT INTO item (id, a, b) VALUES (4, 'other', 4);
UPDATE item SET b = 31 WHERE id = 30;
DELETE FROM item WHERE id = 3;
\c postgres
SELECT merge_id AS back, rows_applied, conflicts, message FROM branch.revert(:m) \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT table_name, kind, key, columns, base_row, our_row, their_row FROM branch.conflict_rows(:back) ORDER BY key;
SELECT state, reverts = :m AS reverts FROM branch.merges WHERE id = :back;
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:back, 'theirs');
SELECT state FROM branch.merges WHERE id >= :back ORDER BY id;
\c revert_main
SELECT * FROM item ORDER BY id; SELECT * FROM bag ORDER BY x;

-- constraints refuse it as they do any merge
\c revert_b
DELETE FROM item WHERE id = 7;
\c postgres
SELECT rows_applied, conflicts FROM branch.merge('revert_b', strategy => 'ours');
SELECT max(id) AS m FROM branch.merge_log \gset
\c revert_main
ALTER TABLE item ADD CONSTRAINT few CHECK (id <> 7);
\c postgres
SELECT merge_id AS back, rows_applied, conflicts FROM branch.revert(:m) \gset
SELECT kind, key, their_row, constraint_name FROM branch.conflict_rows(:back);
\c revert_main
ALTER TABLE item DROP CONSTRAINT few;
-- the table is another one now
ALTER TABLE item ALTER COLUMN a TYPE varchar(10);
\c postgres
SELECT merge_id AS back FROM branch.revert(:m) \gset
SELECT table_name, kind, detail FROM branch.conflict_rows(:back);
\c revert_main
ALTER TABLE item ALTER COLUMN a TYPE text;
ALTER TABLE item DROP CONSTRAINT item_pkey;
ALTER TABLE item ADD PRIMARY KEY (id, b);
\c postgres
SELECT merge_id AS back FROM branch.revert(:m, 'theirs') \gset
SELECT table_name, kind, detail FROM branch.conflict_rows(:back);
\c revert_main
ALTER TABLE item RENAME TO items;
\c postgres
SELECT merge_id AS back FROM branch.revert(:m) \gset
SELECT table_name, kind, detail FROM branch.conflict_rows(:back);
\c revert_main
ALTER TABLE items RENAME TO item;
ALTER TABLE item ADD extra int DEFAULT 5;
ALTER TABLE item DROP CONSTRAINT item_pkey;
ALTER TABLE item ADD PRIMARY KEY (id);
\c postgres
SELECT rows_applied, conflicts FROM branch.revert(:m);

-- merges into branches, too
\c revert_main
INSERT INTO bag VALUES (1000);
\c postgres
SELECT merge_id AS m, rows_applied FROM branch.sync('revert_b', 'ours', schema => 'ignore') \gset
SELECT rows_applied, conflicts FROM branch.revert(:m);
\c revert_b
SELECT count(*) FROM bag WHERE x = 1000;
\c postgres

-- who did not merge; arguments; what is not kept
SET ROLE regress_reverter;
SELECT count(*) FROM branch.merge_changes;
\set VERBOSITY sqlstate
SELECT branch.revert(:m);
\set VERBOSITY default
RESET ROLE;
SELECT branch.revert(NULL);
SELECT branch.revert(:m, 'hope');
SELECT merge_id AS m FROM branch.merge('revert_b', strategy => 'ours', schema => 'ignore') \gset
UPDATE branch.merge_log SET started_at = started_at - interval '31 days' WHERE id = :m;
SELECT count(*) >= 0 AS done FROM branch.gc();
\set VERBOSITY sqlstate
SELECT branch.revert(:m);
\set VERBOSITY default
SELECT branch.delete('revert_b', hard => true);
DROP DATABASE revert_main;
\set VERBOSITY sqlstate
SELECT branch.revert(:m);
DROP ROLE regress_reverter;

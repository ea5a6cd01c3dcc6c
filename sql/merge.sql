-- branch.merge: every kind of conflict with its rows, constraints in circles, triggers, policies.
\set SHOW_CONTEXT never
CREATE ROLE regress_merger;
CREATE DATABASE merge_main;
\c merge_main
SET client_min_messages = warning;
CREATE EXTENSION btree_gist;
CREATE TABLE item (id int PRIMARY KEY, a text, b int, twice int GENERATED ALWAYS AS (b * 2) STORED);
INSERT INTO item (id, a, b) VALUES (1, 'a1', 1), (2, 'a2', 2), (3, 'a3', 3), (4, 'a4', 4), (5, 'a5', 5);
INSERT INTO item (id, a, b) VALUES (6, 'a6', 6), (7, 'a7', 7), (8, 'a8', 8), (10, 'a10', 10), (11, 'a11', 11);
CREATE TABLE bag (x int);
INSERT INTO bag VALUES (1), (1), (2), (3);
-- circles, self-references, what can be deferred and what cannot
CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE egg (id int PRIMARY KEY, hen int REFERENCES hen);
ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY IMMEDIATE;
CREATE TABLE node (id int PRIMARY KEY, up int NOT NULL REFERENCES node);
CREATE TABLE place (id int PRIMARY KEY, rank int NOT NULL UNIQUE, code text UNIQUE DEFERRABLE);
INSERT INTO place VALUES (1, 10, 'x'), (2, 20, 'y'), (3, 30, 'z');
CREATE TABLE room (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
CREATE TABLE person (id int PRIMARY KEY, name text NOT NULL UNIQUE, age int CHECK (age >= 0));
INSERT INTO person VALUES (1, 'ann', 30), (2, 'bob', 40), (3, 'cat', 50);
CREATE TABLE pet (id int PRIMARY KEY, owner int REFERENCES person, toy int);
CREATE TABLE invoice (id int PRIMARY KEY, person int NOT NULL REFERENCES person ON DELETE CASCADE);
CREATE TABLE late (id int PRIMARY KEY, person int REFERENCES person DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE watched (id serial PRIMARY KEY, v text);
CREATE TABLE seen (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO seen VALUES (format('%s %s %s', tg_op, coalesce(new.v, old.v), current_setting('datestyle')));
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON watched FOR EACH ROW EXECUTE FUNCTION note();
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF old.v = 'keep' THEN RETURN NULL; END IF; RETURN old; END $$;
CREATE TRIGGER keep BEFORE DELETE ON watched FOR EACH ROW EXECUTE FUNCTION keep();
CREATE TRIGGER off AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION note();
ALTER TABLE watched DISABLE TRIGGER off;
INSERT INTO watched (v) VALUES ('one'), ('keep');
TRUNCATE seen;
GRANT ALL ON ALL TABLES IN SCHEMA public TO regress_merger;
\c postgres
SELECT name FROM branch.create('merge_b', 'merge_main');

-- rows and columns
\c merge_b
UPDATE item SET a = 'theirs' WHERE id IN (1, 2, 3);
UPDATE item SET b = 100 WHERE id = 4;
DELETE FROM item WHERE id IN (5, 6, 7);
INSERT INTO item VALUES (21, 'theirs', 1), (22, 'same', 2), (23, 'new', 3);
UPDATE item SET a = 'theirs', b = 0 WHERE id = 8;
INSERT INTO bag VALUES (1), (9);
DELETE FROM bag WHERE x = 2;
\c merge_main
UPDATE item SET a = 'ours' WHERE id = 1;
UPDATE item SET b = 200 WHERE id = 2;
DELETE FROM item WHERE id IN (3, 6);
UPDATE item SET a = 'ours' WHERE id IN (4, 5);
INSERT INTO item VALUES (21, 'ours', 1), (22, 'same', 2);
UPDATE item SET a = 'ours', b = 300 WHERE id = 8;
DELETE FROM bag WHERE x = 3;
\c postgres
SELECT table_name, rows_inserted, rows_updated, rows_deleted, conflicts, note FROM branch.preview_merge('merge_b');
SELECT fast_forward, rows_applied, conflicts, message FROM branch.merge('merge_b', dry_run => true);
SELECT count(*) FROM branch.merges WHERE source_name = 'merge_b';
SELECT merge_id AS m, fast_forward, rows_applied, conflicts, message FROM branch.merge('merge_b', message => 'first') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT table_name, kind, key, columns, base_row, our_row, their_row FROM branch.conflicts
WHERE target_name = 'merge_main' ORDER BY key;
\c merge_main
SELECT sum(b) AS unchanged FROM item;
\c postgres
-- some of them for ours, the rest for theirs
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'ours', '{bag}');
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs');
SELECT key, resolution FROM branch.conflict_rows(:m) ORDER BY key;
SELECT state, message, conflicts FROM branch.merges WHERE source_name = 'merge_b' ORDER BY id;
\c merge_main
SELECT * FROM item WHERE id IN (1, 2, 3, 4, 5, 6, 7, 8) OR id > 20 ORDER BY id;
SELECT bag.x FROM bag ORDER BY bag.x;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
SELECT rows_applied, conflicts, message FROM branch.sync('merge_b');
SELECT * FROM branch.diff_summary('merge_b');

-- constraints: circles, swaps, chains
\c merge_b
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
INSERT INTO hen VALUES (1, 1), (2, 2);
INSERT INTO egg VALUES (1, 2), (2, 1);
COMMIT;
INSERT INTO node VALUES (1, 1), (2, 1), (3, 2);
UPDATE node SET up = 3 WHERE id = 1;
UPDATE place SET rank = -1 WHERE id = 1;
UPDATE place SET rank = 10 WHERE id = 2;
UPDATE place SET rank = 20 WHERE id = 1;
BEGIN;
SET CONSTRAINTS ALL DEFERRED;
UPDATE place SET code = CASE code WHEN 'x' THEN 'z' ELSE 'x' END WHERE code <> 'y';
COMMIT;
DELETE FROM place WHERE id = 3;
INSERT INTO place VALUES (4, 30, 'w');
INSERT INTO room VALUES (1, '[1,5)'), (2, '[5,9)');
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
\c merge_main
SELECT * FROM hen; SELECT * FROM egg; SELECT * FROM node ORDER BY id; SELECT * FROM place ORDER BY id;
\c merge_b
BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM egg; DELETE FROM hen; COMMIT;
DELETE FROM node;
UPDATE room SET during = '[20,30)' WHERE id = 1;
UPDATE room SET during = '[1,9)' WHERE id = 2;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
SELECT * FROM branch.diff_summary('merge_b');

-- constraints that refuse: unique, check, foreign keys (also deferred), exclusion, not null
\c merge_b
INSERT INTO person VALUES (4, 'dan', 10), (5, 'eve', 20);
DELETE FROM person WHERE id = 2;
INSERT INTO pet VALUES (1, 1, 1), (2, 3, 2);
INSERT INTO late VALUES (1, 3), (2, 1);
INSERT INTO room VALUES (3, '[40,50)'), (4, '[60,70)');
UPDATE person SET age = 5 WHERE id = 1;
\c merge_main
INSERT INTO person VALUES (9, 'dan', 99);
ALTER TABLE person ADD CONSTRAINT adult CHECK (age >= 18);
INSERT INTO invoice VALUES (1, 2);
DELETE FROM person WHERE id = 3;
INSERT INTO room VALUES (9, '[45,46)');
\c postgres
SELECT merge_id AS m, rows_applied, conflicts, message FROM branch.merge('merge_b') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts;
SELECT table_name, kind, key, our_row, their_row, constraint_name, detail FROM branch.conflict_rows(:m)
ORDER BY table_name, constraint_name, key;
\c merge_main
SELECT * FROM person ORDER BY id;
\c postgres
-- nobody can decide them for theirs; a deferred one has no row
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs', '{person,pet,room}');
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', strategy => 'theirs');
\c merge_b
DELETE FROM late WHERE id = 1;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', strategy => 'ours');
\c merge_main
SELECT * FROM person ORDER BY id; SELECT * FROM pet; SELECT * FROM invoice; SELECT * FROM room ORDER BY id; SELECT * FROM late;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');

-- triggers of the target; sequences
\c merge_b
INSERT INTO watched (v) VALUES ('two');
UPDATE watched SET v = 'uno' WHERE id = 1;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
\c merge_main
SELECT * FROM seen; TRUNCATE seen;
SELECT last_value, is_called FROM watched_id_seq;
\c merge_b
INSERT INTO watched (v) VALUES ('three');
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', fire_triggers => false);
\c merge_main
SELECT * FROM seen;
SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'watched'::regclass ORDER BY tgname;
\c merge_b
ALTER TABLE watched DISABLE TRIGGER keep;
DELETE FROM watched WHERE v = 'keep';
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
SELECT table_name, kind, detail FROM branch.conflicts WHERE kind = 'suppressed';
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', strategies => '{"watched": "theirs"}');

-- files rewritten, columns and keys changed on either side: right, and it says why it read more
\c merge_b
UPDATE item SET b = 1000 WHERE id = 10;
VACUUM FULL item;
UPDATE bag SET x = 77 WHERE x = 9;
CLUSTER place USING place_pkey;
DELETE FROM place WHERE id = 4;
\c merge_main
UPDATE item SET a = 'again' WHERE id = 10;
ALTER TABLE item ADD extra int DEFAULT 7;
TRUNCATE bag;
INSERT INTO bag VALUES (5);
\c postgres
SELECT * FROM branch.preview_merge('merge_b');
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b');
SELECT note FROM branch.merges ORDER BY id DESC LIMIT 1;
\c merge_main
SELECT * FROM item WHERE id = 10; SELECT * FROM bag; SELECT * FROM place ORDER BY id;
ALTER TABLE place DROP CONSTRAINT place_pkey;
ALTER TABLE place ADD PRIMARY KEY (rank);
\c merge_b
UPDATE place SET code = 'new' WHERE id = 1;
ALTER TABLE item ADD only_here int;
UPDATE item SET b = 5 WHERE id = 11;
CREATE TABLE fresh (id int PRIMARY KEY);
\c postgres
SELECT table_name, rows_inserted, rows_updated, rows_deleted, conflicts, note FROM branch.preview_merge('merge_b');
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', strategy => 'theirs');
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', schema => 'ignore');
\c merge_main
SELECT * FROM place ORDER BY id; SELECT * FROM item WHERE id = 11;

-- row security, rights
ALTER TABLE person ENABLE ROW LEVEL SECURITY;
CREATE POLICY visible ON person USING (id > 100);
\c merge_b
INSERT INTO person VALUES (50, 'fay', 60);
\c postgres
ALTER DATABASE merge_b OWNER TO regress_merger;
SET ROLE regress_merger;
SELECT branch.merge('merge_b', 'merge_main', schema => 'ignore');
\echo :LAST_ERROR_SQLSTATE
RESET ROLE;
SELECT rows_applied, conflicts, message FROM branch.merge('merge_b', schema => 'ignore');
\c merge_b
INSERT INTO bag VALUES (1234);
\c merge_main
REVOKE ALL ON bag FROM regress_merger;
\c postgres
SET ROLE regress_merger;
SELECT branch.merge('merge_b', 'merge_main', schema => 'ignore');
\echo :LAST_ERROR_SQLSTATE
SELECT state FROM branch.merges WHERE source_name = 'merge_b' ORDER BY id DESC LIMIT 1;
\set VERBOSITY sqlstate
SELECT count(*) FROM branch.conflict_rows(:m);
\set VERBOSITY default
RESET ROLE;

-- arguments
SELECT branch.merge('merge_b', strategy => 'hope');
SELECT branch.merge('merge_b', strategies => '{"item": "hope"}');
SELECT branch.merge('merge_b', strategies => '[]');
SELECT branch.merge('merge_b', schema => 'any');
SELECT branch.merge('merge_b', 'merge_b');
SELECT branch.merge('merge_b', 'template1');
SELECT branch.merge('merge_main');
SELECT branch.merge(NULL);
SELECT branch.merge('merge_nobody', 'merge_main');
SELECT branch.conflicts_resolve(:m, 'both');
SELECT branch.conflicts_resolve(NULL, 'ours');

-- the seed's names
SELECT sync_branch_data('merge_main', 'merge_b');
SELECT rows_applied, conflicts FROM merge_branch_data('merge_b', 'merge_main');
SELECT branch.delete('merge_b', hard => true);
DROP DATABASE merge_main;
DROP ROLE regress_merger;

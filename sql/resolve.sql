-- branch.conflicts_resolve: what a merge has found is written at once; if that does not fit, row by row.
\set SHOW_CONTEXT never
CREATE DATABASE resolve_main;
\c resolve_main
SET client_min_messages = warning;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE many (
    id int, sub text, a text, m mood, j jsonb, l text[], twice int GENERATED ALWAYS AS (id * 2) STORED,
    always int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (sub, id)
);
INSERT INTO many (id, sub, a) SELECT x.n, 'k"' || x.n AS sub, 'a' AS a FROM generate_series(1, 12) AS x (n);
UPDATE many SET m = 'sad', j = 'null', l = '{}';
CREATE TABLE place (id int PRIMARY KEY, rank int NOT NULL UNIQUE);
INSERT INTO place VALUES (1, 10), (2, 20), (3, 30);
CREATE TABLE person (id int PRIMARY KEY, age int);
INSERT INTO person VALUES (1, 1), (2, 2), (3, 3);
CREATE TABLE pet (id int PRIMARY KEY, owner int NOT NULL REFERENCES person ON DELETE CASCADE);
INSERT INTO pet VALUES (1, 1);
CREATE TABLE watched (id int PRIMARY KEY, v text);
INSERT INTO watched VALUES (1, 'one');
CREATE TABLE seen (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.seen VALUES (old.v || ' ' || new.v); RETURN new; END $$;
CREATE TRIGGER note AFTER UPDATE ON watched FOR EACH ROW EXECUTE FUNCTION note();
CREATE SEQUENCE counter;
\c postgres
SELECT name FROM branch.create('resolve_b', 'resolve_main');

-- every kind of conflict, beside changes that are none; all types as they are
\c resolve_b
ALTER TABLE watched DISABLE TRIGGER note;
UPDATE many SET a = 'theirs', m = 'happy', l = '{x,NULL,"y z"}' WHERE id IN (1, 2);
UPDATE many SET j = '{"a": [1, null]}' WHERE id = 3;
DELETE FROM many WHERE id IN (4, 5);
UPDATE many SET a = 'theirs' WHERE id IN (6, 7);
DELETE FROM many WHERE id = 8;
INSERT INTO many (id, sub, a) VALUES (20, '', 'theirs'), (21, '', E'the\nirs\\'), (22, '', 'new');
SELECT nextval('counter');
SELECT nextval('counter');
UPDATE person SET age = 10;
\c resolve_main
UPDATE many SET a = 'ours' WHERE id IN (1, 2, 4, 5);
DELETE FROM many WHERE id IN (6, 7);
UPDATE many SET a = 'ours' WHERE id = 9;
INSERT INTO many (id, sub, a) VALUES (20, '', 'ours'), (21, '', NULL);
UPDATE person SET age = 20 WHERE id = 1;
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b') \gset
SELECT table_name, kind, key, columns, resolution FROM branch.conflict_rows(:m) ORDER BY table_name, key;
-- what comes in the source now is for the next merge
\c resolve_b
UPDATE many SET a = 'later' WHERE id IN (1, 12);
\c postgres
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'ours', '{person}');
SELECT merge_id AS r, rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT state, rows_inserted, rows_updated, rows_deleted, conflicts FROM branch.merges WHERE id IN (:m, :r) ORDER BY id;
SELECT table_name, kind, key, resolution FROM branch.conflict_rows(:r) ORDER BY table_name, key;
\c resolve_main
SELECT * FROM many ORDER BY id; SELECT * FROM person ORDER BY id;
SELECT last_value FROM counter;
\c postgres
SELECT rows_applied, conflicts FROM branch.revert(:r);
\c resolve_main
SELECT id, sub, a, m, j, l, twice FROM many ORDER BY id; SELECT * FROM person ORDER BY id;
\c postgres
SELECT max(id) AS r FROM branch.merge_log \gset
SELECT rows_applied, conflicts FROM branch.revert(:r);
SELECT rows_applied, conflicts FROM branch.merge('resolve_b');
\c resolve_main
SELECT id, a FROM many WHERE id IN (1, 12) ORDER BY id;

-- the target has gone on: a conflict anew, and what the source has by now
UPDATE many SET a = 'ours' WHERE id IN (2, 3);
\c resolve_b
UPDATE many SET a = 'again' WHERE id IN (2, 3);
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b') \gset
\c resolve_main
UPDATE many SET a = 'ours, later' WHERE id = 3;
\c resolve_b
UPDATE many SET a = 'again and again' WHERE id = 11;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs');
SELECT max(id) AS m FROM branch.merge_log \gset
SELECT kind, key, our_row ->> 'a' AS ours, resolution FROM branch.conflict_rows(:m) ORDER BY key;
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'ours');
\c resolve_main
SELECT id, a FROM many WHERE id IN (2, 3, 11) ORDER BY id;

-- what takes care: values that are swapped, triggers, rows that would be taken along, a constraint
\c resolve_b
BEGIN;
UPDATE place SET rank = -1 WHERE id = 1;
UPDATE place SET rank = 10 WHERE id = 2;
UPDATE place SET rank = 20 WHERE id = 1;
COMMIT;
UPDATE person SET age = 11 WHERE id = 2;
UPDATE watched SET v = 'theirs';
\c resolve_main
UPDATE person SET age = 12 WHERE id = 2;
UPDATE watched SET v = 'ours';
TRUNCATE seen;
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b', fire_triggers => false) \gset
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs');
\c resolve_main
SELECT * FROM place ORDER BY id; SELECT * FROM seen;
\c resolve_b
UPDATE person SET age = 13 WHERE id = 2;
DELETE FROM pet;
DELETE FROM person WHERE id = 1;
UPDATE watched SET v = 'told';
\c resolve_main
UPDATE person SET age = 14 WHERE id = 2;
INSERT INTO pet VALUES (2, 1);
TRUNCATE seen;
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b') \gset
SELECT merge_id AS m, rows_applied, conflicts FROM branch.conflicts_resolve(:m, 'theirs') \gset
SELECT table_name, kind, key, our_row, constraint_name, resolution FROM branch.conflict_rows(:m) ORDER BY table_name, kind, key;
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'ours');
\c resolve_main
SELECT * FROM person ORDER BY id; SELECT * FROM pet ORDER BY id; SELECT * FROM seen;
\c resolve_b
UPDATE person SET age = 15 WHERE id = 2;
UPDATE many SET a = 'refused' WHERE id = 10;
DELETE FROM person WHERE id = 3;
\c resolve_main
UPDATE person SET age = 16 WHERE id IN (2, 3);
INSERT INTO pet VALUES (3, 3);
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b') \gset
\c resolve_main
ALTER TABLE many ADD CONSTRAINT good CHECK (a <> 'refused');
\c postgres
SELECT merge_id AS m, rows_applied, conflicts FROM branch.conflicts_resolve(:m, 'theirs') \gset
SELECT table_name, kind, key, constraint_name, resolution FROM branch.conflict_rows(:m) ORDER BY table_name, kind, key;
\c resolve_main
SELECT id, age FROM person WHERE id = 2;

-- who may make no temporary tables
ALTER TABLE many DROP CONSTRAINT good;
CREATE ROLE regress_resolver;
REVOKE ALL ON DATABASE resolve_main FROM public;
GRANT CONNECT ON DATABASE resolve_main TO regress_resolver;
GRANT ALL ON ALL TABLES IN SCHEMA public TO regress_resolver;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO regress_resolver;
\c resolve_b
GRANT ALL ON ALL TABLES IN SCHEMA public TO regress_resolver;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO regress_resolver;
\c postgres
SELECT rows_applied FROM branch.merge('resolve_b', strategy => 'ours');
\c resolve_b
UPDATE person SET age = 17 WHERE id = 2;
\c resolve_main
UPDATE person SET age = 18 WHERE id = 2;
\c postgres
ALTER DATABASE resolve_b OWNER TO regress_resolver;
SET ROLE regress_resolver;
SELECT merge_id AS m, conflicts FROM branch.merge('resolve_b', 'resolve_main') \gset
SELECT rows_applied, conflicts FROM branch.conflicts_resolve(:m, 'theirs');
RESET ROLE;
SELECT branch.delete('resolve_b', hard => true);
DROP DATABASE resolve_main;
DROP ROLE regress_resolver;

-- What a branch has added to the schema, brought into its parent with the rows.
-- noqa: disable=AL03,AL08,AM05,AM06,CP02,CP03,LT05,RF05,ST09
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE DATABASE additive_main;
\c additive_main
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE TABLE item (id int PRIMARY KEY, v int, m mood);
INSERT INTO item SELECT g, g, 'sad' FROM generate_series(1, 6) AS g;
CREATE FUNCTION old() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE TABLE bag (x int);
\c postgres
SELECT name FROM branch.create('additive_b', 'additive_main');
\c additive_b
CREATE SCHEMA "New one";
CREATE TYPE "New one".pair AS (a int, b text);
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE FUNCTION twice(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i * 2';
CREATE TABLE "New one".ord (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item int REFERENCES item, n serial, p "New one".pair,
    q posint DEFAULT twice(4), g int GENERATED ALWAYS AS (twice(4)) STORED,
    note text CONSTRAINT not_bad CHECK (note <> 'bad'), UNIQUE (n)
);
ALTER TABLE "New one".ord ALTER note SET STORAGE EXTERNAL;
INSERT INTO "New one".ord (item, p, note) SELECT g, ROW(g, 'x')::"New one".pair, 'n' || g FROM generate_series(1, 3) AS g;
CREATE INDEX ord_note ON "New one".ord (note);
CREATE TABLE log (x int);
INSERT INTO log VALUES (1), (1), (2);
ALTER TABLE log ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON log FOR SELECT TO pg_monitor USING (x < 2);
GRANT SELECT ON log TO pg_monitor;
REVOKE ALL ON FUNCTION twice(int) FROM PUBLIC;
COMMENT ON TABLE log IS 'it''s a log';
COMMENT ON COLUMN "New one".ord.note IS 'short';
ALTER TABLE item ADD COLUMN c int DEFAULT 7, ADD COLUMN d timestamptz NOT NULL DEFAULT now(), ADD COLUMN e text;
UPDATE item SET c = 8, e = 'e' WHERE id <= 2;
INSERT INTO item VALUES (100, 1, 'sad', 9);
ALTER TABLE item ADD COLUMN k uuid DEFAULT gen_random_uuid(), ADD COLUMN must int;
UPDATE item SET must = id;
ALTER TABLE item ALTER must SET NOT NULL;
CREATE INDEX item_c ON item (c);
ALTER TABLE item ADD CONSTRAINT small CHECK (v < 100);
CREATE VIEW bigger AS SELECT o.id, i.c FROM item AS i JOIN "New one".ord AS o ON o.item = i.id;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM item;
ALTER TYPE mood ADD VALUE 'mad' BEFORE 'glad';
ALTER TYPE mood ADD VALUE 'zen';
UPDATE item SET m = 'mad' WHERE id = 5;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := NEW.note || ''!''; RETURN NEW; END';
CREATE TRIGGER shouting BEFORE INSERT ON "New one".ord FOR EACH ROW EXECUTE FUNCTION shout();
CREATE STATISTICS both_of ON id, item FROM "New one".ord;
COMMENT ON STATISTICS both_of IS 'of both';
COMMENT ON TRIGGER shouting ON "New one".ord IS 'loud';
COMMENT ON POLICY few ON log IS 'not many';
COMMENT ON CONSTRAINT not_bad ON "New one".ord IS 'good';
CREATE EXTENSION hstore;  -- has a comment
\c additive_main
UPDATE item SET v = 99 WHERE id = 2;
CREATE VIEW mine AS SELECT id FROM item;
\c postgres

-- without being asked
SELECT rows_applied, conflicts FROM branch.merge('additive_b');
-- what would happen
SELECT table_name, rows_inserted, rows_updated, conflicts FROM branch.preview_merge('additive_b', schema => 'additive') ORDER BY 1;
SELECT count(*) FROM branch.schema_diff('additive_b', 'additive_main') WHERE diff_type = 'added';

-- it happens
SELECT rows_applied, conflicts, message FROM branch.merge('additive_b', schema => 'additive');
SELECT object_type, object_name, diff_type FROM branch.schema_diff('additive_b', 'additive_main');
SELECT from_row ->> 'v' AS v, to_row ->> 'v' AS w FROM branch.diff('additive_b', 'additive_main', 'item');
SELECT table_name, rows_modified FROM branch.diff_summary('additive_b', 'additive_main');
\c additive_main
SELECT * FROM "New one".ord ORDER BY id;
SELECT id, v, m, c, e, must FROM item ORDER BY id;
SELECT * FROM bigger ORDER BY id;
SELECT n FROM counted;
SELECT x FROM log ORDER BY x;
SELECT obj_description('log'::regclass), has_table_privilege('pg_monitor', 'log', 'SELECT') AS may;
INSERT INTO "New one".ord (item, note) VALUES (3, 'x') RETURNING id, n, note;
INSERT INTO "New one".ord (item, note) VALUES (33, 'x');
\c postgres
SELECT rows_applied, message FROM branch.merge('additive_b', schema => 'additive');

-- what is no addition stops it all
\c additive_b
CREATE TABLE more (id int PRIMARY KEY);
INSERT INTO more VALUES (1);
CREATE OR REPLACE FUNCTION old() RETURNS int LANGUAGE sql AS 'SELECT 2';
DROP VIEW bigger;
ALTER TABLE item ALTER v TYPE bigint;
CREATE TABLE parted (i int) PARTITION BY RANGE (i);
CREATE TABLE part PARTITION OF parted FOR VALUES FROM (1) TO (5);
CREATE TABLE twofold (a int);
\c additive_main
CREATE TABLE twofold (b int);
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('additive_b', schema => 'additive');
SELECT kind, table_name, detail FROM branch.conflict_rows((SELECT max(id) FROM branch.merges)) ORDER BY detail;
SELECT table_name, conflicts, note FROM branch.preview_merge('additive_b', schema => 'additive');
\c additive_main
SELECT to_regclass('more');

-- and so does what the target's rows do not allow
\c postgres
SELECT name FROM branch.create('additive_c', 'additive_main');
\c additive_c
CREATE TABLE more (id int PRIMARY KEY);
ALTER TABLE item ADD CONSTRAINT smaller CHECK (v < 1000);
\c additive_main
ALTER TABLE item DROP CONSTRAINT small;
UPDATE item SET v = 2000 WHERE id = 1;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('additive_c', schema => 'additive');
SELECT kind, table_name, detail FROM branch.conflict_rows((SELECT max(id) FROM branch.merges)) ORDER BY detail;
\c additive_c
ALTER TABLE item DROP CONSTRAINT smaller;
ALTER TABLE bag ADD COLUMN y int DEFAULT 3;
\c postgres
SELECT rows_applied, conflicts, message FROM branch.merge('additive_c', schema => 'additive');
SELECT kind, table_name, detail FROM branch.conflict_rows((SELECT max(id) FROM branch.merges)) ORDER BY detail;
\c additive_main
SELECT to_regclass('more');
\c postgres
SELECT count(branch.delete(name, hard => true)) FROM (VALUES ('additive_c'), ('additive_b')) AS b (name);
DROP DATABASE additive_main;

-- branch.schema_diff: objects that a branch has other than its parent.
-- noqa: disable=AL03,CP05,RF05,LT01
\set SHOW_CONTEXT never

CREATE ROLE regress_sd_owner;
CREATE ROLE regress_sd_reader;
CREATE DATABASE sd_main;
\c sd_main
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CONSTRAINT above CHECK (value > 0);
CREATE TYPE span AS RANGE (SUBTYPE = numeric);
CREATE TABLE kept (id int PRIMARY KEY, v text, m mood DEFAULT 'sad', c citext);
CREATE TABLE changed (
    id serial PRIMARY KEY, v varchar(10) NOT NULL, w int DEFAULT 1, n numeric GENERATED ALWAYS AS (w * 2) STORED,
    gone text, CONSTRAINT w_small CHECK (w < 100)
);
CREATE TABLE dropped (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz DEFAULT now());
CREATE TABLE list (k int, v text) PARTITION BY LIST (k);
CREATE TABLE list_1 PARTITION OF list FOR VALUES IN (1);
CREATE INDEX changed_v ON changed (v);
CREATE INDEX changed_w ON changed (w) WHERE w > 5;
CREATE FUNCTION f(a int, b text DEFAULT 'x') RETURNS int LANGUAGE sql RETURN a + 1;
CREATE FUNCTION f(a text) RETURNS int LANGUAGE sql RETURN 1;
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE PROCEDURE p(a int) LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE VIEW seen AS SELECT id, v FROM kept;
CREATE MATERIALIZED VIEW stored AS SELECT id FROM kept;
CREATE TRIGGER before_change BEFORE UPDATE ON changed FOR EACH ROW EXECUTE FUNCTION trg();
CREATE TRIGGER off BEFORE INSERT ON changed FOR EACH ROW EXECUTE FUNCTION trg();
CREATE RULE quiet AS ON DELETE TO changed DO INSTEAD NOTHING;
CREATE POLICY mine ON kept FOR SELECT TO regress_sd_reader USING (id > 0);
CREATE SEQUENCE counter INCREMENT 2;
CREATE STATISTICS st (dependencies) ON v, w FROM changed;
CREATE PUBLICATION pub FOR TABLE kept;
GRANT SELECT ON kept TO regress_sd_reader;
COMMENT ON TABLE kept IS 'a comment';
COMMENT ON COLUMN kept.v IS 'another';
\c postgres
SELECT name FROM branch.create('sd_b', 'sd_main');
SELECT * FROM branch.schema_diff('sd_b');

\c sd_b
INSERT INTO kept VALUES (1, 'rows do not matter');
SELECT nextval('counter');
GRANT INSERT ON list TO postgres;
ALTER TYPE mood ADD VALUE 'angry' BEFORE 'happy';
ALTER TYPE pair ADD ATTRIBUTE c numeric;
ALTER DOMAIN positive ADD CONSTRAINT small CHECK (value < 10);
CREATE TYPE "New type" AS ENUM ('x''y');
ALTER TABLE kept OWNER TO regress_sd_owner;
ALTER TABLE kept ENABLE ROW LEVEL SECURITY;
ALTER TABLE changed ALTER v TYPE varchar(20), ALTER v DROP NOT NULL, ALTER w SET DEFAULT 2, DROP gone, ADD added jsonb;
ALTER TABLE changed DROP CONSTRAINT w_small, ADD CONSTRAINT w_small CHECK (w < 200);
ALTER TABLE changed REPLICA IDENTITY FULL;
ALTER TABLE changed SET (fillfactor = 50);
DROP TABLE dropped;
CREATE TABLE "New table" (id int PRIMARY KEY, "Odd ""name""" text COLLATE "C" NOT NULL, e positive DEFAULT 3);
CREATE INDEX ON "New table" (e DESC);
CREATE TABLE list_2 PARTITION OF list FOR VALUES IN (2);
DROP INDEX changed_v;
DROP INDEX changed_w;
CREATE INDEX changed_w ON changed (w) WHERE w > 6;
CREATE OR REPLACE FUNCTION f(a int, b text DEFAULT 'y') RETURNS int LANGUAGE sql RETURN a + 2;
DROP FUNCTION f(text);
DROP PROCEDURE p;
CREATE PROCEDURE p(a int) LANGUAGE sql AS 'SELECT 2';
DROP AGGREGATE total(int);
CREATE OR REPLACE VIEW seen AS SELECT id, v, m FROM kept;
DROP MATERIALIZED VIEW stored;
ALTER TABLE changed DISABLE TRIGGER off;
DROP TRIGGER before_change ON changed;
CREATE OR REPLACE RULE quiet AS ON DELETE TO changed DO ALSO NOTHING;
ALTER POLICY mine ON kept USING (id > 1);
CREATE POLICY yours ON kept AS RESTRICTIVE FOR UPDATE WITH CHECK (v <> '');
ALTER SEQUENCE counter MAXVALUE 1000 CYCLE;
DROP STATISTICS st;
ALTER PUBLICATION pub ADD TABLE changed;
REVOKE SELECT ON kept FROM regress_sd_reader;
GRANT UPDATE (v) ON kept TO regress_sd_reader;
GRANT EXECUTE ON FUNCTION f(int, text) TO regress_sd_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE regress_sd_owner GRANT SELECT ON TABLES TO regress_sd_reader;
COMMENT ON TABLE kept IS 'changed';
COMMENT ON COLUMN kept.v IS NULL;
COMMENT ON FUNCTION f(int, text) IS 'new';
CREATE SCHEMA apart;
CREATE EXTENSION pg_trgm SCHEMA apart;
\c postgres
SELECT object_type, object_name, diff_type FROM branch.schema_diff('sd_b');
\x on
SELECT object_name AS name, from_definition AS "from", to_definition AS "to" FROM branch.schema_diff('sd_b') WHERE object_type <> 'extension';
\x off
-- The other way round it is the opposite; both with themselves are the same.
SELECT count(*) AS unlike FROM branch.schema_diff('sd_b') AS a
FULL JOIN branch.schema_diff('sd_main', 'sd_b') AS b USING (object_type, object_name)
WHERE (a.from_definition, a.to_definition) IS DISTINCT FROM (b.to_definition, b.from_definition);
SELECT * FROM branch.schema_diff('sd_b', 'sd_b');
SELECT count(*) = 0 AS nothing FROM branch.schema_diff('sd_main', 'sd_b', at => 'base');
SELECT * FROM branch.schema_diff(NULL);
SELECT * FROM branch.schema_diff('sd_b', 'nowhere');

SELECT branch.delete('sd_b', hard => true);
DROP DATABASE sd_main;
DROP ROLE regress_sd_owner, regress_sd_reader;

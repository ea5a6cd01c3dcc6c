-- branch.diff and branch.diff_summary: rows that a branch has other than its parent.
\set SHOW_CONTEXT never

CREATE DATABASE diff_main;
\c diff_main
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TYPE pair AS (a numeric, b text);
CREATE DOMAIN positive AS numeric CHECK (value > 0);
CREATE TABLE kinds (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n numeric, f float8, c char(4), ci citext, j json, jb jsonb,
    a int[], m mood, p pair, d positive, r numrange, x xml, b bytea, t text, g numeric GENERATED ALWAYS AS (n * 2) STORED
);
INSERT INTO kinds (n, f, c, ci, j, jb, a, m, p, d, r, x, b, t)
VALUES (1.0, 0, 'a', 'Abc', '{"k": 1}', '{"k": 1.0}', '{1,NULL}', 'sad', '(1.0,)', 1, '[1.0,2)', '<a/>', '\x00', repeat('t', 9000));
INSERT INTO kinds (n, f, c, ci, j, jb, a, m, p, d, r, x, b, t)
SELECT k.n, k.f, k.c, k.ci, k.j, k.jb, k.a, k.m, k.p, k.d, k.r, k.x, k.b, k.t FROM kinds AS k, generate_series(1, 2);
CREATE TABLE part (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
INSERT INTO part VALUES (1, 'one'), (11, 'eleven');
CREATE TABLE above (id int PRIMARY KEY);
CREATE TABLE below (id int PRIMARY KEY) INHERITS (above);
INSERT INTO above VALUES (1);
INSERT INTO below VALUES (2);
CREATE TABLE bag (a int, b text);
INSERT INTO bag VALUES (1, 'twice'), (1, 'twice'), (2, null);
CREATE TABLE "Repl" (k int NOT NULL, v text);
CREATE UNIQUE INDEX repl_k ON "Repl" (k);
ALTER TABLE "Repl" REPLICA IDENTITY USING INDEX repl_k;
INSERT INTO "Repl" VALUES (1, 'a');
CREATE TABLE goes (id int PRIMARY KEY);
INSERT INTO goes VALUES (1), (2);
CREATE SCHEMA other;
CREATE TABLE other.bag (id int PRIMARY KEY);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
\c postgres
SELECT name FROM branch.create('diff_b', 'diff_main');

-- Nothing was changed.
SELECT * FROM branch.diff_summary('diff_b');
SELECT * FROM branch.diff('diff_b', NULL, 'kinds');

\c diff_b
-- The same in other words is no change; what has no equality is compared by its text.
UPDATE kinds SET n = 1.00, f = '-0', c = 'a', ci = 'ABC', jb = '{"k": 1.00}', p = '(1.00,)', r = '[1.00,2)' WHERE id = 1;
UPDATE kinds SET j = '{"k":1}', m = 'happy', a = '{1}', t = repeat('t', 9000) WHERE id = 2;
DELETE FROM kinds WHERE id = 3;
INSERT INTO kinds DEFAULT VALUES;
UPDATE part SET id = id + 1, v = v || '!' WHERE id = 1;
UPDATE part SET id = 9 WHERE id = 11;
UPDATE ONLY above SET id = 3;
DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag);
INSERT INTO bag VALUES (2, null), (2, null), (3, 'new');
UPDATE "Repl" SET v = 'b';
DROP TABLE goes;
CREATE TABLE comes (id int PRIMARY KEY);
INSERT INTO comes VALUES (1);
ALTER TABLE other.bag ADD note text;
INSERT INTO unlogged VALUES (1);
\c postgres
SELECT * FROM branch.diff_summary('diff_b') ORDER BY table_name COLLATE "C";
SELECT * FROM branch.diff_summary('diff_main', 'diff_b') ORDER BY table_name COLLATE "C";
SELECT diff_type, from_row - 't' AS from_row, to_row - 't' AS to_row
FROM branch.diff('diff_b', 'diff_main', 'kinds') ORDER BY coalesce(from_row, to_row) -> 'id';
SELECT * FROM branch.diff('diff_b', NULL, 'public.part_1') ORDER BY coalesce(from_row, to_row) -> 'id';
SELECT * FROM branch.diff('diff_b', NULL, 'part_2');
SELECT * FROM branch.diff('diff_b', NULL, 'above') ORDER BY diff_type;
SELECT * FROM branch.diff('diff_b', NULL, 'public.bag') ORDER BY diff_type, to_row::text;
SELECT * FROM branch.diff('diff_b', NULL, '"Repl"');
SELECT * FROM branch.diff('diff_b', NULL, 'goes') ORDER BY from_row;
SELECT * FROM branch.diff('diff_b', NULL, 'comes');
SELECT * FROM branch.diff('diff_b', NULL, 'other.bag');

-- Two branches, and what cannot be told from files.
SELECT name FROM branch.create('diff_c', 'diff_main');
\c diff_c
UPDATE bag SET b = 'c' WHERE b IS NULL;
\c diff_main
ALTER TABLE part ALTER v TYPE varchar(20);
VACUUM FULL bag;
ALTER TABLE "Repl" REPLICA IDENTITY DEFAULT;
\c postgres
SELECT * FROM branch.diff_summary('diff_c', 'diff_b') ORDER BY table_name COLLATE "C";
SELECT * FROM branch.diff_summary('diff_c') ORDER BY table_name COLLATE "C";
SELECT * FROM branch.diff('diff_b', NULL, '"Repl"') ORDER BY diff_type;

-- Errors.
SELECT * FROM branch.diff('diff_b', NULL, 'bag');
SELECT * FROM branch.diff('diff_b', NULL, 'part');
SELECT * FROM branch.diff('diff_b', NULL, 'bag; DROP TABLE bag');
SELECT * FROM branch.diff('diff_b', NULL, NULL);
SELECT * FROM branch.diff_summary(NULL);
SELECT * FROM branch.diff_summary('diff_main');
SELECT * FROM branch.diff_summary('diff_b', 'nowhere');
SELECT * FROM branch._changed_blocks(0, '{}', '{}', 0, '{}', '{}');
SELECT * FROM branch._changed_blocks(1, '{0}', '{}', 1, '{}', '{}');
CREATE ROLE regress_reader;
REVOKE CONNECT ON DATABASE diff_main FROM public;
SET ROLE regress_reader;
SELECT * FROM branch.diff_summary('diff_b');
SELECT count(*) FROM branch._changed_blocks(
    (SELECT oid FROM pg_database WHERE datname = 'diff_main'), '{}', '{}',
    (SELECT oid FROM pg_database WHERE datname = 'diff_b'), '{}', '{}'
);
RESET ROLE;
GRANT CONNECT ON DATABASE diff_main TO regress_reader;
SET ROLE regress_reader;
SELECT * FROM branch.diff_summary('diff_b', 'diff_main');
RESET ROLE;

SELECT branch.delete(name, hard => true) AS deleted FROM unnest(ARRAY['diff_c', 'diff_b']) AS name;
DROP DATABASE diff_main;
DROP ROLE regress_reader;

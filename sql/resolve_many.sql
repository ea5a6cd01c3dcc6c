-- So many conflicts that the target finds them by itself: written down as those found row by row.
\set SHOW_CONTEXT never
CREATE DATABASE many_main;
\c many_main
SET client_min_messages = warning;
CREATE DOMAIN sure AS text NOT NULL;
CREATE TABLE "Many" (
    id int, sub sure, a text, n numeric, always int GENERATED ALWAYS AS IDENTITY,
    twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (sub, id)
);
INSERT INTO "Many" (id, sub, a, n) SELECT g.id, 'k"' AS sub, 'a' AS a, 1 AS n FROM generate_series(1, 600) AS g (id);
\c postgres
SELECT name FROM branch.create('many_b', 'many_main');

-- by hundreds: both changed one column; theirs another one, too; each another; theirs only; deletions
\c many_b
UPDATE "Many" SET a = E'theirs\n"\\' || id WHERE id <= 100;
UPDATE "Many" SET a = 'theirs', n = 2.50 WHERE id BETWEEN 101 AND 200;
UPDATE "Many" SET n = 3 WHERE id BETWEEN 201 AND 300;
UPDATE "Many" SET a = 'theirs' WHERE id BETWEEN 301 AND 400;
DELETE FROM "Many" WHERE id BETWEEN 401 AND 500;
UPDATE "Many" SET a = NULL WHERE id BETWEEN 501 AND 600;
INSERT INTO "Many" (id, sub, a) SELECT x.n, 'new' AS sub, 'theirs' AS a FROM generate_series(1, 200) AS x (n);
\c many_main
UPDATE "Many" SET a = 'ours' WHERE id <= 300;
UPDATE "Many" SET a = 'ours' WHERE id BETWEEN 401 AND 450;
DELETE FROM "Many" WHERE id BETWEEN 501 AND 550;
UPDATE "Many" SET a = NULL WHERE id BETWEEN 551 AND 600;
INSERT INTO "Many" (id, sub, a) SELECT x.n, 'new' AS sub, 'ours' AS a FROM generate_series(1, 100) AS x (n);
\c postgres
SELECT merge_id AS m, conflicts FROM branch.merge('many_b') \gset
SELECT conflicts, state FROM branch.merges WHERE id = :m;
SELECT table_name, kind, columns, count(*) AS number, count(DISTINCT key) AS keys, min(n) > 0 AS numbered, max(n) <= sum(count(*)) OVER () AS all_of_them
FROM branch.conflict_rows(:m) GROUP BY table_name, kind, columns ORDER BY kind, columns;
SELECT kind, key, columns, base_row, our_row, their_row FROM branch.conflicts
WHERE merge_id = :m AND key ->> 'id' IN ('1', '101', '401', '501') ORDER BY kind, key;

-- decided, then the target goes on with some: these are conflicts anew, the decisions hold for the others
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'ours', '{other}');
\c many_main
UPDATE "Many" SET a = 'later' WHERE sub = 'k"' AND id IN (7, 107, 407) OR sub = 'new' AND id = 7;
\c postgres
SELECT merge_id AS r, rows_applied, conflicts, message FROM branch.conflicts_resolve(:m, 'theirs') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT kind, key, our_row ->> 'a' AS ours FROM branch.conflicts WHERE merge_id = :r ORDER BY kind, key;
SELECT resolution, count(*) AS number FROM branch.conflict_rows(:r) GROUP BY resolution ORDER BY resolution;
SELECT rows_applied, conflicts, message FROM branch.conflicts_resolve(:r, 'ours');
\c many_main
SELECT sub, (id - 1) / 50 AS part, left(a, 6) AS a, n, count(*) AS number
FROM "Many" GROUP BY sub, part, left(a, 6), n ORDER BY sub, part, left(a, 6), n;

-- what was merged is no conflict any more
\c postgres
SELECT rows_applied, conflicts FROM branch.merge('many_b');

-- the same for what takes a merge back
SELECT max(id) AS m FROM branch.merges WHERE target_name = 'many_main' AND rows_updated > 0 \gset
\c many_main
UPDATE "Many" SET a = 'afterwards', n = 7 WHERE id % 2 = 0;
\c postgres
SELECT merge_id AS r, rows_applied, conflicts FROM branch.revert(:m) \gset
SELECT kind, columns, count(*) AS number, count(their_row) AS theirs FROM branch.conflicts
WHERE merge_id = :r GROUP BY kind, columns ORDER BY kind, columns;
SELECT rows_applied > 0 AS changed, conflicts FROM branch.conflicts_resolve(:r, 'theirs');
\c many_main
SELECT sub, (id - 1) / 50 AS part, left(a, 10) AS a, n, count(*) AS number
FROM "Many" GROUP BY sub, part, left(a, 10), n ORDER BY sub, part, left(a, 10), n;
\c postgres
SELECT branch.delete('many_b', hard => true);
DROP DATABASE many_main;

-- decided by a strategy: by hundreds, both changed; theirs another column, too; one of the two deleted; both inserted; theirs only
CREATE DATABASE many_main2;
\c many_main2
SET client_min_messages = warning;
CREATE DOMAIN sure AS text NOT NULL;
CREATE TABLE "Many" (id int PRIMARY KEY, sub sure, a text, n numeric, twice int GENERATED ALWAYS AS (id * 2) STORED);
INSERT INTO "Many" (id, sub, a, n) SELECT x.i, 'k' AS sub, 'a' AS a, 1 AS n FROM generate_series(1, 500) AS x (i);
CREATE TABLE other AS TABLE "Many";
ALTER TABLE other ADD PRIMARY KEY (id);
\c postgres
SELECT name FROM branch.create('many_t', 'many_main2');
SELECT name FROM branch.create('many_o', 'many_main2');
\c many_t
UPDATE "Many" SET a = E'theirs "\\' WHERE id <= 200;
UPDATE "Many" SET n = 2.50 WHERE id BETWEEN 101 AND 200;
DELETE FROM "Many" WHERE id BETWEEN 201 AND 300;
UPDATE "Many" SET a = NULL, sub = 'theirs' WHERE id BETWEEN 301 AND 400;
UPDATE "Many" SET a = 'theirs' WHERE id BETWEEN 401 AND 500;
INSERT INTO "Many" (id, sub, a) SELECT x.n, 'new' AS sub, 'theirs' AS a FROM generate_series(501, 600) AS x (n);
UPDATE other SET a = 'theirs';
\c many_main2
UPDATE "Many" SET a = 'ours' WHERE id <= 300;
DELETE FROM "Many" WHERE id BETWEEN 301 AND 400;
INSERT INTO "Many" (id, sub, a) SELECT x.n, 'new' AS sub, 'ours' AS a FROM generate_series(501, 600) AS x (n);
UPDATE other SET a = 'ours';
\c postgres
SELECT merge_id AS m, rows_applied, conflicts, message FROM branch.merge('many_t', strategy => 'theirs', strategies => '{"other": "ours"}') \gset
SELECT :'rows_applied' AS rows_applied, :'conflicts' AS conflicts, :'message' AS message;
SELECT rows_inserted, rows_updated, rows_deleted FROM branch.merges WHERE id = :m;
SELECT table_name, kind, columns, resolution, count(*) AS number
FROM branch.conflict_rows(:m) GROUP BY table_name, kind, columns, resolution ORDER BY table_name, kind, columns;
\c many_main2
SELECT (id - 1) / 100 AS part, sub, a, n, sum(twice) = 2 * sum(id) AS twice, count(*) AS number
FROM "Many" GROUP BY part, sub, a, n ORDER BY part, sub, a, n;
SELECT a, count(*) AS number FROM other GROUP BY a;

-- taken back; brought to the branch by sync, where now the target is to win; and the other way
\c postgres
SELECT rows_applied, conflicts FROM branch.revert(:m, strategy => 'ours');
\c many_main2
SELECT (id - 1) / 100 AS part, sub, a, n, count(*) AS number FROM "Many" GROUP BY part, sub, a, n ORDER BY part, sub, a, n;
\c many_o
UPDATE "Many" SET a = 'o', n = 9 WHERE id <= 200;
DELETE FROM "Many" WHERE id BETWEEN 201 AND 300;
INSERT INTO "Many" (id, sub, a) SELECT x.n, 'new' AS sub, 'o' AS a FROM generate_series(501, 600) AS x (n);
\c postgres
SELECT rows_applied, conflicts, message FROM branch.sync('many_o', strategy => 'ours');
\c many_o
SELECT (id - 1) / 100 AS part, sub, a, n, count(*) AS number FROM "Many" GROUP BY part, sub, a, n ORDER BY part, sub, a, n;
\c postgres
SELECT branch.delete('many_t', hard => true);
SELECT branch.delete('many_o', hard => true);
DROP DATABASE many_main2;

-- Continuous sync: what is refused, and what is left then (nothing).
\set SHOW_CONTEXT never

CREATE DATABASE sync_main;
\c sync_main
CREATE TABLE t (id int PRIMARY KEY);
\c postgres
SELECT name FROM branch.create('sync_b', 'sync_main');
SHOW wal_level;
SELECT branch.sync_start('sync_main', 'sync_b');
SELECT branch.sync_start('sync_main', NULL);
SELECT branch.sync_start('sync_main', 'sync_main');
SELECT branch.sync_start('sync_main', 'nowhere');
SELECT branch.sync_stop('sync_main', 'sync_b');
SELECT branch.sync_stop(NULL, 'sync_b');
SELECT branch.sync_stop(NULL, NULL);
CREATE ROLE regress_sync;
SET ROLE regress_sync;
SELECT branch.sync_start('sync_main', 'sync_b');
SELECT branch.sync_stop('sync_main', 'sync_b');
RESET ROLE;
SELECT * FROM branch.syncs;
SELECT branch.delete('sync_b', hard => true);
DROP DATABASE sync_main;
DROP ROLE regress_sync;

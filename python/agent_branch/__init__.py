"""Procedures of the PostgreSQL extension agent_branch.

Modules without a database connection are pure logic, the others executors; nothing in the
package needs more than the standard library, but executors their database module.

Who looks for what an SQL function does begins with the module that the function imports, named
first in its group; what it uses comes after it, high to low.

- agents: ``server``; ``names`` of their branches, ``uri``: connection strings
- diffs: ``data``; ``opening``: of the databases; ``diffstat``: how much there is to compare;
  ``schemadiff``, ``schemaobjects``: definitions; ``compare``, ``sides``: all tables of two
  databases; ``pairing``, ``bags``, ``diff``, ``diffplan``, ``rowqueries``, ``blocks``: the rows
  that differ, by their pages; ``largeobjects``; ``bases``: states that databases were in;
  ``progress``
- merges: ``merging``; ``resolving``, ``deciding``, ``setwise``: conflicts decided; ``reverting``,
  ``revert``: taken back; ``bringing``: what a source has changed; ``conduct``: tried until the
  target takes it; ``outcome``; ``mergerun``, ``tablerun``: rows decided, ``conflictsets``,
  ``contested``, ``conflictsql``, ``clashes``: conflicts; below them
  - what it is about: ``mergeoptions``, ``mergescope``, ``mergeparts``, ``mergeplan``, ``widening``,
    ``newcolumns``, ``threeway``
  - what becomes of a row: ``merge``
  - how it is written: ``mergewrite``, ``mergetarget``; ``staging``: with few statements;
    ``carrier``, ``carrying``, ``carriage``: from pages; ``apply``, ``writes``, ``tableorder``,
    ``claims``, ``exchange``, ``spares``, ``culprit``
  - definitions and sequences: ``mergeschema``, ``additive``, ``schematext``; ``mergesequences``,
    ``sequences``
  - what is kept of it: ``mergelog``, ``logbook``, ``mergechanges``, ``keptlines``,
    ``keptconflicts``, ``keeping``, ``spool``
- continuous sync: ``syncing``; ``syncstate``, ``syncplan``
- use and cost: ``usage``; ``cost``
- jobs and health: ``jobs``; ``joblist``; ``health``; ``healthcheck``
- other databases: ``reach``; ``effects``; ``remote``: sessions in them
- tables: ``tableshape``, ``catalog``, ``usualtables``, ``tablenames``: what is known of one, and
  the queries that find it out
- for all: ``sqltext``: quoting, statements with arrays as parameters, batches; ``inside``:
  statements and errors in the server; ``errors``; ``hints``, ``jsontext``, ``records``: for what
  takes long to import, something that does not
"""

__version__ = "0.1"

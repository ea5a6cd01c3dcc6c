"""Procedures of the PostgreSQL extension agent_branch.

Modules without a database connection are pure logic, the others executors; nothing in the
package needs more than the standard library, but executors their database module.

Agents: ``names`` (names of agents' branches), ``uri`` (connection strings), ``server`` (runs
inside the server, called by the extension's PL/Python functions).

``hints``, ``jsontext``, ``records``: for what takes long to import, something that does not.

Reaching other databases, inside the server: ``remote``, ``reach``, ``effects``.

Diff and merge of rows, low to high; all of it pure, over ``sqltext.Session``:

- ``sqltext``: quoting, statements with arrays as parameters, batches
- ``tableshape``, ``catalog``, ``usualtables``: what is known of a table, and the queries that
  find it out
- ``blocks``, ``diff``, ``bags``: the rows that differ, in changed pages; rows without a key
- ``merge``, ``revert``, ``sequences``: what becomes of one row, of a merge that is taken back
- ``mergeplan``: what is done with each table
- ``tableorder``, ``claims``, ``writes``, ``apply``: how it is written, in which order
- ``mergerun``: a merge from end to end
"""

__version__ = "0.1"

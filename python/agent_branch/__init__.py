"""Procedures of the PostgreSQL extension agent_branch.

Modules without a database connection are pure logic: ``names`` (names of agents' branches),
``uri`` (connection strings).  ``server`` runs inside the server, called by the extension's
PL/Python functions.
"""

__version__ = "0.1"

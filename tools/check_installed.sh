#!/bin/sh
# Exit 0 if the installed extension is, byte for byte, the one built here.
set -eu
cd "$(dirname "$0")/.."
lib=$("${PG_CONFIG:-pg_config}" --pkglibdir)
share=$("${PG_CONFIG:-pg_config}" --sharedir)/extension
site=$(/usr/bin/python3 -I -c 'import agent_branch; print(agent_branch.__path__[0])')
cmp -s agent_branch.so "$lib/agent_branch.so"
cmp -s agent_branch.control "$share/agent_branch.control"
for f in extension/agent_branch--*.sql; do
	cmp -s "$f" "$share/$(basename "$f")"
done
diff -rq -x __pycache__ python/agent_branch "$site" >/dev/null

#!/bin/sh
# dig_holes.sh DATADIR: make the files of branches sparse again after a restore.
#
# Base backups and most copies write the holes of sparse files as zeros.  In the files of a
# branch a page of zeros and a hole mean the same, so they can be given back, before the first
# start of the restored server as well.  The server must not run: what it writes between the
# look at a page and the hole would be lost.
set -eu

fail() { echo >&2 "dig_holes.sh: $*"; exit 1; }

data=${1:-}
[ $# = 1 ] && [ -f "$data/PG_VERSION" ] || fail "give the data directory of a server"
[ ! -e "$data/postmaster.pid" ] ||
	fail "\"$data/postmaster.pid\" exists: stop the server (remove the file if there is none)"
[ -d "$data/agent_branch/branches" ] || fail "\"$data\" has no branches"
command -v fallocate > /dev/null || fail "fallocate is missing (package util-linux)"

# of branches: those that have an origin file, and those whose origins are gathered in one
branches() {
	ls "$data/agent_branch/branches"
	origins=$data/agent_branch/origins
	[ -s "$origins" ] || return 0
	n=$(od -A n -t u4 -j 12 -N 4 "$origins" | tr -d ' ')
	[ "$n" = 0 ] || od -A n -v -t u4 -j $((512 + 80 * n)) -N $((4 * n)) "$origins" | tr -s ' ' '\n'
}

sum() { du -skc "$data/base" "$data"/pg_tblspc/*/ 2> /dev/null | tail -n 1 | cut -f 1; }

before=$(sum)
for oid in $(branches); do
	case $oid in '' | *[!0-9]*) continue ;; esac
	for place in "$data/base/$oid" "$data"/pg_tblspc/*/PG_15_*/"$oid"; do
		[ ! -d "$place" ] || find "$place" -type f -size +16k -exec fallocate --dig-holes {} \;
	done
done
echo "from $before to $(sum) kB"

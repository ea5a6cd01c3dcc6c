#!/bin/bash
# Install the packages that are missing, and nothing else (Debian 12 and relatives).
#
#   tools/deps.sh          what building, the demo and the tests need
#   tools/deps.sh demo     without what only tests need
#   tools/deps.sh torture  with what only make torture needs
#
# Servers that are on the machine are neither started, stopped, restarted nor given a
# new cluster: a new server package comes without its default cluster, what goes with an
# installed server is installed in that server's version, and what would upgrade it is
# refused.
set -euo pipefail

# Made of the server's own sources: they must be of its version.
of_the_server=(postgresql-server-dev-15 postgresql-plpython3-15)
packages=(gcc make libc6-dev python3 python3-psycopg
	postgresql-15 "${of_the_server[@]}" postgresql-15-cron)
# Wanted as programs only: their services are neither started nor enabled.
programs=(pgbouncer prometheus prometheus-postgres-exporter prometheus-sql-exporter)
if [ "${1:-}" != demo ]; then
	packages+=(python3-venv xfsprogs "${programs[@]}")
fi

if [ "${1:-}" = torture ]; then
	packages+=(faketime sqlsmith)
fi

if ! command -v dpkg-query >/dev/null; then
	echo "deps: no dpkg here; expecting PostgreSQL 15 with headers, PL/Python, pg_cron," \
		"a C compiler and python3 with psycopg"
	exit 0
fi

installed() {
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
for package in "${packages[@]}"; do
	installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
	echo "deps: everything is installed"
	exit 0
fi

echo "deps: installing ${missing[*]}"
as_root=()
if [ "$(id -u)" != 0 ]; then
	if ! sudo -n true 2>/dev/null; then
		echo >&2 "deps: run as root: apt-get install ${missing[*]}"
		exit 1
	fi
	as_root=(sudo -n)
fi
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get
	-y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)

"${apt[@]}" -q update

# With systemd a service is not started while its unit is masked; RUNLEVEL is for the others.
masked=()
unmask() {
	for unit in "${masked[@]}"; do
		"${as_root[@]}" rm -f "/etc/systemd/system/$unit" \
			"/etc/systemd/system/multi-user.target.wants/$unit"
	done
}
if [ -d /etc/systemd/system ]; then
	trap unmask EXIT
	for program in "${programs[@]}"; do
		unit=$program.service
		if [[ " ${missing[*]} " != *" $program "* ]] || [ -e "/etc/systemd/system/$unit" ] ||
			[ -L "/etc/systemd/system/$unit" ]; then
			continue
		fi
		"${as_root[@]}" ln -s /dev/null "/etc/systemd/system/$unit"
		masked+=("$unit")
	done
fi

if installed postgresql-15; then
	version=$(dpkg-query -W -f '${Version}' postgresql-15)
	for i in "${!missing[@]}"; do
		# An archive that has a newer one may still have that of this server.
		if [[ " ${of_the_server[*]} " == *" ${missing[i]} "* ]] &&
			apt-cache madison "${missing[i]}" |
			grep -F " $version " >/dev/null; then
			missing[i]+="=$version"
		fi
	done
	plan=$("${apt[@]}" -s install "${missing[@]}")
	if grep -q '^Inst postgresql-15 \[' <<<"$plan"; then
		echo >&2 "deps: installing these would upgrade the server and restart its clusters;" \
			"upgrade postgresql-15 yourself first: ${missing[*]}"
		exit 1
	fi
	"${apt[@]}" -q install "${missing[@]}"
	exit 0
fi

# The server is new here: keep its package from creating and starting a cluster.
"${apt[@]}" -q install postgresql-common
no_cluster=/etc/postgresql-common/createcluster.d/agent_branch.conf
"${as_root[@]}" mkdir -p "$(dirname "$no_cluster")"
echo 'create_main_cluster = false' | "${as_root[@]}" tee "$no_cluster" >/dev/null
trap '"${as_root[@]}" rm -f "$no_cluster"; unmask' EXIT
"${apt[@]}" -q install "${missing[@]}"

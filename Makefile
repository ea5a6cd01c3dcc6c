# agent_branch: copy-on-write branches of PostgreSQL databases
#
#   make demo        everything from nothing, in a private server under .demo
#   make test        everything from nothing, all tests
#   make && make install   into the server that PG_CONFIG names

.DEFAULT_GOAL := all

PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
export PG_CONFIG

# ---- the library and its SQL (PGXS) ------------------------------------------

EXTENSION = agent_branch
MODULE_big = agent_branch
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard extension/src/*.c)))
# The install script is joined from its parts; scripts from version to version are files.
EXTVERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" agent_branch.control)
SQL_PARTS = $(sort $(wildcard extension/sql/*.sql))
INSTALL_SQL = extension/agent_branch--$(EXTVERSION).sql
DATA_built = $(INSTALL_SQL)
DATA = $(sort $(wildcard extension/agent_branch--*--*.sql))

# The prefix map: the same sources give the same library wherever they are built.  A warning stops
# those who change them (make WERROR=1), not those who install them with another compiler.
PG_CPPFLAGS = -Iextension/include
PG_CFLAGS = -std=gnu11 -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wmissing-prototypes \
	-Wdeclaration-after-statement $(if $(WERROR),-Werror) -ffile-prefix-map=$(CURDIR)=. -fno-plt

# Our functions call each other directly, and the server's through one table instead of two:
# every page that a statement touches for us is paid for in its processor's caches.
SHLIB_LINK = -Wl,-Bsymbolic

# make FAILPOINTS=1: the library with places where tests stop or kill a process
# (ab_failpoint.h), in a folder of its own, quickly; nobody installs it.
ifdef FAILPOINTS
FAILPOINTS_DIR = build/failpoints
PG_CPPFLAGS += -DAB_FAILPOINTS
MODULE_big = $(FAILPOINTS_DIR)/agent_branch
OBJS := $(patsubst extension/src/%.o,$(FAILPOINTS_DIR)/%.o,$(OBJS))
endif

# Bitcode serves inlining by the JIT; nothing of this library is worth inlining,
# and a server package without its clang must do for building.
override with_llvm := no

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifneq ($(wildcard $(PGXS)),)
NO_INSTALLCHECK = 1
include $(PGXS)
$(OBJS): $(wildcard extension/include/*.h) Makefile
ifdef FAILPOINTS
$(FAILPOINTS_DIR)/%.o: extension/src/%.c
	@mkdir -p $(@D)
	$(COMPILE.c) -O0 -g0 -U_FORTIFY_SOURCE -o $@ $<
endif
$(INSTALL_SQL): $(SQL_PARTS) Makefile
	@awk 'FNR == 1 && NR > 1 { print "" } { print }' $(SQL_PARTS) > $@.new && mv $@.new $@
else
all install uninstall:
	@echo >&2 "PostgreSQL 15's build files are missing: run 'make deps', or set PG_CONFIG"
	@exit 1
clean:
endif

# ---- the Python package ---------------------------------------------------------
# PL/Python sees what the system's own interpreter sees, hence its directory.

SYSTEM_PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
SITE := $(shell $(SYSTEM_PYTHON) -c 'import sysconfig as s; \
	print(s.get_path("purelib", "deb_system" if "deb_system" in s.get_scheme_names() \
	else s.get_default_scheme()))' 2>/dev/null)
PYTHON_FILES = $(sort $(shell cd python 2>/dev/null && \
	find agent_branch -name '*.py' -o -name py.typed))

install: install-python
uninstall: uninstall-python

.PHONY: install-python uninstall-python
install-python:
	@test -n "$(SITE)" || { echo >&2 "no $(SYSTEM_PYTHON)"; exit 1; }
	rm -rf '$(DESTDIR)$(SITE)/agent_branch'
	@for f in $(PYTHON_FILES); do \
		install -D -m 644 "python/$$f" "$(DESTDIR)$(SITE)/$$f" || exit 1; done
	$(if $(DESTDIR),,$(SYSTEM_PYTHON) -m compileall -q '$(SITE)/agent_branch')

uninstall-python:
	rm -rf '$(DESTDIR)$(SITE)/agent_branch'

# ---- from nothing ------------------------------------------------------------------

.PHONY: deps demo demo-stop test lint venv regress isolation pytest installcheck \
	check-core check-assert check-wal check-asan check-valgrind coverage bench torture install-for-tests release-sql clean-tests

deps:
	tools/deps.sh

# What is missing, then the library and its package; the argument is that of tools/deps.sh.
define prepare
	tools/deps.sh $(1)
	+$(MAKE) --no-print-directory all
	+$(MAKE) --no-print-directory install-for-tests
endef

demo:
	$(call prepare,demo)
	$(SYSTEM_PYTHON) tools/demo.py start

demo-stop:
	$(SYSTEM_PYTHON) tools/demo.py stop

test:
	$(call prepare)
	+$(MAKE) --no-print-directory lint
	+$(MAKE) --no-print-directory regress
	+$(MAKE) --no-print-directory isolation
	+$(MAKE) --no-print-directory pytest

# A release keeps its install script: upgrades are tested from there (extension/README, Versions).
release-sql: $(INSTALL_SQL)
	install -D -m 644 $(INSTALL_SQL) extension/released/$(notdir $(INSTALL_SQL))

# Root installs.  Others may test what somebody has installed, if it is this.
install-for-tests:
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory install; \
	elif tools/check_installed.sh; then echo "installed files are up to date"; \
	elif sudo -n true 2>/dev/null; then \
		sudo -n $(MAKE) --no-print-directory install PG_CONFIG=$(PG_CONFIG); \
	else echo >&2 "run 'make install' as root first"; exit 1; fi

# ---- tests: private servers only, never one that is there already ----------------

VENV = .venv
VENV_PYTHON = $(VENV)/bin/python

venv: $(VENV)/.complete
$(VENV)/.complete: tests/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --progress-bar off \
		-q -r tests/requirements.txt
	touch $@

regress: venv
	$(VENV_PYTHON) tools/run_regress.py regress

isolation: venv
	$(VENV_PYTHON) tools/run_regress.py isolation

# Files of tests at a time, the longest first (tests/conftest.py); they wait more than they
# compute, so more than there are processors.  make pytest PYTEST_JOBS=0: one after the other.
PYTEST_JOBS = 4
pytest: venv
	$(VENV_PYTHON) -m pytest -n $(PYTEST_JOBS) --dist loadfile \
		--no-loadscope-reorder $(PYTEST_ARGS) tests

installcheck:
	+$(MAKE) --no-print-directory regress
	+$(MAKE) --no-print-directory isolation

check-core: venv
	$(VENV_PYTHON) tools/check_core.py

# The tests under servers that look for faults of their own, file by file; what has passed is kept in
# build/checks, and is not run again until it changes (tools/check_pieces.py).  CHECK="--minutes 20",
# CHECK=--list, CHECK="--pieces regress isolation/iso_suspend pytest/crash --jobs 1", CHECK=--anew.

# Assertions: a server that PG_CONFIG names, or one that is built, of the server's own source package.
# make check-assert, make check-assert CHECK="tests/test_crash.py -k nine"
check-assert: venv
	$(VENV_PYTHON) tools/check_assert.py $(CHECK)

# Each server with a standby that compares every page after every record.
# CHECK="tests/test_crash.py -k nine" chooses tests.
check-wal: venv
	$(VENV_PYTHON) tools/check_wal.py $(CHECK)

# AddressSanitizer and UndefinedBehaviorSanitizer in the library; regress and isolation under valgrind's
# memcheck; what the tests come through, as gcov counts it.  To choose tests:
# CHECK="--regress create merge", CHECK="--isolation", CHECK="--pytest tests/test_crash.py -k nine"
check-asan check-valgrind coverage: venv
	$(VENV_PYTHON) tools/check_under.py $(patsubst check-%,%,$@) $(CHECK)

# make torture, make torture TORTURE="--seconds 600 --seed 7 --report docs/torture.md"
torture:
	$(call prepare,torture)
	+$(MAKE) --no-print-directory venv
	$(VENV_PYTHON) tests/torture.py $(TORTURE)

# make bench (half an hour), make bench BENCH=create-clean, make bench BENCH="--quick connect",
# make bench BENCH=--list, make bench BENCH=--full (hours)
# Its servers are in AGENT_BRANCH_TEST_DIR, or /tmp: on a file system as servers have (docs/operations.md).
bench:
	$(call prepare)
	+$(MAKE) --no-print-directory venv
	$(VENV_PYTHON) bench/run.py $(BENCH)

lint: venv $(INSTALL_SQL)
	$(VENV_PYTHON) tools/check_layers.py
	$(VENV_PYTHON) tools/check_version.py
	$(VENV)/bin/ruff check python tests tools bench examples
	$(VENV)/bin/ruff format --check python tests tools bench examples
	$(VENV)/bin/mypy
	$(VENV)/bin/sqlfluff lint -q sql $(SQL_PARTS) $(DATA)
	$(VENV)/bin/pgspot --ignore-lang agent_branch_python $(INSTALL_SQL)

clean: clean-tests
clean-tests:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis

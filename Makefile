# Needs python3 >= 3.11 with venv, and make. Everything else goes into .venv.
#
#   make run      start an endpoint with a demo key and two simulated sensors
#   make test     lint, types, import rules, all tests, coverage gate
#   make test-roles   of these the tests of the Ansible roles, on booted hosts in network namespaces; needs root
#   make docs     write docs/configuration.md and docs/metrics.md out of the code that they tell of
#   make lab      a fleet in network namespaces: deployed, keyed, protected and upgraded under traffic; needs root
#   make bench    cost per handshake and per datagram, beside trio's DTLSEndpoint

PYTHON ?= python3
# What `make test` installs beside the endpoint; .ci/run may add to it.
DEV_GROUPS ?= test lint ansible

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install --constraint constraints.txt --build-constraint constraints.txt
TYPED := $(wildcard sansdtls endpoint tests benchmarks)
STYLED := $(TYPED) $(wildcard roles)
PLAYED := $(wildcard roles playbooks inventory galaxy.yml)
# Its cache stays out of the way, and other programs of this environment are found.
ANSIBLE := ANSIBLE_HOME=$(CURDIR)/.venv/ansible PATH=$(CURDIR)/$(BIN):$(PATH)

# Two processes share the tests: one boots hosts, and waits for them, while the other computes.
SHARED := --numprocesses=2

empty :=
space := $(empty) $(empty)
# Stamps: touched last, so an interrupted installation is done again.
VENV := .venv/.stamp-venv
RUN := .venv/.stamp-run
DEV := .venv/.stamp-dev-$(subst $(space),-,$(strip $(DEV_GROUPS)))

.PHONY: run test test-roles lab bench docs lint format clean

run: $(RUN)
	@$(BIN)/python -m endpoint.demo

test: lint
	$(BIN)/pytest --cov $(SHARED)

test-roles: $(DEV)
	$(BIN)/pytest tests/lab tests/roles

lab: $(DEV)
	@$(BIN)/python -m tests.lab

bench: $(DEV)
	$(BIN)/python -m benchmarks

docs: $(RUN)
	$(BIN)/python -m endpoint.reference > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python -m endpoint.metrics.reference > docs/metrics.md.new
	mv docs/metrics.md.new docs/metrics.md

lint: $(DEV)
	$(BIN)/ruff check --quiet $(STYLED)
	$(BIN)/ruff format --quiet --check $(STYLED) || { echo "make format puts that right"; exit 1; }
	$(BIN)/mypy $(TYPED)
	$(BIN)/lint-imports --no-logo
	$(BIN)/yamllint --strict .
	$(ANSIBLE) $(BIN)/ansible-lint -q $(PLAYED)

format: $(DEV)
	$(BIN)/ruff check --fix $(STYLED)
	$(BIN)/ruff format $(STYLED)

clean:
	rm -rf .venv .ansible .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* htmlcov dist
	find sansdtls endpoint tests roles -name __pycache__ -prune -exec rm -rf {} +

$(VENV): constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; install the package python3-venv"; exit 1; }
	@echo "making .venv"
	@$(PYTHON) -m venv .venv
	@# Debian 12's pip is too old for dependency groups and for build constraints.
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@touch $@

$(RUN): $(VENV) pyproject.toml
	@echo "installing the endpoint into .venv"
	@$(INSTALL) --editable '.[endpoint]'
	@touch $@

$(DEV): $(RUN)
	@echo "installing into .venv: $(DEV_GROUPS)"
	@$(INSTALL) $(addprefix --group ,$(DEV_GROUPS))
	@touch $@

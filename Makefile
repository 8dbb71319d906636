# kproxy: every target sets up what it needs first and does nothing twice.
# Run it as root (`sudo make demo`) or as yourself: then it asks sudo for the few steps that need it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export DEBIAN_FRONTEND := noninteractive
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Debian's own Python: the packages below belong to it. Another one: make PYTHON=/usr/bin/python3.12 ...
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
LINK := /usr/local/bin/kproxy
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# gcc and the headers are for python-iptables, which comes as source.
PACKAGES := python3 python3-venv python3-dev gcc libc6-dev iptables nftables bubblewrap conntrack iproute2 \
	tcpdump kmod haproxy curl ca-certificates make
# For vm-test alone: an emulator, what makes a box, and what brings it up without touching this machine's network.
VM_PACKAGES := python3 git rsync qemu-system-x86 qemu-utils mmdebstrap fdisk extlinux syslinux-common slirp4netns vagrant \
	vagrant-libvirt libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu dnsmasq-base
MISSING = $(shell for package in $(PACKAGES); do \
	[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || echo $$package; done)

# What `make demo` applies, in this order; each is a folder of manifests/.
DEMO := clusterip nodeport nodeport-local session-affinity no-endpoints
LAB ?= lab
# More for `kproxy lab up`: make demo UP="--network vxlan --ip-family dual"
UP ?=

# What was made under sudo belongs to the person who called it, whether the recipe ends well or not.
GIVE_BACK := trap .ci/give-back EXIT

.PHONY: help setup packages link demo test test-quick soak fuzz lint format bench vm-test down uninstall lock

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: packages $(VENV)/.installed link ## Debian packages, .venv and /usr/local/bin/kproxy; quick when all is there

packages:
	@missing="$(strip $(MISSING))"; [ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { echo "not a Debian system: install what matches $$missing" >&2; exit 1; }; \
	echo "installing Debian packages: $$missing"; \
	$(ROOT) PACKAGES="$$missing" bash .ci/install-packages

# --no-build-isolation: python-iptables is built with the setuptools named here, by hash, not with whatever is newest.
# editable_mode=compat: a plain .pth line; the newer import hook costs every command a few milliseconds.
$(VENV)/.installed: requirements-build.txt requirements.txt pyproject.toml | packages
	@$(GIVE_BACK); \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }; \
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV); \
	$(BIN)/pip install --quiet --require-hashes -r requirements-build.txt; \
	$(BIN)/pip install --quiet --require-hashes --no-build-isolation -r requirements.txt; \
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat -e .; \
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt .ci/install-kubectl $(VENV)/.installed
	@$(GIVE_BACK); \
	$(BIN)/pip install --quiet --require-hashes --no-build-isolation -r requirements-dev.txt; \
	bash .ci/install-kubectl $(BIN)/kubectl; \
	touch $@

# sudo does not search .venv/bin. A link that we did not make is left alone.
link: $(VENV)/.installed
	@[ "$$(readlink -f $(LINK))" = "$$(readlink -f $(BIN)/kproxy)" ] && exit 0; \
	if [ -e $(LINK) ] && [ ! -L $(LINK) ]; then echo "$(LINK) is a file of somebody else's: left alone" >&2; exit 1; fi; \
	$(ROOT) ln -sfn "$(CURDIR)/$(BIN)/kproxy" $(LINK)

demo: setup ## a lab of three nodes, a few Services, and the table that proves them; leaves the lab up
	@$(GIVE_BACK); \
	$(ROOT) env KPROXY_LAB=$(LAB) $(BIN)/kproxy lab up $(UP); \
	$(ROOT) env KPROXY_LAB=$(LAB) $(BIN)/kproxy apply $(foreach scenario,$(DEMO),-f manifests/$(scenario)); \
	$(ROOT) env KPROXY_LAB=$(LAB) $(BIN)/kproxy verify; \
	printf '%s\n' '' 'The lab stays up. Next:' \
	  '  sudo kproxy get services,pods -o wide' \
	  '  sudo kproxy exec node1 -- iptables-save -t nat' \
	  '  sudo kproxy exec client -- curl -s http://192.168.1.2:31000/' \
	  'and `sudo make down` when you have seen enough.'

test: setup $(VENV)/.installed-dev ## every test; those that need root get it
	@$(GIVE_BACK); \
	$(ROOT) env CI="$${CI:-}" $(BIN)/python -m pytest $(PYTEST_ARGS)

test-quick: setup $(VENV)/.installed-dev ## the tests that need no root
	@$(GIVE_BACK); \
	$(BIN)/python -m pytest -m 'not root' $(PYTEST_ARGS)

soak: setup $(VENV)/.installed-dev ## the tests that have larger counts, with those counts
	@$(GIVE_BACK); \
	$(ROOT) env CI="$${CI:-}" KPROXY_SOAK=1 $(BIN)/python -m pytest $$(grep -rl --include='test_*.py' KPROXY_SOAK tests) $(PYTEST_ARGS)

$(VENV)/.installed-fuzz: requirements-fuzz.txt $(VENV)/.installed-dev
	@$(GIVE_BACK); \
	$(BIN)/pip install --quiet --require-hashes --only-binary :all: -r requirements-fuzz.txt; \
	touch $@

# Another seed each time; an input that gets no clean answer is kept: make fuzz FUZZ_ARGS="--again FILE"
fuzz: setup $(VENV)/.installed-fuzz ## a million mutated manifests, chosen by the code that they reach; half an hour on two cores
	@$(GIVE_BACK); \
	$(BIN)/python tests/fuzz/fuzz_guided.py $(FUZZ_ARGS)

lint: setup $(VENV)/.installed-dev ## ruff, mypy --strict, import-linter
	@$(GIVE_BACK); \
	$(BIN)/ruff check .; \
	$(BIN)/ruff format --check .; \
	$(BIN)/mypy; \
	$(BIN)/lint-imports

format: setup $(VENV)/.installed-dev ## what ruff can put right by itself
	@$(BIN)/ruff check --fix .; $(BIN)/ruff format .

# All of it takes an hour; less: make bench BENCH_ARGS="--sizes 1000x10 --modes nftables"
bench: setup $(VENV)/.installed-dev ## what `lab up` and the node proxy cost, beside the bare tools on the same input
	@$(GIVE_BACK); \
	$(ROOT) $(BIN)/python tests/bench/topology_cost.py; \
	$(ROOT) $(BIN)/python tests/bench/lab_cost.py; \
	$(ROOT) $(BIN)/python tests/bench/pods_cost.py --most 20 --most-memory 3; \
	$(BIN)/python tests/bench/listing_cost.py; \
	$(ROOT) $(BIN)/python tests/bench/service_cost.py --json docs/bench/figures.json --plots docs/bench $(BENCH_ARGS)

vm-test: PACKAGES := $(VM_PACKAGES)
vm-test: packages ## vagrant up for real, and all that is promised in the machine (emulated: half an hour, 4 GB in .vm)
	@$(GIVE_BACK); \
	$(ROOT) nice "$(PYTHON)" tests/vm/run.py $(VM_TEST_ARGS)

down: setup ## take the demo's lab down
	@$(ROOT) $(BIN)/kproxy lab down --lab $(LAB)

uninstall: ## remove the link, .venv and what was built; running labs first: `make down`
	@if [ -n "$$(ls -A /run/kproxy 2>/dev/null)" ]; then \
	  echo "labs are up: $$(ls /run/kproxy | tr '\n' ' '); take them down first (kproxy lab down --lab NAME)" >&2; exit 1; fi; \
	if [ "$$(readlink -f $(LINK))" = "$$(readlink -f $(BIN)/kproxy)" ]; then $(ROOT) rm -f $(LINK); fi; \
	$(ROOT) rm -rf $(VENV) .vm kproxy.egg-info; \
	$(ROOT) rmdir --ignore-fail-on-non-empty /run/kproxy /var/lib/kproxy 2>/dev/null || true

lock: $(VENV)/.installed-dev ## write the requirements files anew from pyproject.toml
	@compile() { $(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header \
	  --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$$@"; }; \
	printf 'setuptools\nwheel\n' | compile -o requirements-build.txt -; \
	compile -o requirements.txt pyproject.toml; \
	compile -o requirements-dev.txt -c requirements.txt -c requirements-build.txt --extra test --extra dev pyproject.toml; \
	printf 'atheris>=3\n' | compile -o requirements-fuzz.txt -

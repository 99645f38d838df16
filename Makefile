# make            what can be done here
# make demo       environment, then a real federation on this machine
# make test       environment, then lint, types and the tests that take seconds; make test-all has all
#
# PYTHON=python3.12     another interpreter (3.11 or later)
# TORCH=cpu             torch without GPU libraries, from PyTorch's public index of it; gpu insists on one with them
# PIP_ARGS="..."        extra arguments for pip

PYTHON ?= python3
PIP_ARGS ?=
TORCH ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BENCH_ARGS ?=
MUTATE_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
METADATA := $(wildcard common/pyproject.toml models/pyproject.toml client/pyproject.toml server/pyproject.toml bench/pyproject.toml)

DISTRIBUTIONS := -e ./common -e ./models -e './client[agent,dicom,heic]' -e './server[tensorboard]' -e './bench[flower,pandas]'
DEVELOPMENT := pytest pytest-cov pytest-timeout pytest-xdist hypothesis ruff mypy build grpcio-tools types-protobuf websockets

# Two test processes with one thread each: on two cores faster than one with two, and more cores are not assumed.
# A file's tests stay in one process, so that what they share is built once.
WORKERS ?= 2
# Tests that start real processes wait for them most of the time.
PROCESS_WORKERS ?= 3
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup wheels images compose-test kubernetes-schema demo demo-vlm test test-all quick everything coverage lint types bench bench-docs benchmarks mutate screenshots docs format proto clean attacks audit lock sbom

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## virtual environment in .venv with pinned versions; done once

# Installed anew only when a pin or a distribution's metadata changed. hatchling comes first: the editable installs use
# it from the environment, so that no build fetches a version of its own.
$(STAMP): constraints.txt $(METADATA)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make setup: '$(PYTHON)' is missing or older than Python 3.11."; \
	  echo "Install a newer one and name it: make setup PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make setup: '$(PYTHON)' has no venv."; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@began=$$(date +%s); \
	echo "setup: installing into $(VENV); a first time takes minutes, mostly for torch" && \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt hatchling editables && \
	if [ "$(TORCH)" = cpu ]; then $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps \
	  --retries 1 --extra-index-url $(TORCH_INDEX) torch; fi && \
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-build-isolation $(DISTRIBUTIONS) $(DEVELOPMENT) && \
	if [ -n "$(TORCH)" ]; then $(BIN)/python -c 'import sys, torch; build = "gpu" if torch.version.cuda else "cpu"; \
	  sys.exit(build != "$(TORCH)" and f"setup: pip found a {build} build of torch. Is $(TORCH_INDEX) in reach?")'; fi && \
	touch $(STAMP) && \
	echo "setup: ready after $$(( $$(date +%s) - began )) s"

demo: setup  ## a real federation on this machine; report in runs/demo/
	@began=$$(date +%s); $(BIN)/dpfpl-bench demo --out runs/demo; code=$$?; \
	echo "demo: $$(( $$(date +%s) - began )) s"; exit $$code

demo-vlm: setup  ## the same with a generative model that answers questions; report in runs/demo-vlm/
	@began=$$(date +%s); $(BIN)/dpfpl-bench demo-vlm --out runs/demo-vlm; code=$$?; \
	echo "demo-vlm: $$(( $$(date +%s) - began )) s"; exit $$code

test: lint types quick  ## lint, types and the tests without processes, those of more than five seconds left out

test-all: lint types everything  ## lint, types and every test but the long ones; what .ci/run calls

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy, strict
	$(BIN)/mypy

QUICK := $(BIN)/pytest -n $(WORKERS) --dist loadfile --durations 10

quick: setup
	$(QUICK) -m 'not processes and not slow and not long'

# Tests that start real processes come after all the others, which need every core.
everything: setup
	$(QUICK) -m 'not processes and not long' $(COVERAGE)
	$(QUICK) -n $(PROCESS_WORKERS) -m 'processes and not long' $(if $(COVERAGE),--cov --cov-append)

coverage: setup  ## which lines no test reaches; a third slower than make test-all
	$(MAKE) everything COVERAGE='--cov --cov-report='

bench: setup  ## how fast it is, against the usual ways; runs/bench/bench.json
	$(BIN)/python -m research speed --out runs/bench $(BENCH_ARGS)

bench-docs: setup  ## docs/results/performance.md from the last make bench
	$(BIN)/python -m research speed-page --bench runs/bench/bench.json --docs docs/results

benchmarks: setup  ## accuracy, floors and attacks on built-in data: docs/results/benchmarks.md from runs/benchmarks
	test -f runs/demo/result.json || $(BIN)/dpfpl-bench demo --out runs/demo  # its prompts are attacked
	$(BIN)/python -m research benchmarks --out runs/benchmarks --docs docs/results $(BENCH_ARGS)

# Wheels of everything that the images install, so that a build needs no package index; TORCH as for setup.
WHEELS := deploy/wheels/.collected
wheels: $(WHEELS)  ## wheels for the images, in deploy/wheels

$(WHEELS): $(STAMP) deploy/wheels.sh deploy/container/requirements.py
	TORCH=$(TORCH) TORCH_INDEX=$(TORCH_INDEX) deploy/wheels.sh $(PIP_ARGS) && touch $(WHEELS)

images: wheels  ## the container images dpfpl-server, dpfpl-client, dpfpl-agent and dpfpl-supernode
	$(BIN)/python tests/compose/run.py --parts

# Needs a Docker engine, or root and dockerd to start a private one for the time; about 25 minutes on two free cores.
compose-test: wheels kubernetes-schema  ## the federation in hardened containers: checks, faults, upgrade, backup
	$(BIN)/python tests/compose/run.py

# The client library's types know every field. It brings some thirty packages along, so it gets an environment of its own.
kubernetes-schema:  ## every field of the Kubernetes manifests against the API's own types
	@test -e runs/kubernetes/.installed || { $(PYTHON) -m venv runs/kubernetes && \
	  runs/kubernetes/bin/python -m pip install --quiet $(PIP_ARGS) kubernetes==37.0.2 pytest && touch runs/kubernetes/.installed; }
	runs/kubernetes/bin/python -m pytest -q -c /dev/null --noconftest -p no:cacheprovider --rootdir . tests/deploy/test_kubernetes.py

mutate: setup  ## break the mechanism on purpose and see the tests notice
	$(BIN)/python tests/mutation/mutate.py $(MUTATE_ARGS)

attacks: setup  ## play a malicious operator against a real agent and write docs/results/attacks.md
	$(BIN)/python tests/attacks/adversarial_operator.py --out docs/results/attacks.md
screenshots: setup  ## pictures of docs/images, by a headless Chromium
	DPFPL_SCREENSHOTS=1 $(BIN)/pytest -q tests/browser

# In the same environment, because the pages of commands and settings are made of the installed programs.
$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt mkdocs-material 'mkdocstrings[python]' && touch $@

docs: $(VENV)/.docs  ## the documentation as a site, in runs/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "docs: runs/site/index.html"

format: setup  ## ruff: mend format and order of imports
	$(BIN)/ruff check --fix-only --select I .
	$(BIN)/ruff format .

proto: setup  ## generated code of the agent's protocol, after an edit of agent.proto
	$(BIN)/python common/generate_protocol.py

audit: setup  ## known vulnerabilities of every pin, by pip-audit; needs a network (see SECURITY.md)
	@test -e runs/audit/bin/pip-audit || { $(PYTHON) -m venv runs/audit && runs/audit/bin/python -m pip install --quiet $(PIP_ARGS) pip-audit; }
	runs/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip

lock: setup  ## constraints.txt with the hashes of every file that the index offers: runs/lock.txt
	mkdir -p runs && $(BIN)/python deploy/lock.py constraints.txt > runs/lock.txt && wc -l runs/lock.txt

sbom: setup  ## bill of materials of this environment (CycloneDX): runs/sbom.json
	mkdir -p runs && $(BIN)/python deploy/container/sbom.py dpfpl $(VENV)/lib/python3*/site-packages > runs/sbom.json

clean:  ## remove environment, caches and build results; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis htmlcov .coverage .coverage.* */dist */build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up goes into .venv inside the checkout; outside it, only package caches are touched.
PYTHON ?= python3
UV     := .venv/bin/uv
UV_VERSION := 0.9
BIN    := .venv/bin
EXTRAS ?= operator,trainer,dev
export UV_PYTHON_DOWNLOADS := never
export PYTHONUNBUFFERED := 1
# if it were set, every process of every stage would compile torch's sources again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
export NO_MKDOCS_2_WARNING := 1  # about a successor of its theme

.PHONY: help setup demo demo-actions cluster tools test volcano images e2e node torture chaos bench-operator bench-upgrade lint dist release-check publish-image publish-index publish-chart release-verify github-release release-test docs format generate constraints clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Create .venv with everything the other targets need (they run it when needed)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(UV) || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=$(UV_VERSION)'
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: .venv/ready ## Post-train a tiny model on generated robot video, and show its output
	$(BIN)/python tools/training_demo.py

demo-actions: .venv/ready ## Train a tiny world model that obeys a drawn robot's joint angles
	$(BIN)/python tools/actions_demo.py

cluster: .venv/ready ## Open a shell with a temporary Kubernetes cluster of fake 8-GPU nodes
	PYTHONPATH=tools $(BIN)/python -m control_plane

tools: .venv/ready ## Build the cluster's binaries into ~/.cache (runs when needed)
	PYTHONPATH=tools $(BIN)/python -m control_plane build

test: .venv/ready ## Run all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

volcano: .venv/ready ## Test training groups under a real Volcano (builds it once: 4 minutes)
	PYTHONPATH=tools $(BIN)/python -m control_plane build volcano-scheduler volcano-controller-manager
	VOLCANO=1 $(BIN)/python -m pytest tests/cluster/test_volcano.py

images: .venv/ready ## Build the container images with buildah (ONLY=... VARIANT=hopper BASE=... BUILDER=...)
	$(BIN)/python tools/images.py $(if $(BASE),--base $(BASE)) $(if $(VARIANT),--variant $(VARIANT)) \
	  $(if $(BUILDER),--builder $(BUILDER)) $(if $(ONLY),--only $(ONLY))

e2e: .venv/ready ## Run the tests on a temporary real node: kubelet, containerd, our images (root)
	PYTHONPATH=tools $(BIN)/python tools/e2e.py $(if $(RECORD),--record $(RECORD)) $(PYTEST)

node: .venv/ready ## Open a shell with such a node (root)
	PYTHONPATH=tools $(BIN)/python tools/e2e.py --shell

torture: .venv/ready ## Kill a training 200 times at random and compare its weights (an hour; KILLS=20)
	$(BIN)/python -m benchmarks.torture --kills $(or $(KILLS),200)

chaos: .venv/ready ## Inject faults around the operator, seed by seed (hours; SEEDS=20, JOBS=2, KUEUE=1, or one: SEED=7)
	$(BIN)/python -m benchmarks.chaos $(if $(KUEUE),--kueue) $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200) $(if $(JOBS),--jobs $(JOBS)))

bench-operator: .venv/ready ## Measure the operator at 1,000 resources, next to Kubeflow's (half an hour; RESOURCES=50)
	$(BIN)/python -m benchmarks.scale $(if $(RESOURCES),--resources $(RESOURCES) --nodes $(RESOURCES))

bench-upgrade: .venv/ready ## Upgrade the operator under 100 resources in every stage (ten minutes; RESOURCES=20)
	$(BIN)/python -m benchmarks.upgrade $(if $(RESOURCES),--resources $(RESOURCES))

lint: .venv/ready ## Check style, types, layers, generated files, known vulnerabilities and secrets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m video2world_operator.codegen.crd --check
	$(BIN)/python -m video2world_operator.codegen.rbac --check
	$(BIN)/python -m benchmarks.measured_times --check
	$(BIN)/python -m video2world_operator.codegen.reference --check
	$(BIN)/python tools/train_settings.py --check
	$(BIN)/mkdocs build --site-dir build/lint-site
	$(BIN)/python tools/audit.py

dist: .venv/ready ## Build a release of the commit in dist/ (IMAGES=1: with the built images; KREW=1)
	$(BIN)/python tools/dist.py $(if $(IMAGES),--images) $(if $(KREW),--krew)

RELEASE = $(BIN)/python tools/release.py $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(KEY),--key $(KEY))

release-check: .venv/ready ## Check that the files agree with the tag of a release (TAG=v0.1.0)
	$(RELEASE) check --tag $(TAG)

publish-image: .venv/ready ## Push, sign and attest an image (IMAGE=trainer VARIANT=hopper REGISTRY=... KEY=...)
	$(RELEASE) image --image $(IMAGE) $(if $(VARIANT),--variant $(VARIANT))

publish-index: .venv/ready ## Join the architectures of the operator image (REGISTRY=... KEY=...)
	$(RELEASE) index

publish-chart: .venv/ready ## Push, sign and attest the chart of dist/ (REGISTRY=... KEY=...)
	$(RELEASE) chart

release-verify: .venv/ready ## Pull by digest and verify what was published from here (REGISTRY=... KEY=...)
	$(RELEASE) verify

github-release: .venv/ready ## Create the release on GitHub from dist/ (TAG=v0.1.0; needs gh and GH_TOKEN)
	$(RELEASE) github --tag $(TAG)

release-test: .venv/ready ## Publish to a registry on this machine, verify and install from it (root)
	$(BIN)/python -m pytest tests/release --timeout=1800 $(PYTEST)

docs: .venv/ready ## Build the documentation site into build/site
	$(BIN)/mkdocs build

format: .venv/ready ## Format the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: .venv/ready ## Generate CRD, RBAC manifests and docs/reference from the code
	$(BIN)/python tools/train_settings.py  # first: the CRD reads what it writes
	$(BIN)/python -m video2world_operator.codegen.crd
	$(BIN)/python -m video2world_operator.codegen.rbac
	$(BIN)/python -m benchmarks.measured_times
	$(BIN)/python -m video2world_operator.codegen.reference

constraints: .venv/ready ## Update constraints.txt to the newest versions that resolve
	{ sed -n '/^#/p' constraints.txt; \
	  $(UV) pip compile --quiet --no-header --no-annotate --python $(BIN)/python \
	  --extra operator --extra trainer --extra dev pyproject.toml; } > .constraints.new
	mv .constraints.new constraints.txt

clean: ## Remove everything created here: .venv, the demo's volume, caches
	rm -rf .venv .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `make` alone prints the targets.
CONFIG ?= serve_config.yaml
# Options for pip, such as an index that has CPU builds of torch: make install PIP_ARGS="--extra-index-url URL"
PIP_ARGS ?=
# Options of rayshard kuberay; the image has the demo model.
KUBERAY_ARGS ?= --in-pod examples=/app/examples
FIND_PYTHON = for p in python3.11 python3.12 python3.13; do $$p -m ensurepip --version >/dev/null 2>&1 && { echo $$p; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
STAMP = .venv/.installed
PIP = -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)
PYTEST = .venv/bin/python -m pytest -n $(JOBS) --dist loadscope
JOBS ?= 2
# What make image-check builds from, which stage, and options of cluster/image_check.py.
BASE ?=
TARGET ?= cpu
IMAGE_ARGS ?=
AXE = .browser/node_modules/axe-core/axe.min.js
AXE_VERSION = 4.14.1
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# Where it is set, each of some thirty processes of a cluster would compile the project anew, and pytest every test.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install serve check test test-full browser chaos soak pressure lint types format lock cluster image-check protos settings bench-overhead bench-encoders bench-streams bench-quantized demo-compress clean

help:  ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv from constraints.txt, with what the tests need (PYTHON=, PIP_ARGS=)

serve: $(STAMP)  ## check the configuration and serve it until Ctrl-C (CONFIG=serve_config.yaml)
	@.venv/bin/rayshard serve $(CONFIG)

check: $(STAMP)  ## for people at work: ruff, mypy, unit tests that start no process of their own, three minutes
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	$(PYTEST) tests/unit -m "not slow and not process" $(ARGS)

test: $(STAMP)  ## run the tests, twelve minutes on two quiet cores (ARGS= for pytest)
	$(PYTEST) -m "not slow" $(ARGS)

test-full: $(STAMP)  ## run the slow tests too, in the same run: each cluster starts once
	$(PYTEST) $(ARGS)

chaos: $(STAMP)  ## what faults do to the clients of a real cluster, half an hour (ARGS="--rows NAME,... --full --json FILE")
	.venv/bin/python -m tests.chaos.fault_table $(ARGS)

browser: $(STAMP) $(AXE)  ## the console in headless Chromium, installed with apt-get where it is missing; pictures in .browser/pictures
	@command -v chromedriver >/dev/null || $(AS_ROOT) apt-get install -y --no-install-recommends chromium chromium-driver
	.venv/bin/python -m pytest -n 0 tests/browser $(ARGS)

soak: $(STAMP)  ## twenty minutes of streams while a random process dies each half minute (ARGS="--minutes N")
	.venv/bin/python -m tests.chaos.soak $(ARGS)

pressure: $(STAMP)  ## 200 and 2,000 streams at once, slow readers and clients that leave (ARGS="--streams N ...")
	.venv/bin/python -m tests.chaos.pressure $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	.venv/bin/ruff check
	.venv/bin/ruff format --check

types: $(STAMP)  ## mypy, strict
	.venv/bin/mypy

format: $(STAMP)  ## rewrite the code as ruff formats it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock:  ## resolve pyproject.toml anew into constraints.txt (PYTHON=, PIP_ARGS=)
	@$(REQUIRE_PYTHON)
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip setuptools
	.venv-lock/bin/python -m pip install --quiet $(PIP_ARGS) --no-build-isolation --editable '.[test,dev,bench,train,compress,tracing]'
	@{ sed -n '/^#/p' constraints.txt; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' \
	  | grep -v -E '^(nvidia|triton|cuda)'; } > constraints.new
	mv constraints.new constraints.txt
	rm -rf .venv-lock

cluster: $(STAMP)  ## write cluster/base/rayshard.yaml by rayshard kuberay (CONFIG=serve_config.yaml, KUBERAY_ARGS="--image ...")
	@.venv/bin/rayshard kuberay $(CONFIG) $(KUBERAY_ARGS) > cluster/base/rayshard.yaml.new || { rm cluster/base/rayshard.yaml.new; exit 1; }
	@mv cluster/base/rayshard.yaml.new cluster/base/rayshard.yaml

image-check: $(STAMP)  ## build the image with buildah, and ask it a question (BASE=IMAGE or oci-archive:FILE, TARGET=cuda, IMAGE_ARGS="--torch-index URL")
	@.venv/bin/python -m cluster.image_check --base "$(BASE)" --target $(TARGET) $(IMAGE_ARGS)

protos: $(STAMP)  ## write the code of serve_app/protos/*.proto
	.venv/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. serve_app/protos/*.proto

settings: $(STAMP)  ## write docs/configuration.md from the settings and options of the code
	.venv/bin/rayshard config --markdown > docs/configuration.new && mv docs/configuration.new docs/configuration.md

bench-overhead: $(STAMP)  ## what serving costs beside the engine (minutes)
	.venv/bin/python -m bench.overhead --record

bench-encoders: $(STAMP)  ## small models beside uvicorn, LitServe and naive Serve (minutes)
	.venv/bin/python -m bench.encoders --record

bench-streams: $(STAMP)  ## what a streamed token costs over gRPC and over HTTP (minutes)
	.venv/bin/python -m bench.grpc_streams --record

bench-quantized: $(STAMP)  ## decoding of quantized models beside float32 and bfloat16 (minutes)
	.venv/bin/python -m bench.quantized --record

demo-compress: $(STAMP)  ## quantize, prune and distill the demo model, and measure it (ten minutes)
	.venv/bin/python -m examples.compress_demo.run

clean:  ## remove .venv, caches and logs
	rm -rf .venv .venv-lock .rayshard .browser .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

REQUIRE_PYTHON = [ -n "$(PYTHON)" ] || { echo "rayshard needs python3.11, 3.12 or 3.13 with its venv module on the PATH;" \
	"or name one: make install PYTHON=/path/to/python3" >&2; exit 1; }

$(AXE):  # looks for what keeps people from using a page; the tests skip it where there is no npm
	@command -v npm >/dev/null || { echo "there is no npm, so axe-core is left out"; exit 0; }; \
	npm install --prefix .browser --no-save --ignore-scripts --no-audit --no-fund axe-core@$(AXE_VERSION)

$(STAMP): constraints.txt pyproject.toml
	@$(REQUIRE_PYTHON)
	@echo "Installing into .venv: a few minutes the first time."
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python $(PIP) pip setuptools
	.venv/bin/python $(PIP) --no-build-isolation --editable '.[test,dev,bench,train,compress,tracing]'
	@touch $@

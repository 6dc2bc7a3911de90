# Two commands are enough on a fresh machine: `make run` and `make test`. `make help` lists the rest.

WORKERS ?= 2
ARGS ?=
TESTS ?=
EXPORT ?= all.zip
# A file's tests run in one process: what they share is made once. Unit tests compute, in as many processes as there
# are cores, four at most; the others mostly wait, so more of them run side by side than there are cores.
SIDE_BY_SIDE := --dist loadfile -n
UNIT := tests/unit -m "not process" $(SIDE_BY_SIDE) logical --maxprocesses 4
OTHERS := tests -m process $(SIDE_BY_SIDE) 3
export PYTHON

# The folders that mypy and the import linter look at stand in setup.cfg.
bin := .venv/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup run test test-faults test-matrix unit quick check benchmarks quality format lock advisories dist clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | awk -F '	' '{ printf "make %-12s %s\n", $$1, $$2 }'

setup:  ## make .venv from requirements.lock (does nothing when it is there already)
	@tools/setup.sh

run: setup  ## the main job on NYC flights: convert, train, register, score (WORKERS=2, ARGS="--epochs 3")
	@JAVA_HOME="$$(tools/java.sh)" && export JAVA_HOME && \
		exec $(bin)/python -m training.run --workers $(WORKERS) $(ARGS)

test: check  ## all checks and the usual tests, 15 to 35 minutes on two cores (ARGS="-k checkpoint", TESTS=tests/unit)
	@tools/browser.sh
	@JAVA_HOME="$$(tools/java.sh)" && export JAVA_HOME && \
		if [ -n "$(TESTS)" ]; then exec $(bin)/pytest $(TESTS) $(ARGS); fi && \
		tools/caches.sh && $(bin)/pytest $(UNIT) $(ARGS) && exec $(bin)/pytest $(OTHERS) $(ARGS)

test-faults: setup  ## every kill, outage, soak, whole recipe and notebook, and properties on more examples, three hours or more
	@tools/browser.sh
	@JAVA_HOME="$$(tools/java.sh)" && export JAVA_HOME && \
		tools/caches.sh && exec $(bin)/pytest tests --full $(SIDE_BY_SIDE) 3 $(ARGS)

test-matrix: setup  ## the core of the tests with other versions, in environments of tools/matrix, six to twelve minutes each (ARGS=lowest)
	@tools/matrix.sh $(ARGS)

unit: setup  ## the pure unit tests: no Java, no child processes, four to twelve minutes (ARGS="-k manifest")
	@tools/caches.sh
	@exec $(bin)/pytest $(UNIT) $(ARGS)

quick: setup  ## the unit tests nearest to what has changed since the last commit, 90 seconds at most (ARGS="--since main")
	@tools/caches.sh
	@exec $(bin)/python tools/quick.py $(ARGS)

check: setup  ## format, lint, types, import direction, known vulnerabilities of the locked packages
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/python tools/advisories.py check

benchmarks: setup  ## measure data path, training and scoring, some hours, pages in docs/benchmarks (ARGS="--scale 0.05")
	@JAVA_HOME="$$(tools/java.sh)" && export JAVA_HOME && \
		$(bin)/python -m benchmarks.data_path $(ARGS) && $(bin)/python -m benchmarks.training $(ARGS) && \
		exec $(bin)/python -m benchmarks.scoring $(ARGS)

quality: setup  ## train the models of docs/quality.md, write docs/benchmarks/quality.md, one to three hours (DATA=folder of the data sets)
	@JAVA_HOME="$$(tools/java.sh)" && export JAVA_HOME && \
		exec $(bin)/python -m benchmarks.quality "$(DATA)"

format: setup  ## rewrite the files as `make check` wants them, as far as that can be done without you
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

lock: setup  ## write requirements.lock from setup.cfg, keeping the versions it has (ARGS=--upgrade: newest ones)
	$(bin)/uv pip compile setup.cfg --extra all --extra notebook --extra dev --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --generate-hashes --no-header --quiet --output-file requirements.lock $(ARGS)

advisories: setup  ## write tools/advisories.json from OSV's export of the ecosystem PyPI (EXPORT=all.zip)
	$(bin)/python tools/advisories.py update "$(EXPORT)"

dist: setup  ## build sdist and wheel into dist/ and check them as an index does
	rm -rf dist
	SOURCE_DATE_EPOCH="$$(git log -1 --format=%ct)" \
		$(bin)/uv build --quiet --no-build-isolation --python $(bin)/python --out-dir dist
	$(bin)/uv tool run --quiet twine check --strict dist/*

clean:  ## remove .venv, caches and build products; keep datasets and results
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

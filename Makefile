# `make demo` and `make test` do everything on a fresh machine; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HSAE := $(BIN)/hsae

.PHONY: install demo test check docs faults parity lock bench bench-short audit release fuzz

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Harvest -> train -> inspect on the bundled model. Run again, it finds what is there.
demo: install
	$(HSAE) harvest configs/bundled.toml
	$(HSAE) train configs/bundled.toml
	$(HSAE) inspect --run bundled
	$(HSAE) inspect --run bundled --setup hebb-tied --pick

test: install
	$(BIN)/python -m pytest

# 10,000 command lines and configs that nobody means, lies in strangers' files, then each reader by coverage (atheris).
fuzz: install
	HSAE_HOSTILE=8000 $(BIN)/python -m pytest -s tests/test_hostile.py tests/test_hostile_files.py
	for target in config manifest shard; do $(BIN)/python tools/fuzz/run.py $$target $(FUZZ) || exit 1; done

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation, to build/site; a warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Every fault, injected into real processes, in 19 minutes on 2 cores; writes docs/reliability.md. FAULTS="--short" for few trials.
faults: install
	$(BIN)/python tools/reliability.py $(FAULTS)

# Exports and imports held against the real packages, each in an environment of its own, made the first time.
parity: install
	$(BIN)/python tools/parity.py

# Against the peers: training steps, time to equal FVU, memory, harvest, storage. Each peer gets an environment of its own, the first time.
# On a store of yours: make bench BENCH="--store NAME".
bench: install
	$(BIN)/python benchmarks/train.py --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/fvu.py --search --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/train.py --memory --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/train.py --sweep --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/harvest.py --out benchmarks/results
	$(BIN)/python benchmarks/storage.py --out benchmarks/results --saelens-python benchmarks/.venvs/saelens/bin/python

# A few steps of each, in minutes, once the environments are there.
bench-short: install
	$(BIN)/python benchmarks/train.py --short --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/fvu.py --short --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/train.py --memory --short --tasks relu --out benchmarks/results $(BENCH)
	$(BIN)/python benchmarks/harvest.py --short

# New exact versions, from the ranges in pyproject.toml. The lock names no platform: torch==X, without +cpu.
lock:
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet torch==2.13.0
	$(VENV)-lock/bin/pip install --quiet '.[dev,docs,gguf,lab]'
	$(VENV)-lock/bin/pip freeze --exclude hsae | sed 's/+cpu$$//; s/^triton==.*/&; platform_system == "Linux" and platform_machine == "x86_64"/' > requirements.lock
	rm -rf $(VENV)-lock

# Known flaws of the pinned packages, where an advisory service can be reached.
audit: install
	$(BIN)/python tools/supply/audit.py

# The last commit as sdist and wheel, built twice and compared, tried in an empty environment; SBOM, checksums. To dist/.
release: install
	rm -rf dist
	$(BIN)/python tools/supply/release.py dist

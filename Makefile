# Needs python3 (3.11 or newer) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: install demo test test-all check format docs ledger ledger-check clean

install: $(VENV)/installed

# uv installs in a fifth of the time; where it cannot be had, pip does the same.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv && \
		$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]' || \
		$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/torchdoctor demo

# Each file's tests run in one worker, which makes what they share once. Compiled modules are kept, whatever
# the environment says: else every worker and every program that a test starts compiles them all again.
test test-all: export PYTHONDONTWRITEBYTECODE :=

test: install
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not browser"

test-all: install
	$(BIN)/python -m pytest -n $(JOBS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The parts of the documentation that come from the code, and the tutorial's pictures (minutes, and Chromium).
docs: install
	$(BIN)/python docs/write_pages.py
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_review_pictures.py

# The page of the paper's numbers and ours, from the lines in benchmarks/results.
ledger: install
	$(BIN)/python benchmarks/ledger/render.py

# make ledger-check CELL=program/architecture/dataset/draw/size/arm/variant/seed/protocol [DATA=folder]
ledger-check: install
	$(BIN)/python benchmarks/ledger/check.py '$(CELL)' $(if $(DATA),--data '$(DATA)')

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

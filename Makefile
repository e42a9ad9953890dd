# The commands of the README. `make quickstart` and `make test` need nothing done before them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv quickstart test test-slow lint bench

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Without torchvision, which has no build for every torch: the tests run its Inception network, which does not need it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torch-fidelity
	@touch $@

quickstart: venv
	$(BIN)/nas run studies/quickstart_search.yaml

test: venv
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test-slow: venv
	$(BIN)/python -m pytest -m slow

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nas validate studies/*.yaml studies/*/*.yaml

bench: venv
	@for name in gather engine depthwise cost_table training_memory training_speed; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

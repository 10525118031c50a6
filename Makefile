# Thin: each target is one line of meaning. `make demo` and `make test` work from a bare checkout.
PYTHON ?= python3
PORT ?= $(or $(MEDTUNE_PORT),8000)
BIN = .venv/bin

.PHONY: demo serve test guards faults chaos check format bench clean

demo: .venv/service                  ## a real job through every part, in a temporary home
	@$(BIN)/medtune demo

serve: .venv/service                 ## the service on http://127.0.0.1:$(PORT)
	@MEDTUNE_PORT=$(PORT) $(BIN)/medtune serve

test: .venv/dev debian-packages      ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --ignore=tests/faults
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/faults

guards: .venv/dev                    ## take away one guard after the other: its test must fail
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.guards.remove_guards $(GUARDS)

faults: .venv/dev                    ## the fault suite with the real clocks
	OMP_NUM_THREADS=1 MEDTUNE_TEST_REAL_CLOCKS=1 $(BIN)/pytest -n 3 tests/faults

chaos: .venv/dev                     ## 200 schedules of random faults; result in bench/results
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.chaos --schedules 200

check: .venv/dev                     ## format, lint, types, import rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev                     ## every benchmark; results in bench/results
	@.ci/install-debian-packages wrk
	for file in startup api streams logs claims trainer phi phi_replace safety adapters overlap checks; do $(BIN)/python -m bench.$$file || exit 1; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# torch comes first and alone: its version decides what else is installed.
.venv/service: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@echo "installing medtune and its packages into .venv (a few minutes the first time)" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,embedded]' >&2
	@touch $@

.venv/dev: .venv/service
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,embedded,dev,bench]'
	@touch $@

# The tests run a browser, and servers other than the embedded ones.
.PHONY: debian-packages
debian-packages:
	@.ci/install-debian-packages chromium munge openssl postgresql redis-server slurm-wlm

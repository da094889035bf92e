# make repro    the whole pipeline through DVC, then where the report is
# make methods  every way of distilling against plain KL (examples/methods), then where its report is
# make chains   teachers, tutors and students in chains (examples/chains), then where its report is
# make claims   what others published, tried again (examples/claims), then where its report is
# make compression  a teacher's size and time cut to a fraction (examples/compression), then the table of five seeds
# make repro-lm   a language model distilled, one distribution per token (examples/language_model), then its report
# make test     ruff, mypy and the tests           make lint | types | format | bench | faults | clean | distclean
#
# Each target makes .venv by itself the first time. Without a GPU, the CPU build of torch is the smaller download:
#   make repro TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := compress,dev,dvc,hf,lm,report
TORCH := $(shell grep '^torch==' constraints.txt)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: repro repro-lm methods chains claims compression test lint types format bench faults clean distclean
.DEFAULT_GOAL := test

# torch first and alone, so that the index named above decides which build it is: 2.x.y+cpu sorts above 2.x.y.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or later is needed; found none. Name one: make PYTHON=..." >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --constraint constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@# Without its dependencies, torchvision among them: tests compare its losses with ours, nothing else uses it.
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt torchdistill
	@touch $@

repro: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro
	@echo "report: $(CURDIR)/report/index.html"

repro-lm: $(READY)
	cd examples/language_model && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "report: $(CURDIR)/examples/language_model/report/index.html"

methods: $(READY)
	cd examples/methods && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "report: $(CURDIR)/examples/methods/report/index.html"

chains: $(READY)
	cd examples/chains && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "report: $(CURDIR)/examples/chains/report/index.html"

claims: $(READY)
	cd examples/claims && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "report: $(CURDIR)/examples/claims/report/index.html"

compression: $(READY)
	cd examples/compression && PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "report: $(CURDIR)/examples/compression/report/index.html"

test: lint types
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python -m benchmarks

# Every campaign of faults in full, with counts; `make test` runs them short.
faults: $(READY)
	$(BIN)/python -m tests.faults

# What the stages wrote. DVC's own cache stays, so that `dvc repro` after it restores instead of computing again.
clean:
	cd examples/methods && rm -rf caches models runs evaluations report
	cd examples/chains && rm -rf caches models runs evaluations report
	cd examples/claims && rm -rf caches claims data models runs evaluations report
	cd examples/compression && rm -rf caches compressed evaluations models runs report
	cd examples/language_model && rm -rf caches compressed data evaluations models runs report
	rm -rf caches models runs evaluations compressed report build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .dvc/cache .dvc/tmp

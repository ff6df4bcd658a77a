# `make demo` and `make test` do all the set-up they need. Where the active Python already has torch, that environment
# is used as it is (pip only adds what is missing); otherwise a virtual environment is made in .venv and plain pip
# resolves torch, so that torch and torchvision fit each other.
PYTHON ?= python3
HAS_TORCH := $(shell $(PYTHON) -c "import torch" 2>/dev/null && echo yes)
ifeq ($(HAS_TORCH),yes)
PY := $(PYTHON)
else
PY := .venv/bin/python
endif
# one stamp an environment
STAMP := .installed-$(shell $(PYTHON) -c "import sys, zlib; print(zlib.crc32(sys.prefix.encode()))")

.PHONY: test test-slow test-oldest integration demo lint install clean

$(STAMP): pyproject.toml nnunet_caml.pth
ifneq ($(HAS_TORCH),yes)
	$(PYTHON) -m venv .venv
endif
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -q -e ".[dev]"
	$(PY) -m nnunet_caml.cli check
	touch $(STAMP)

install: $(STAMP)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -q -n logical --maxprocesses 4 --dist worksteal --durations=10

test-slow: $(STAMP)
	$(PY) -m pytest -q -m slow

# with the oldest versions that pyproject.toml allows: make test-oldest PYTHON=python3.10
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check --progress-bar off -q uv
	.venv-oldest/bin/uv pip install --python .venv-oldest --no-progress --resolution lowest-direct -e ".[dev]"
	.venv-oldest/bin/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal --durations=10

# nnU-Net's own integration procedure, small; needs the Hippocampus data of the Decathlon
integration: $(STAMP)
	$(PY) tests/integration/procedure.py

demo: $(STAMP)
	$(PY) -m nnunet_caml.cli demo

clean:
	rm -rf .venv .venv-oldest .installed-* demo_output integration_output build dist

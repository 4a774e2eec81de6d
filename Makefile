# From nothing:  make demo: a trained, evaluated VAE.   make check: the quick tests.   make test: the tests.
# make test-all: also those that repeat them in other combinations.
# Another Python: make test PYTHON=python3.12.   With torch and what builds on it to compare with: make test EXTRAS=test,peers

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv
RUN := $(VENV)/bin/python
# Versions that are known to work together; a Python without a list takes the newest of everything.
CONSTRAINTS := $(wildcard constraints/python$(VERSION).txt)
INSTALL := $(RUN) -m pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable
DEMO ?= runs/vae_digits
EXTRAS ?= test
QUICK := tests/config tests/test_model.py tests/test_readme.py tests/test_conformance.py

.PHONY: demo check test test-all lint clean

demo: $(VENV)/installed
	$(RUN) -m experiments.train --experiment=vae_digits --workdir=$(DEMO)
	$(RUN) -m experiments.evaluate --workdir=$(DEMO)
	$(RUN) -m experiments.sample --workdir=$(DEMO) --num_samples=64
	$(RUN) -m experiments.sample --workdir=$(DEMO) --num_samples=64 --reconstruct
	@echo
	@echo "pictures     $(DEMO)/samples/*.png"
	@echo "metrics      $(DEMO)/metrics.jsonl, $(DEMO)/evaluation_test.json, and TensorBoard: tensorboard --logdir=$(DEMO)"
	@echo "checkpoints  $(DEMO)/checkpoints"
	@echo "next         source $(VENV)/bin/activate"
	@echo "             python -m experiments.train --list"
	@echo "             python -m experiments.train --experiment=vae_digits --model.latent_dim=2 --workdir=runs/two_latents"

check: $(VENV)/installed-$(EXTRAS)
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal -m quick $(QUICK)

test: $(VENV)/installed-$(EXTRAS)
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal -m "not platforms and not exhaustive"

test-all: $(VENV)/installed-$(EXTRAS)
	$(RUN) -m pytest --numprocesses=2 --dist=worksteal -m "not platforms"

lint: $(VENV)/installed-$(EXTRAS)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "genjax needs Python 3.11 or newer; $(PYTHON) is $(VERSION): make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) .
	@touch $@

$(VENV)/installed-$(EXTRAS): $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) '.[$(EXTRAS)]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info

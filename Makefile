# make demo       install, then train, evaluate and look at a tiny model: CPU, no download but packages
# make test       install, then run the tests
# make test-slow  the tests that take minutes        make test-gpu   those that need a CUDA device (none may skip)
# make lint       format, lint and types             make lock       pin what is installed now

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: install demo test test-slow test-gpu lint lock
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --constraint requirements.lock --editable ".[dev]"
	touch $@

demo: install
	$(RUN) train.py

test: install
	$(RUN) -m pytest

test-slow: install
	$(RUN) -m pytest -m slow

test-gpu: install
	TAE_REQUIRE_GPU=1 $(RUN) -m pytest -m gpu

lint: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

lock: install
	$(RUN) -m pip freeze --exclude-editable | sed '1i # Exact versions of everything that `make install` installs; used as constraints. Made by `make lock`.' > requirements.lock

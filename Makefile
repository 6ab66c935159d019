# make demo       install, then fine-tune, evaluate and look at a tiny model: CPU, no download but packages
# make test       install, then run the tests
# make test-slow  the tests that take minutes        make test-gpu   those that need a CUDA device (none may skip)
# make test-network  the real networks of losses and metrics, whose weights are fetched once (175 MB)
# make tiny-weights CLIPS=DIR   train the bundled weights further
# make lint       format, lint, types and layers     make lock       pin what is installed now
# make docs       the pages of docs/ as a site in site/; a broken link or anchor is an error

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
TESTS ?= not slow and not gpu and not network
# One more than a small machine has cores: many tests wait for processes that they have started.
TEST_PROCESSES ?= 3

.PHONY: install demo test test-slow test-gpu weights test-network lint docs lock tiny-weights
install: $(VENV)/installed

# Without compiling 20,000 files of which a run imports a fraction: Python compiles those when it first does.
$(VENV)/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --no-compile --constraint requirements.lock --editable ".[dev]"
	touch $@

demo: install
	$(RUN) train.py

test: install
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "$(TESTS)" --numprocesses $(TEST_PROCESSES) --dist loadfile --durations 20

test-slow: install
	$(RUN) -m pytest -m slow

test-gpu: install
	TAE_REQUIRE_GPU=1 $(RUN) -m pytest -m gpu

weights: install
	$(RUN) -m tae.weights get=all

test-network: weights
	$(RUN) -m pytest -m "network and not slow"

lint: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

lock: install
	$(RUN) -m pip freeze --exclude-editable | sed '1i # Exact versions of everything that `make install` installs; used as constraints. Made by `make lock`.' > requirements.lock

# The bundled weights, trained further with the folders ucf101 and hd in CLIPS (from random weights: init_from=null in
# the last line); `resume=auto` continues after a stop.
TINY := datasets/tiny
tiny-weights: install
	$(RUN) -m data.prepare dataset=ucf101 source=$(CLIPS)/ucf101 output=$(TINY)/ucf101 val=0.05 shard_mb=4
	$(RUN) -m data.prepare dataset=mixkit source=$(CLIPS)/hd output=$(TINY)/hd split=none shard_mb=4 \
		reencode=true shots=true short_side=256 crf=23
	test -d $(TINY)/synthetic || $(RUN) -m data.synthetic output=$(TINY)/synthetic num_clips='{train: 24, val: 0, test: 0}'
	$(RUN) train.py experiment=tiny_pretrain output_dir=outputs/tiny_pretrain/weights resume=auto

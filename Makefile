PYTHON ?= python3
DATASET ?= sift-photos
PRESET ?= small
BYTES ?= 8
CODECS ?=
RATES ?= 4,8,12,16
SCALE ?= small
EXPERIMENTS ?= table1 multi_rate k_m_tradeoff ablations blocks parts candidates_beam times variants
ARGS ?=
WORKERS ?= 2
INSTALLING = Installing into .venv, which takes some minutes once, without a word:

.PHONY: help train eval search reproduce test bench notebooks docs lint clean
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 8

train: .venv/run  ## train and measure: DATASET=name|path PRESET=small BYTES=8 ARGS="--set num_epochs=40"
	.venv/bin/qinco train --dataset "$(DATASET)" --preset $(PRESET) --bytes $(BYTES) $(ARGS)

eval: .venv/eval  ## compare codecs, about 80 minutes on 2 cores, less with fewer CODECS or RATES: DATASET=name|path CODECS=opq,rq,small@16 RATES=8
	@echo "By default this takes about 80 minutes on 2 cores, four fifths of them for lsq and unq."
	@echo "Shorter: CODECS=pq,opq,rq:B=32,small@16 a fifth of that, RATES=8 a quarter."
	.venv/bin/qinco compare --dataset "$(DATASET)" $(if $(CODECS),--codecs "$(CODECS)") --rates "$(RATES)" $(ARGS)

search: .venv/eval  ## nearest neighbours beside Faiss's indexes, about 12 minutes on 2 cores: DATASET=name|path PRESET=small BYTES=8 ARGS="--lists 256"
	@echo "This takes about 12 minutes on 2 cores, 7 of them to train the model, if \`make train\` has"
	@echo "not. Nothing else should run on the machine, since queries are timed."
	.venv/bin/python experiments/nearest.py --dataset "$(DATASET)" --preset $(PRESET) --bytes $(BYTES) $(ARGS)

reproduce: .venv/eval  ## the papers' tables and figures: SCALE=small|full DATASET=name|path; see experiments/README.md
	for name in $(EXPERIMENTS); do \
	  .venv/bin/python experiments/$$name.py --dataset "$(DATASET)" --scale $(SCALE) $(ARGS) || exit; \
	done
	.venv/bin/python experiments/costs.py --scale $(SCALE)

test: .venv/dev  ## run the tests
	.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

bench: .venv/dev  ## measure speed: ARGS="--grid full --seconds 20"; see experiments/README.md
	mkdir -p runs && .venv/bin/python experiments/speed.py --out runs/speed.jsonl $(ARGS)

notebooks: .venv/dev  ## run the notebooks and keep their outputs
	.venv/bin/python tests/support/kernels.py notebooks/*.ipynb

docs: .venv/docs  ## build the site into build/docs
	.venv/bin/sphinx-build -W --keep-going -q docs build/docs
	.venv/bin/sphinx-build -W --keep-going -q -b doctest docs build/doctest
	@echo "open build/docs/index.html"

lint: .venv/dev  ## ruff and mypy
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

clean:  ## remove the virtual environment and caches; runs stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/run: setup.cfg pyproject.toml
	@echo "$(INSTALLING)"
	$(PYTHON) -m venv .venv && .venv/bin/pip install --quiet --editable . && touch $@

.venv/eval: setup.cfg pyproject.toml
	@echo "$(INSTALLING)"
	$(PYTHON) -m venv .venv && .venv/bin/pip install --quiet --editable '.[search]' && touch $@ .venv/run

.venv/dev: setup.cfg pyproject.toml
	@echo "$(INSTALLING)"
	$(PYTHON) -m venv .venv && .venv/bin/pip install --quiet --editable '.[dev,search]' && touch $@ .venv/eval .venv/run

.venv/docs: setup.cfg pyproject.toml
	@echo "$(INSTALLING)"
	$(PYTHON) -m venv .venv && .venv/bin/pip install --quiet --editable '.[docs,search]' && touch $@

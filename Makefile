# framebank: one command per stage; `make help` lists them. The virtual environment .venv/ is made on first use.
#
# Variables, given on the command line (a value may hold spaces: DATA='my videos'):
#   DATA=      folder of videos, manifest or one file (default: the sample set, banked with the demo's settings)
#   RECIPE=    a named system, as r2plus1d: `framebank recipes` lists them (default: none)
#   BACKBONE=  any torchvision classification or video model (default: resnet50, or the recipe's)
#   WEIGHTS=   a torchvision weight name, a checkpoint file, or `random` (default: DEFAULT, or the recipe's)
#   OUT=       the bank (default: data/, the name of DATA, that of a recipe, .h5)
#   RUN=       the run folder of a head (default: data/, the name of the bank, -head)
#   FINETUNED= the run folder of a fine-tuning (default: data/, the name of the bank, -finetuned)
#   ARGS=      any further options of the command
#   PYTHON=    the Python that makes .venv/ (default: python3)
#   JOBS=      processes that share the tests (default: 2)

SHELL = /bin/sh
PYTHON ?= python3
JOBS = 2
DATA =
ARGS =
RECIPE =
ifeq ($(DATA),)
SAMPLES = data/samples
BACKBONE = $(if $(RECIPE),,squeezenet1_1)
WEIGHTS = random
OUT = data/samples$(OF_RECIPE).h5
SETTINGS = $(if $(RECIPE),,--image-size 64)
else
SAMPLES =
BACKBONE = $(if $(RECIPE),,resnet50)
WEIGHTS = $(if $(RECIPE),,DEFAULT)
OUT = data/$(shell basename -- $(call quoted,$(DATA)) .csv)$(OF_RECIPE).h5
SETTINGS =
endif

RUN = $(patsubst %.h5,%,$(OUT))-head
FINETUNED = $(patsubst %.h5,%,$(OUT))-finetuned

BIN = .venv/bin
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),$(1) $(call quoted,$(2)))
BY_RECIPE = $(call option,--recipe,$(RECIPE))
OF_RECIPE = $(if $(RECIPE),-$(shell basename -- $(call quoted,$(RECIPE)) .toml))
# Weights that have a name, or are random, are found by what the bank says of them; a file must be given again.
AGAIN = $(if $(shell test -f $(call quoted,$(WEIGHTS)) && echo file),--weights $(call quoted,$(WEIGHTS)))

help: ## list the commands (what plain `make` does)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@printf '\nVariables, as in: make extract DATA=my_videos ARGS="--fps 5"\n'
	@awk '/^#   [A-Z]+= / { sub(/^# /, ""); print }' Makefile

demo: .venv/.installed ## make sample clips, bank them, train a head, fine-tune, write pages (needs no network, no videos)
	$(BIN)/framebank demo

extract: .venv/.installed ## bank every frame of the videos in DATA=, into OUT=
	$(if $(SAMPLES),$(BIN)/framebank samples $(SAMPLES))
	$(BIN)/framebank extract $(call quoted,$(or $(DATA),$(SAMPLES))) --out $(call quoted,$(OUT)) $(BY_RECIPE) \
		$(call option,--backbone,$(BACKBONE)) $(call option,--weights,$(WEIGHTS)) $(SETTINGS) $(ARGS)

train-head: .venv/.installed ## train a head on the bank OUT= (default: the sample set's, banked first), into RUN=
	$(if $(SAMPLES),@$(MAKE) --no-print-directory extract ARGS=)
	$(BIN)/framebank train-head $(call quoted,$(OUT)) --out $(call quoted,$(RUN)) $(BY_RECIPE) $(ARGS)

finetune: .venv/.installed ## train the head RUN= further with its backbone, on the videos in DATA=, into FINETUNED=
	$(if $(SAMPLES),@$(MAKE) --no-print-directory train-head ARGS=)
	$(BIN)/framebank finetune $(call quoted,$(or $(DATA),$(SAMPLES))) --head $(call quoted,$(RUN)) \
		--out $(call quoted,$(FINETUNED)) $(BY_RECIPE) $(AGAIN) $(ARGS)

describe: .venv/.installed ## show what the bank OUT= holds
	$(BIN)/framebank describe $(call quoted,$(OUT)) $(ARGS)

bench: .venv/.installed ## measure how fast extraction from DATA= is here, and beside what bounds it
	$(if $(RECIPE),$(error bench takes no RECIPE: it is of a network alone; give BACKBONE and ARGS))
	$(if $(SAMPLES),$(BIN)/framebank samples $(SAMPLES))
	$(BIN)/framebank bench extract $(call quoted,$(or $(DATA),$(SAMPLES))) \
		$(call option,--backbone,$(BACKBONE)) $(call option,--weights,$(WEIGHTS)) $(SETTINGS) $(ARGS)

test: .venv/.installed-dev ## run the tests but the slow ones
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-all: .venv/.installed-dev ## run every test, the slow ones too, with line coverage
	$(BIN)/python -m pytest -n $(JOBS) -m '' --cov --cov-report=term $(ARGS)

check: .venv/.installed-dev ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-dev ## build the documentation's site, into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

clean: ## remove caches and install stamps; .venv/ itself and data/ stay
	rm -rf build dist site *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f .venv/.installed .venv/.installed-dev
	find pipeline stages tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the second call instant; they are written last, so that an interrupted installation is repeated.
# A venv without pip is half made (Debian without python3-venv leaves one) and is made again.
.venv/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "framebank needs Python 3.11 or newer, and $(PYTHON) is not: name one, as in make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "Installing PyTorch and the rest into .venv/ (some GB, once)"
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

.PHONY: help demo extract train-head finetune describe bench test test-all check docs clean

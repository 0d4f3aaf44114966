# Every task a person does. `make` alone lists them.
# What is up to date is decided by content: tools/stamps.py renews a stamp only when what it stands for
# has changed, and make compares the stamps' times.

PROFILE ?= pocket
PYTHON ?= python3
# Arms and tests run side by side, each on one thread.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
EXTRAS := test nevis data cluster browser
BUILD := build/$(PROFILE)
STAMPS := $(BUILD)/stamps
DRAWN := 01_what_pruning_removes 02_the_front 04_task_by_task 07_the_stream 08_learners 09_image_passes
# It needs networks of four sizes.
ifneq ($(PROFILE),smoke)
DRAWN += 03_best_size
endif
# These two need no records and measure for themselves, in minutes: `rerun` draws them.
MEASURED := 05_zero_shot_fidelity 06_macs_and_measured_time
# These need arms that the smaller profiles do not have.
ifeq ($(PROFILE),paper)
DRAWN += 10_rates 11_near_and_far 12_which_filters 13_adviser 14_over_the_stream \
	15_size_of_the_task 16_which_networks
endif
# The images of these do not come with the code.
ifeq ($(PROFILE),nevis)
DRAWN := $(filter-out 07_the_stream,$(DRAWN))
endif
ifeq ($(PROFILE),further)
DRAWN := 02_the_front 04_task_by_task
endif
ifeq ($(PROFILE),sizes)
DRAWN := 15_size_of_the_task
endif
# Their records are committed: `figures` draws them, `rerun` measures them.
COMMITTED := paper nevis sizes further
# What `make pretrain` trains.
NETWORKS ?= resnet18eighth_64 resnet18quarter_64 resnet18half_64 resnet26_64 resnet50_64
# The whole repository, so that links and pictures are found, opened on the start page.
LAB := --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/index.ipynb
# It asks in a pop-up whether to fetch news, each time that no answer is stored.
NEWS := @jupyterlab/apputils-extension:announcements
# What nbval checks: all but the one that needs Tiny ImageNet and hours, and the one whose outputs are controls.
CHECKED := $(filter-out notebooks/pretrain.ipynb notebooks/explore.ipynb,$(wildcard notebooks/*.ipynb))
NBVAL = $(PY) -m pytest -p no:cacheprovider -n $(JOBS) --dist loadfile --nbval
CODE := lib tests tools paper notebooks
# A -j given to make is passed on; without one, the arms get JOBS.
PARALLEL = $(if $(filter -j%,$(MAKEFLAGS)),,-j$(JOBS))

# Side by side, threads that wait for one another must not spin: a notebook took minutes instead of seconds.
export OMP_WAIT_POLICY ?= PASSIVE
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Kernels are those of .venv and import this checkout's lib, whatever else is installed or set.
unexport JUPYTER_PATH
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONPATH := $(CURDIR)
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: help setup figures rerun runs $(EXTRAS:%=setup-%) test test-slow test-sweep test-all notebooks pretrain numbers verify paper arxiv benchmark tune rates tasks data lab html lint format clean _drawn _measured _arms

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "Profiles (PROFILE=...): smoke, pocket (the default), paper, nevis, sizes, further"

setup: ## make .venv from requirements.txt, when it is missing, broken, out of date or was moved
	@want="$(CURDIR) $$(cat requirements.txt pyproject.toml | cksum)"; \
	clear="$$($(PY) -c '' 2>/dev/null || echo --clear)"; \
	if [ "$$(cat $(VENV)/stamp 2>/dev/null)" != "$$want" ] || [ -n "$$clear" ]; then \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
			{ echo "Error: $(PYTHON) is older than 3.11: give one with PYTHON=path/to/python3.11" >&2; exit 1; }; \
		echo "Setting up $(VENV): some minutes, once." && \
		$(PYTHON) -m venv $$clear $(VENV) && $(PIP) -r requirements.txt && $(PIP) --no-deps --editable . && \
		$(PY) -m jupyter labextension disable --level=sys_prefix $(NEWS) >/dev/null 2>&1 && \
		echo "$$want" > $(VENV)/stamp; \
	fi

# The packages of an extra of pyproject.toml.
$(EXTRAS:%=setup-%): setup-%: setup
	@want="$$(cksum < pyproject.toml)"; \
	if [ "$$(cat $(VENV)/stamp-$* 2>/dev/null)" != "$$want" ]; then \
		$(PIP) --editable '.[$*]' && echo "$$want" > $(VENV)/stamp-$*; \
	fi

# The arms that are not done, their estimate first; then the stamps anew, for they hold a hash of the records.
# The + shares the jobs of a -j: make does not see the $(MAKE) in what it expands.
define run_arms
	@$(MAKE) --no-print-directory --question _arms 2>/dev/null || $(PY) -m tools.estimate "$(PROFILE)" $(JOBS)
	+@$(MAKE) --silent --no-print-directory $(PARALLEL) _arms
	@$(PY) -m tools.stamps renew "$(PROFILE)"
endef

figures: setup ## run the arms of PROFILE that are not done, and draw the figures
	@$(PY) -m tools.stamps renew "$(PROFILE)"
ifeq ($(filter $(COMMITTED),$(PROFILE)),)
	$(run_arms)
else
	@$(PY) -m tools.stamps warn "$(PROFILE)"
endif
	@$(MAKE) --silent --no-print-directory $(PARALLEL) _drawn
	@echo "Figures are in figures/$(PROFILE)."

rerun: setup ## measure anew what is out of date, also of the committed profiles, then draw all figures
	@$(PY) -m tools.stamps renew "$(PROFILE)"
	$(run_arms)
	@$(MAKE) --silent --no-print-directory $(PARALLEL) _drawn
	$(if $(filter-out paper,$(filter $(COMMITTED),$(PROFILE))),,@$(MAKE) --silent --no-print-directory -j1 _measured)

runs: setup-cluster ## run the arms of PROFILE on CLUSTER: local, a scheduler's address, slurm, pbs, ... (WORKERS=2)
	@$(PY) -m tools.cluster "$(PROFILE)" "$(or $(CLUSTER),local)" "$(or $(WORKERS),2)"

test: setup-test ## the fast tests, and nbval on the notebooks but those that measure
	$(PY) -m pytest -m "not slow and not sweep" -n $(JOBS) --dist loadscope
	$(NBVAL) $(filter-out $(MEASURED:%=notebooks/%.ipynb),$(CHECKED))

test-slow: setup-test ## the slow tests, which run the whole system
	$(PY) -m pytest -m "slow and not sweep" -n $(JOBS) --dist loadfile --durations=12
	$(NBVAL) $(MEASURED:%=notebooks/%.ipynb)

test-sweep: setup-test ## every network of the declared families, pruned in every way
	$(PY) -m pytest -m sweep -n $(JOBS)

test-all: test test-slow test-sweep ## all tests

notebooks: setup ## execute the notebooks in place, so that they carry their outputs
	$(PY) -m jupyter nbconvert --execute --inplace --log-level WARN \
		--ExecutePreprocessor.record_timing=False $(CHECKED)

# The template is the one of nbconvert's that writes the pictures' alternative texts.
html: setup ## write copies of the executed notebooks into build/html
	@$(PY) -m jupyter nbconvert --to html --template classic --log-level ERROR --output-dir build/html notebooks/*.ipynb
	@mkdir -p build/html/figures && cp figures/paper/*.png build/html/figures
	@sed -i.ipynb -E -e 's/href="([a-z0-9_]+)\.ipynb"/href="\1.html"/g' -e 's|\.\./figures/paper/|figures/|g' \
		build/html/*.html && rm build/html/*.html.ipynb
	@echo "The copies are in build/html."

pretrain: setup ## pretrain the residual networks from scratch (ARCHIVE=path/to/tiny-imagenet-200.zip)
	@test -e "$(ARCHIVE)" || { echo "Error: ARCHIVE=$(ARCHIVE) does not exist: give the path of tiny-imagenet-200.zip." >&2; exit 1; }
	@for network in $(NETWORKS); do \
		mkdir -p build/pretraining && \
		printf '{"archive": "%s", "network": "%s"}' "$(abspath $(ARCHIVE))" $$network > build/pretraining/$$network.parameters.json && \
		$(PY) -m tools.execute notebooks/pretrain.ipynb build/pretraining/$$network.ipynb build/pretraining/$$network.parameters.json || exit 1; \
	done

numbers: setup ## write what the paper takes from the committed records: claims, numbers, tables
	@$(PY) -m paper.build

verify: setup ## measure the paper's claims again at PROFILE, and every committed number against the records
ifeq ($(PROFILE),pocket)
	@$(PY) -m tools.stamps renew "$(PROFILE)"
	$(run_arms)
endif
	@$(PY) -m paper.verify "$(PROFILE)"

paper: setup ## build paper/main.pdf with latexmk or tectonic
	@if command -v latexmk >/dev/null; then cd paper && latexmk -quiet -pdf -halt-on-error main.tex; \
	elif command -v tectonic >/dev/null; then cd paper && tectonic --keep-intermediates main.tex; \
	else echo "Error: neither latexmk nor tectonic is here: install one, with" \
		"'apt-get install latexmk texlive-latex-recommended texlive-publishers texlive-fonts-recommended' or from" \
		"https://tectonic-typesetting.github.io." >&2; exit 1; fi
	@echo "The paper is in paper/main.pdf."

arxiv: paper ## pack the paper's sources into build/arxiv.tar.gz
	@rm -rf build/arxiv && mkdir -p build/arxiv/figures
	@cp -r paper/main.tex paper/main.bbl paper/references.bib paper/generated build/arxiv
	@cp figures/paper/*.pdf build/arxiv/figures
	@tar -C build/arxiv -czf build/arxiv.tar.gz .
	@echo "The sources are in build/arxiv.tar.gz."

benchmark: setup ## the engine's speed, growth and sharing, against the bare step and the usual loop
	@$(PY) tests/benchmarks/engine.py

tune: setup ## say in which precision BACKBONES (default: all) train fastest on DEVICE (default: cpu)
	@$(PY) -m tools.tune_precision "$(or $(DEVICE),cpu)" $(BACKBONES)

rates: setup ## fit the rates of body and head anew, from the committed records of their tuning
	@$(PY) -m tools.tune_rates

tasks: setup ## list the tasks of STREAM (default: pocket; or the path of a stream.yaml), here or not
	@$(PY) -m tools.tasks "$(or $(STREAM),pocket)"

data: setup ## download what torchvision can of STREAM's data sets, and say how to get the others
	@$(PY) -m tools.datasets.download "$(or $(STREAM),nevis/short)"

lab: setup ## open JupyterLab on the start page
	$(PY) -m jupyter lab $(LAB) $(if $(filter 0,$(shell id -u)),--allow-root)

lint: setup-test ## check the code's style and types
	$(PY) -m ruff check $(CODE)
	$(PY) -m ruff format --check $(CODE)
	$(PY) -m mypy

format: setup-test ## lay the code out and mend what ruff can mend
	$(PY) -m ruff check --fix $(CODE)
	$(PY) -m ruff format $(CODE)

clean: ## remove what was built (build/, figures of other profiles than paper); the packages stay
	rm -rf build figures/smoke figures/pocket figures/nevis figures/sizes figures/further

# --- below, reached through `figures` and `rerun` only, when the stamps are fresh ------------------

ifneq ($(filter _arms,$(MAKECMDGOALS)),)
ARMS := $(shell $(PY) -m tools.stamps arms "$(PROFILE)")
endif

_arms: $(ARMS:%=$(BUILD)/arms/%.ipynb)

$(BUILD)/arms/%.ipynb: $(STAMPS)/arms/%.json $(STAMPS)/arms/%.training $(STAMPS)/notebooks/experiment
	@$(PY) -m tools.execute notebooks/experiment.ipynb $@ $<

_drawn: $(DRAWN:%=figures/$(PROFILE)/%.pdf)

_measured: $(MEASURED:%=figures/$(PROFILE)/%.pdf)

figures/$(PROFILE)/%.pdf: $(STAMPS)/notebooks/% $(STAMPS)/drawing/% $(STAMPS)/draw.json $(STAMPS)/records
	@$(PY) -m tools.execute notebooks/$*.ipynb $(BUILD)/notebooks/$*.ipynb $(STAMPS)/draw.json

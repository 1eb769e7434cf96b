# Commands of the project. `make` alone lists them.

VENV ?= .venv
CONFIG = configs/digits.toml
ARGS =
CACHE ?=
NPROC ?=
BENCHMARKS = $(sort $(wildcard benchmarks/[!_]*.py))

export VENV PYTHON FFCV_WHEEL
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH

BIN = $(VENV)/bin
UV = $(shell uv --version >/dev/null 2>&1 && echo uv || echo "$(VENV)/.uv/bin/uv")
# As many processes as cores, each with one thread: more threads would wait for each other.
PYTEST = OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
MKDOCS = NO_MKDOCS_2_WARNING=1 "$(BIN)/python" -m mkdocs
DEMO_TEACHER = work/demo/teacher.safetensors
STAGES = prepare train-teacher cache-teacher select train-student compare sweep

.DEFAULT_GOAL := help
.PHONY: help setup browser demo demo-images report $(STAGES) tensorboard check test test-gpu docs docs-serve pictures bench format lock

help:  ## List the commands
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-14s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Stages read CONFIG and ARGS: make select CONFIG=configs/cifar10.toml ARGS="--set select.eta=0.7"'
	@echo 'In 8 processes: make cache-teacher CONFIG=my.toml NPROC=8'
	@echo 'A cache of another team: make select CONFIG=my.toml CACHE=s3://team/caches/0a7e1c919380'

browser: setup
	@scripts/browser.sh

setup:  ## Install everything into .venv; every command below does it first
	@scripts/setup.sh

demo: demo-images $(DEMO_TEACHER)  ## Distil a teacher of clean digits into students of 100 noisy ones
	@echo "demo: 15 students of your 100 images: without a teacher, by KD, by label revision"
	@"$(BIN)/heartcut" compare configs/demo.toml $(ARGS)
	@"$(BIN)/heartcut" report configs/demo.toml $(ARGS)

# More threads would only wait for each other: the networks of the demo are small.
demo: export OMP_NUM_THREADS = 1

demo-images: setup
	@"$(BIN)/python" scripts/demo_images.py

$(DEMO_TEACHER): configs/demo-teacher.toml scripts/demo_images.py | demo-images
	@echo "demo: another team trains its teacher on 800 clean images"
	@"$(BIN)/heartcut" -q prepare configs/demo-teacher.toml >/dev/null
	@run=$$("$(BIN)/heartcut" -q train-teacher configs/demo-teacher.toml) && cp "$$run/model.safetensors" $@

report: setup  ## Write one HTML file about the students of CONFIG, their teacher, and samples
	@"$(BIN)/heartcut" report "$(CONFIG)" $(ARGS)

prepare: setup  ## Write the images as beton files
train-teacher: setup  ## Train a teacher
cache-teacher: setup  ## Run the teacher once and cache its outputs
select: setup  ## Revise labels and select the samples to distil
train-student: setup  ## Train the student from the cached labels
compare: setup  ## Run all stages, and the student under every variant of CONFIG
sweep: setup  ## Run the student at every point of the sweep table of CONFIG
sweep: CONFIG = configs/digits-sweep.toml

tensorboard: setup  ## Show the runs of CONFIG side by side in TensorBoard
	@runs=$$("$(BIN)/heartcut" show runs-folder "$(CONFIG)" $(ARGS)) && \
		exec "$(BIN)/tensorboard" --logdir "$$runs"

$(STAGES):
	@"$(BIN)/heartcut" $(if $(NPROC),launch --processes "$(NPROC)") $@ "$(CONFIG)" $(if $(CACHE),--set "select.cache=$(CACHE)") $(ARGS)

check: browser  ## Run all checks of CI: formatting, lint, types, prose, the site, tests
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	"$(BIN)/python" scripts/prose.py >/dev/null
	$(MKDOCS) build --strict --quiet
	$(PYTEST) $(ARGS)

test: browser  ## Run the tests
	$(PYTEST) $(ARGS)

test-gpu: setup  ## Run the tests that need a CUDA device
	"$(BIN)/python" -m pytest -m gpu $(ARGS)

docs: setup  ## Build the documentation site in work/site
	$(MKDOCS) build --strict --quiet
	@echo work/site/index.html

docs-serve: setup  ## Serve the site at localhost:8000, rebuilt after every change
	$(MKDOCS) serve

pictures: demo browser  ## Draw every picture of the docs, from the demo and the stored results
	@"$(BIN)/python" -m scripts.pictures

bench: setup  ## Run the benchmarks; BENCHMARKS=benchmarks/x.py for one of them
	@set -e; for script in $(BENCHMARKS); do "$(BIN)/python" "$$script" $(ARGS); done

format: setup  ## Format the code, and fix lint errors that can be fixed automatically
	"$(BIN)/ruff" check --fix --quiet . || true
	"$(BIN)/ruff" format .

lock: setup  ## Update requirements.lock from pyproject.toml; ARGS=--upgrade for newer versions
	"$(UV)" pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file requirements.lock pyproject.toml $(ARGS)
